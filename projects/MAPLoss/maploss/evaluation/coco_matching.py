# SPDX-License-Identifier: Apache-2.0
"""
Which object a detection is matched to by COCO's rule, which is not VOC's.

Shape letters: D detections, G objects, both of one class, T IoU thresholds.
"""

from collections.abc import Sequence

import numpy as np

MAX_DETECTIONS = 100


def match_coco(
    boxes: np.ndarray,
    image_inds: np.ndarray,
    gt_boxes: np.ndarray,
    gt_image_inds: np.ndarray,
    is_ignored: np.ndarray,
    is_crowd: np.ndarray,
    iou_threshs: Sequence[float],
) -> np.ndarray:
    """
    COCO's matching: by falling score, each detection takes the best object that is still free.

    VOC matches a detection to the object that it overlaps most, free or not; here a detection whose
    best object is taken goes to the next best. IoU >= threshold counts; with a crowd the overlap is
    intersection / area of the detection, and a crowd is never taken. Only the 100 best detections
    of an image count (Lin et al., ECCV 2014; pycocotools' `COCOeval.evaluateImg`).

    Args:
        boxes: (D, 4) XYXY in pixels, by falling score.
        image_inds: (D,).
        gt_boxes: (G, 4).
        gt_image_inds: (G,).
        is_ignored: (G,) bool, difficult objects and crowds.
        is_crowd: (G,) bool.
        iou_threshs: T numbers.

    Returns:
        (T, D) int64: the index of the object, -1 for none, -2 for an ignored object and for
        detections that do not count.
    """
    threshs = np.minimum(np.asarray(iou_threshs), 1 - 1e-10)
    matched = np.full((len(threshs), len(boxes)), -1, dtype=np.int64)
    matched[:, _rank_in_image(image_inds) >= MAX_DETECTIONS] = -2
    boxes, gt_boxes = boxes.astype(np.float64), gt_boxes.astype(np.float64)
    for image in np.unique(gt_image_inds):
        gts = np.flatnonzero(gt_image_inds == image)
        # Those that count first: of these even a worse one goes before an ignored one.
        gts = gts[np.argsort(is_ignored[gts], kind="stable")]
        dets = np.flatnonzero(image_inds == image)[:MAX_DETECTIONS]
        overlap = _overlap(boxes[dets], gt_boxes[gts], is_crowd[gts])
        is_taken = np.zeros((len(threshs), len(gts)), dtype=bool)
        for d in np.flatnonzero((overlap >= threshs.min()).any(1)):
            is_free = (overlap[d] >= threshs[:, None]) & ~(is_taken & ~is_crowd[gts])
            for t in np.flatnonzero(is_free.any(1)):
                free = np.flatnonzero(is_free[t])
                counting = free[~is_ignored[gts[free]]]
                free = counting if len(counting) else free
                # The last of equals, as in pycocotools.
                best = free[::-1][overlap[d, free[::-1]].argmax()]
                is_taken[t, best] = True
                matched[t, dets[d]] = -2 if is_ignored[gts[best]] else gts[best]
    return matched


def _rank_in_image(image_inds: np.ndarray) -> np.ndarray:
    """(D,) how many detections of the same image come before."""
    order = np.argsort(image_inds, kind="stable")
    _, first, counts = np.unique(image_inds[order], return_index=True, return_counts=True)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, counts)
    return rank


def _overlap(boxes: np.ndarray, gt_boxes: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """(D, G) IoU, or intersection / area of the detection for crowds."""
    low = np.maximum(boxes[:, None, :2], gt_boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], gt_boxes[None, :, 2:])
    inter = (high - low).clip(min=0).prod(2)
    area, gt_area = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, gt_boxes))
    union = np.where(is_crowd[None], area[:, None], area[:, None] + gt_area[None] - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
