# SPDX-License-Identifier: Apache-2.0
"""
The mAP loss of several overlaps by its definition: one class, one overlap after another, in NumPy.

R windows, K classes, G objects, T overlaps. Images of a minibatch are told apart by their ids.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import ap_after_nms
from .box_gradient import box_gradient_of_steps, error_driven_box_gradient
from .error_driven_gradient import error_driven_gradient, pseudo_gradient


class SlowLoss(NamedTuple):
    """
    ap: (T, K), nan for a class without objects. gradient: (R, K), of the loss by the scores.
    by_overlap: (R, K), how much the loss falls with the IoU of each window as each class.
    """

    loss: float
    ap: np.ndarray
    gradient: np.ndarray
    by_overlap: np.ndarray


def map_loss(
    batch: dict,
    iou_threshs: Sequence[float],
    *,
    gradient: str = "error_driven",
    transitivity: str = "object_aware",
    box_gradient: str = "none",
    pooled: float = 0.0,
    ap_type: str = "area",
    nms_thresh: float = 0.3,
    margin: float = 1.0,
    min_delta: float = 0.5,
    pairing: str = "paired",
    log_space: bool = True,
    eps: float = 1.0,
) -> SlowLoss:
    """
    `batch`: the tensors that the loss takes, by name. `gradient` "error_driven" goes with
    `transitivity` "label_aware", "object_aware" and "none"; "mee" and "sde" with "exact" and
    "none".
    """
    arrays = {name: value.numpy() for name, value in batch.items()}
    scores, boxes = arrays["scores"].astype(float), arrays["boxes"]
    num_classes = scores.shape[1]
    lists = []
    for c in range(num_classes):
        class_boxes = boxes if boxes.ndim == 2 else boxes[:, c]
        # NMS compares float32.
        overlaps = ap_after_nms.overlap_masks(
            class_boxes.astype(np.float32), arrays["image_ids"], nms_thresh
        )
        num_gt = int(((arrays["gt_classes"] == c) & ~arrays["gt_difficult"].astype(bool)).sum())
        lists.append(_List(scores[:, c], overlaps, best_objects(class_boxes, c, arrays), num_gt))
    one_list = _List(
        np.concatenate([x.scores for x in lists]),
        [mask << (i * len(scores)) for i, x in enumerate(lists) for mask in x.overlaps],
        [pair for x in lists for pair in x.best],
        sum(x.num_gt for x in lists),
    )
    # Weight, list, and the columns of it.
    parts = [((1 - pooled) / max(num_classes, 1), x, [c]) for c, x in enumerate(lists)]
    parts.append((pooled, one_list, list(range(num_classes))))
    ap = np.full((len(iou_threshs), num_classes), np.nan)
    value, ppd, by_overlap = 0.0, np.zeros_like(scores), np.zeros_like(scores)
    for weight, some, columns in parts:
        if some.num_gt == 0:
            continue
        lowest = matched_objects(some.best, iou_threshs[0], arrays)
        rankings = [some.ranking(t, arrays, ap_type)._replace(lowest=lowest) for t in iou_threshs]
        aps = [one.ap() for one in rankings]
        if len(columns) == 1 and some is not one_list:
            ap[:, columns[0]] = aps
        value += weight * np.mean(aps)
        for one in rankings:
            if gradient == "error_driven":
                own = error_driven_gradient(
                    one.scores,
                    np.array(one.matched),
                    some.num_gt,
                    one.is_kept(),
                    margin,
                    transitivity,
                )
            else:
                own = one.gradient_of_steps(transitivity, gradient, min_delta, pairing == "paired")
            own = own.reshape(len(columns), len(scores)).T
            ppd[:, columns] += weight * own / len(iou_threshs)
        if box_gradient == "error_driven":
            own = np.mean([error_driven_box_gradient(one, margin) for one in rankings], 0)
        elif box_gradient != "none":
            own = box_gradient_of_steps(some, iou_threshs, arrays, ap_type, box_gradient)
        else:
            continue
        by_overlap[:, columns] += weight * own.reshape(len(columns), len(scores)).T
    if not log_space:
        return SlowLoss(1 - value, ap, -ppd, by_overlap)
    loss = -math.log((value + eps) / (1 + eps))
    return SlowLoss(loss, ap, -ppd / (value + eps), by_overlap / (value + eps))


class _List(NamedTuple):
    """What is ranked together: windows of a class, or of all. best: object and IoU of each."""

    scores: np.ndarray
    overlaps: list[int]
    best: list[tuple[int, float]]
    num_gt: int

    def ranking(self, iou_thresh: float, arrays: dict, ap_type: str) -> "_OneRanking":
        matched = matched_objects(self.best, iou_thresh, arrays)
        return _OneRanking(self.scores, self.overlaps, matched, self.num_gt, ap_type)


def best_objects(boxes: np.ndarray, c: int, arrays: dict) -> list[tuple[int, float]]:
    """For each window the first object of class c in its image of largest IoU, and that IoU."""
    result = []
    for box, image in zip(boxes, arrays["image_ids"], strict=True):
        best, best_iou = -1, 0.0
        for i, gt_box in enumerate(arrays["gt_boxes"]):
            if arrays["gt_classes"][i] != c or arrays["gt_image_ids"][i] != image:
                continue
            iou = ap_after_nms.iou(box, gt_box)
            if iou > best_iou:
                best, best_iou = i, iou
        result.append((best, best_iou))
    return result


def matched_objects(best: list[tuple[int, float]], iou_thresh: float, arrays: dict) -> list[int]:
    """For each window the object that it matches at this overlap; -1 none, -2 a difficult one."""
    matched = [i if iou > iou_thresh else -1 for i, iou in best]
    return [-2 if i >= 0 and arrays["gt_difficult"][i] else i for i in matched]


class _OneRanking(NamedTuple):
    """The windows of one list at one overlap. lowest: what they match at the lowest one."""

    scores: np.ndarray
    overlaps: list[int]
    matched: list[int]
    num_gt: int
    ap_type: str
    lowest: Sequence[int] = ()

    def order(self) -> list[int]:
        return np.argsort(-self.scores, kind="stable").tolist()

    def ap(self) -> float:
        return self.ap_of(self.order())

    def ap_of(self, order: list[int]) -> float:
        kept = ap_after_nms.greedy_nms(order, self.overlaps)
        return ap_after_nms.average_precision(kept, self.matched, self.num_gt, self.ap_type)

    def is_kept(self) -> np.ndarray:
        kept = ap_after_nms.greedy_nms(self.order(), self.overlaps)
        return np.isin(np.arange(len(self.scores)), kept)

    def gradient_of_steps(
        self, transitivity: str, estimator: str, min_delta: float, is_paired: bool
    ) -> np.ndarray:
        """Every place of each window is tried: with NMS anew ("exact") or among the kept alone."""
        moving = np.arange(len(self.scores))
        if transitivity == "none":
            moving = np.flatnonzero(self.is_kept())

        def f(order: list[int]) -> float:
            windows = [int(moving[i]) for i in order]
            if transitivity == "exact":
                return self.ap_of(windows)
            return ap_after_nms.average_precision(windows, self.matched, self.num_gt, self.ap_type)

        value, steps = ap_after_nms.nearest_steps(f, self.scores[moving])
        gradient = np.zeros(len(self.scores))
        gradient[moving] = pseudo_gradient(
            value, steps, self.scores[moving], estimator, min_delta, is_paired
        )
        return gradient
