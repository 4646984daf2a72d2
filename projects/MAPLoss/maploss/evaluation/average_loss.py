# SPDX-License-Identifier: Apache-2.0
"""The training loss over all windows, whichever of them a run trained on."""

from collections.abc import Iterable

import torch
from detectron2.modeling import GeneralizedRCNN


@torch.no_grad()
def average_loss(model: GeneralizedRCNN, images: Iterable[dict]) -> float:
    """
    Mean loss of classification and box over all windows of all images (Shrivastava et al. 2016,
    section 5.5), which does not depend on how windows are sampled: dropout off, background from
    IoU 0 on, only windows over difficult objects left out where these do not train.

    Args:
        model: with OHEMROIHeads, on whose weights those of SoftmaxROIHeads fit.
        images: what a mapper with is_train=True gives of each.

    Raises:
        ValueError: there are no windows.
    """
    model.eval()
    heads, total, count = model.roi_heads, 0.0, 0
    for inputs in images:
        image = model.preprocess_image([inputs])
        windows = heads.label_and_sample_proposals(
            [inputs["proposals"].to(model.device)], [inputs["instances"].to(model.device)]
        )
        outputs = heads.score_proposals(model.backbone(image.tensor), windows)
        total += float(heads.box_predictor.proposal_losses(outputs, windows).sum())
        count += len(windows[0])
    if not count:
        raise ValueError("images: expected some windows, got none")
    return total / count
