# SPDX-License-Identifier: Apache-2.0
"""
From scored boxes to detections: NMS of each class, box voting, limits.

Shape letters: R proposals of an image, K classes, C candidates: pairs of a box and a class.
"""

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

from ..layers.box_voting import box_voting


def check_finite_scores(scores: torch.Tensor) -> None:
    """Raises FloatingPointError where a score is infinite or not a number."""
    is_finite = torch.isfinite(scores)
    if not is_finite.all():
        raise FloatingPointError(
            f"scores: expected finite values, got {int((~is_finite).sum())} of {scores.numel()} "
            "that are infinite or not a number"
        )


def proposal_candidates(
    scores: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], score_thresh: float
) -> Instances:
    """
    Each proposal as each class that it may be.

    Args:
        scores: (R, K).
        boxes: (R, 4) XYXY in pixels, or (R, K, 4), one of its own for each class; clipped to the
            image here.
        image_size: height and width in pixels.
        score_thresh: scores not above it are dropped; -inf drops none.

    Returns:
        C Instances with pred_boxes, scores (at full precision), pred_classes, proposal by proposal.

    Raises:
        FloatingPointError: a score is not finite.
    """
    check_finite_scores(scores)
    proposal_inds, class_inds = (scores > score_thresh).nonzero(as_tuple=True)
    class_boxes = boxes[proposal_inds] if boxes.dim() == 2 else boxes[proposal_inds, class_inds]
    return make_candidates(class_boxes, scores[proposal_inds, class_inds], class_inds, image_size)


def make_candidates(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, image_size: tuple[int, int]
) -> Instances:
    """(C, 4), (C,) and (C,) to C Instances, with the boxes clipped to the image."""
    candidates = Instances(image_size)
    candidates.pred_boxes = Boxes(boxes)
    candidates.pred_boxes.clip(image_size)
    candidates.scores = scores
    candidates.pred_classes = classes
    return candidates


def best_of_each_class(candidates: Instances, num: int) -> Instances:
    """The `num` candidates of the largest scores of each class, ties in their order."""
    order = torch.argsort(candidates.scores, descending=True, stable=True)
    classes = candidates.pred_classes[order]
    order = order[torch.argsort(classes, stable=True)]
    counts = classes.bincount()
    rank = torch.arange(len(order), device=order.device)
    rank = rank - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return candidates[order[rank < num]]


def detections(
    candidates: Instances,
    *,
    nms_iou_thresh: float,
    detections_per_image: int,
    vote_iou_thresh: float = 0.0,
    log_weights: torch.Tensor | None = None,
) -> Instances:
    """
    Detections of one image: its candidates after greedy NMS of each class, by falling score.

    Args:
        candidates: of :func:`proposal_candidates`.
        nms_iou_thresh: a candidate is suppressed by a better one of IoU above it.
        detections_per_image: the best so many of all classes together; <= 0 means all.
        vote_iou_thresh: with votes, a detection's box is the mean of the candidates of its class
            whose IoU with it is above this (:func:`maploss.layers.box_voting`).
        log_weights: (C,) of the votes; None for none.
    """
    boxes, scores = candidates.pred_boxes.tensor, candidates.scores
    classes = candidates.pred_classes
    # Which it keeps does not depend on the order of ties, but its own order does.
    keep = batched_nms(boxes, scores, classes, nms_iou_thresh).sort()[0]
    keep = keep[torch.argsort(scores[keep], descending=True, stable=True)]
    if detections_per_image > 0:
        keep = keep[:detections_per_image]
    kept = candidates[keep]
    if log_weights is not None:
        voted = boxes[keep]
        for class_id in kept.pred_classes.unique():
            is_own, may_vote = kept.pred_classes == class_id, classes == class_id
            voted[is_own] = box_voting(
                voted[is_own], boxes[may_vote], log_weights[may_vote], vote_iou_thresh
            )
        kept.pred_boxes = Boxes(voted)
    return kept
