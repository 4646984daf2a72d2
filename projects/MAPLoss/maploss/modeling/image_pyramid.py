# SPDX-License-Identifier: Apache-2.0
"""
The test on an image pyramid: each window at the scale that suits it (Girshick 2015, section 3).

Shape letters: R windows of an image, S images of its pyramid.
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, Instances

from .output_layers import WindowOutputs

# A window is seen where it is about as large as the images of the classifier's training.
BEST_AREA = 224.0**2


def choose_scales(boxes: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    """
    (R,) index of the scale at which the area of each box is closest to 224 x 224 pixels.

    Args:
        boxes: (R, 4) XYXY in pixels of the image at scale 1. scales: S factors.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    factors = torch.as_tensor(scales, dtype=areas.dtype, device=areas.device)
    return (areas[:, None] * factors**2 - BEST_AREA).abs().argmin(dim=1)


def score_on_pyramid(
    score: Callable[[torch.Tensor, Instances], WindowOutputs],
    pyramid: Sequence[torch.Tensor],
    windows: Instances,
) -> WindowOutputs:
    """
    What is said of each window, seen in one image of the pyramid.

    Args:
        score: from an image (3, H, W) and the windows in its pixels to what is said of these.
        pyramid: S images (3, Hs, Ws) of the same scene. windows: R, in pixels of
            `windows.image_size`.
    """
    height, width = windows.image_size
    boxes = windows.proposal_boxes.tensor
    sizes = [tuple(image.shape[1:]) for image in pyramid]
    levels = choose_scales(boxes, [(h * w / (height * width)) ** 0.5 for h, w in sizes])
    found, order = [], []
    for level, (image, size) in enumerate(zip(pyramid, sizes, strict=True)):
        inds = (levels == level).nonzero().squeeze(1)
        if len(inds) or (not len(boxes) and level == 0):
            own = Instances(size)
            own.proposal_boxes = Boxes(boxes[inds].clone())
            own.proposal_boxes.scale(size[1] / width, size[0] / height)
            found.append(score(image, own))
            order.append(inds)
    back = torch.argsort(torch.cat(order))
    scores = torch.cat([x.scores for x in found])[back]
    deltas = [x.deltas for x in found]
    return WindowOutputs(scores, None if deltas[0] is None else torch.cat(deltas)[back])
