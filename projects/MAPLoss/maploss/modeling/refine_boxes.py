# SPDX-License-Identifier: Apache-2.0
"""
Regressed boxes scored and regressed once more (Gidaris & Komodakis 2015, section 4; Shrivastava et
al. 2016, section 7).

Shape letters: N images, R windows of an image, K classes, C candidates of an image.
"""

from collections.abc import Callable

import torch
from detectron2.structures import Instances
from torch import nn

from .detections import check_finite_scores, make_candidates


def best_of_each_class(candidates: Instances, num: int) -> Instances:
    """The `num` candidates of the largest scores of each class, ties in their order."""
    order = torch.argsort(candidates.scores, descending=True, stable=True)
    classes = candidates.pred_classes[order]
    order = order[torch.argsort(classes, stable=True)]
    counts = classes.bincount()
    rank = torch.arange(len(order), device=order.device)
    rank = rank - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return candidates[order[rank < num]]


def refine_boxes(
    score: Callable[[list[Instances]], tuple],
    predictor: nn.Module,
    candidates: list[Instances],
    num: list[int],
) -> list[Instances]:
    """
    The best candidates of each class as windows: scored and regressed as that class.

    Args:
        score: from windows of N images to the predictor's outputs. predictor: a
            :class:`maploss.modeling.output_layers.WindowOutputLayers` with box regression.
        candidates: of N images, see :func:`maploss.modeling.detections.window_candidates`.
        num: how many of each class, for N images.

    Returns:
        New candidates of N images, one for each that was taken.

    Raises:
        FloatingPointError: a score is not finite.
    """
    best = [best_of_each_class(x, n) for x, n in zip(candidates, num, strict=True)]
    windows = []
    for x in best:
        windows.append(Instances(x.image_size, proposal_boxes=x.pred_boxes))
    outputs = score(windows)
    classes = torch.cat([x.pred_classes for x in best])
    rows = torch.arange(len(classes), device=classes.device)
    scores = predictor.detection_scores(outputs.scores)[rows, classes]
    check_finite_scores(scores)
    boxes = predictor.boxes(outputs, windows)
    if boxes.dim() == 3:
        boxes = boxes[rows, classes]
    counts = [len(x) for x in best]
    return [
        make_candidates(b, s, x.pred_classes, x.image_size)
        for b, s, x in zip(boxes.split(counts), scores.split(counts), best, strict=True)
    ]
