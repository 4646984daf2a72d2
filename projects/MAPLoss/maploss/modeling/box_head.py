# SPDX-License-Identifier: Apache-2.0
"""
A box head that sees how a window's features are spread, not how large they are.

Shape letters: R windows.
"""

import torch
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch.nn import functional as F


@ROI_BOX_HEAD_REGISTRY.register()
class NormalizedConvFCHead(FastRCNNConvFCHead):
    """
    Detectron2's FastRCNNConvFCHead on features of mean 0 and variance 1 for each window.

    Backbones without normalisation layers (SqueezeNet, VGG) give features of tens to hundreds. AP
    does not depend on the size of scores, so nothing in a loss made of AP holds them back: they
    grow until the margin of a pair means nothing. Layer normalisation (Ba et al. 2016) of what is
    pooled, without weights, gives every loss the same scale to start from.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(R, C, H, W) pooled features to (R, FC_DIM)."""
        return super().forward(F.layer_norm(features, features.shape[1:]))
