# SPDX-License-Identifier: Apache-2.0
"""
The test on an image pyramid: each window at the scale that suits it (Girshick 2015, section 3).

Shape letters: R windows of an image, S images of its pyramid.
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, Instances

from .output_layers import WindowOutputs


def choose_scales(
    boxes: torch.Tensor, scales: Sequence[float], best_side: float = 224.0
) -> torch.Tensor:
    """
    (R,) index of the scale at which the area of each box is closest to the best one.

    Args:
        boxes: (R, 4) XYXY in pixels of the image at scale 1. scales: S factors. best_side: of the
            square of the best area in pixels, 224: the images of the classifier's training.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    factors = torch.as_tensor(scales, dtype=areas.dtype, device=areas.device)
    return (areas[:, None] * factors**2 - best_side**2).abs().argmin(dim=1)


def score_on_pyramid(
    score: Callable[[int, Instances], WindowOutputs],
    sizes: Sequence[tuple[int, int]],
    windows: Instances,
    best_side: float = 224.0,
) -> WindowOutputs:
    """
    What is said of each window, seen in one image of the pyramid.

    Args:
        score: from the index of an image of the pyramid and the windows in its pixels to what is
            said of these. sizes: heights and widths of the S images, all of the same scene.
        windows: R, in pixels of `windows.image_size`. best_side: see :func:`choose_scales`.
    """
    height, width = windows.image_size
    boxes = windows.proposal_boxes.tensor
    scales = [(h * w / (height * width)) ** 0.5 for h, w in sizes]
    levels = choose_scales(boxes, scales, best_side)
    found, order = [], []
    for level, size in enumerate(sizes):
        inds = (levels == level).nonzero().squeeze(1)
        if len(inds) or (not len(boxes) and level == 0):
            own = Instances(size)
            own.proposal_boxes = Boxes(boxes[inds].clone())
            own.proposal_boxes.scale(size[1] / width, size[0] / height)
            found.append(score(level, own))
            order.append(inds)
    back = torch.argsort(torch.cat(order))
    scores = torch.cat([x.scores for x in found])[back]
    deltas = [x.deltas for x in found]
    return WindowOutputs(scores, None if deltas[0] is None else torch.cat(deltas)[back])
