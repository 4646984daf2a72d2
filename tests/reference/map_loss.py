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
from .error_driven_gradient import error_driven_gradient, pseudo_gradient


class SlowLoss(NamedTuple):
    """ap: (T, K), nan for a class without objects. gradient: (R, K), of the loss by the scores."""

    loss: float
    ap: np.ndarray
    gradient: np.ndarray


def map_loss(
    batch: dict,
    iou_threshs: Sequence[float],
    *,
    gradient: str = "error_driven",
    transitivity: str = "label_aware",
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
    `transitivity` "label_aware" and "none"; "mee" and "sde" with "exact" and "none".
    """
    arrays = {name: value.numpy() for name, value in batch.items()}
    scores, boxes = arrays["scores"].astype(float), arrays["boxes"]
    ap, ppd = np.full((len(iou_threshs), scores.shape[1]), np.nan), np.zeros_like(scores)
    for c in range(scores.shape[1]):
        num_gt = int(((arrays["gt_classes"] == c) & ~arrays["gt_difficult"].astype(bool)).sum())
        if num_gt == 0:
            continue
        class_boxes = boxes if boxes.ndim == 2 else boxes[:, c]
        # NMS compares float32.
        overlaps = ap_after_nms.overlap_masks(
            class_boxes.astype(np.float32), arrays["image_ids"], nms_thresh
        )
        best = best_objects(class_boxes, c, arrays)
        for t, iou_thresh in enumerate(iou_threshs):
            matched = matched_objects(best, iou_thresh, arrays)
            one = _OneRanking(scores[:, c], overlaps, matched, num_gt, ap_type)
            ap[t, c] = one.ap()
            if gradient == "error_driven":
                own = error_driven_gradient(
                    one.scores,
                    np.array(matched),
                    num_gt,
                    one.is_kept(),
                    margin,
                    transitivity == "label_aware",
                )
            else:
                own = one.gradient_of_steps(transitivity, gradient, min_delta, pairing == "paired")
            ppd[:, c] += own / len(iou_threshs)
    num_classes = max(scores.shape[1], 1)
    # Over the overlaps, then over all K classes: those without objects count 0.
    mean_ap = float(np.nan_to_num(ap).mean(0).sum()) / num_classes
    if not log_space:
        return SlowLoss(1 - mean_ap, ap, -ppd / num_classes)
    loss = -math.log((mean_ap + eps) / (1 + eps))
    return SlowLoss(loss, ap, -ppd / num_classes / (mean_ap + eps))


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
    """The windows of one class at one overlap."""

    scores: np.ndarray
    overlaps: list[int]
    matched: list[int]
    num_gt: int
    ap_type: str

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
