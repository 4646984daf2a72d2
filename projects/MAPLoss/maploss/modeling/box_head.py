# SPDX-License-Identifier: Apache-2.0
"""
Box heads: from the pooled features of proposals to what the predictor scores.

Shape letters: R proposals, C channels, H and W cells of the pooled features.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn
from torch.nn import functional as F


def num_features(shape: ShapeSpec) -> int:
    """Of one proposal, in all channels and cells."""
    return shape.channels * (shape.height or 1) * (shape.width or 1)


@ROI_BOX_HEAD_REGISTRY.register()
class NormalizedConvFCHead(FastRCNNConvFCHead):
    """
    Detectron2's FastRCNNConvFCHead on features of mean 0 and variance 1 for each proposal.

    Backbones without normalisation layers (SqueezeNet, VGG) give features of tens to hundreds. AP
    does not depend on the size of scores, so nothing in a loss made of AP holds them back: they
    grow until the margin of a pair means nothing. Layer normalisation (Ba et al. 2016) of what is
    pooled, without weights, gives every loss the same scale to start from.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(R, C, H, W) pooled features to (R, FC_DIM)."""
        return super().forward(F.layer_norm(features, features.shape[1:]))


@ROI_BOX_HEAD_REGISTRY.register()
class FullyConnectedHead(nn.Module):
    """
    fc6 and fc7 of a classifier for ImageNet, each with ReLU and dropout (Girshick 2015, section 2).

    The names are those of the classifiers, whose weights it takes (see
    :class:`maploss.modeling.PlainConvNet`); Detectron2's FastRCNNConvFCHead has layers of one width
    and no dropout.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, fc_dims: Sequence[int], dropout: float = 0.5
    ) -> None:
        """
        Args:
            input_shape: of the pooled features of one proposal.
            fc_dims: widths of fc6, fc7, and so on.
            dropout: share of outputs that are dropped in training, in [0, 1).

        Raises:
            ValueError: no layer, or a share out of range.
        """
        super().__init__()
        if not fc_dims:
            raise ValueError("fc_dims: expected the width of at least one layer, got none")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a share in [0, 1), got {dropout}")
        width = num_features(input_shape)
        for i, dim in enumerate(fc_dims):
            layer = nn.Linear(width, dim)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
            self.add_module(f"fc{6 + i}", layer)
            width = dim
        self.dropout = dropout
        self.output_shape = ShapeSpec(channels=width)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            "input_shape": input_shape,
            "fc_dims": cfg.MODEL.ROI_BOX_HEAD.FULLY_CONNECTED.DIMS,
        }

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(R, C, H, W) pooled features to (R, fc_dims[-1])."""
        x = features.flatten(1)
        for layer in self.children():
            x = F.dropout(layer(x).relu_(), self.dropout, self.training)
        return x
