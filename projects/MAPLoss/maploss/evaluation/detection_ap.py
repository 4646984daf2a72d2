# SPDX-License-Identifier: Apache-2.0
"""
AP per class of all detections of a data set.

Shape letters: D detections, G objects, T IoU thresholds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_ioa

from maploss.layers.average_precision import average_precision, precision_recall, rank_detections
from maploss.layers.match_detections import match_detections

from .coco_matching import match_coco

AP_SUFFIX = {"area": "", "voc07": "-voc07", "coco101": "-coco101"}
IOU_THRESHS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


class Detections(NamedTuple):
    """boxes (D, 4) XYXY pixels, scores (D,), classes (D,), image_inds (D,) int64."""

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    image_inds: torch.Tensor


class Objects(NamedTuple):
    """
    boxes (G, 4) XYXY pixels, classes (G,), image_inds (G,) int64, is_difficult, is_crowd (G,) bool.

    Neither difficult objects nor crowds (groups under one box) count. areas (G,): by which COCO
    tells small objects from large ones, None for those of the boxes.
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    image_inds: torch.Tensor
    is_difficult: torch.Tensor
    is_crowd: torch.Tensor
    areas: torch.Tensor | None = None


class ClassResult(NamedTuple):
    """
    Evaluation of one class.

    ap: AP in [0, 1] by name, nan without an object: `AP50` at IoU > .5, `AP75` at IoU > .75 and
        `AP` as the mean over .5, .55, .., .95, by area; with `-voc07` by 11 points, with `-coco101`
        by 101 points.
    num_objects, num_difficult: objects that count, and those, crowds too, that do not.
    inds: (D',) the class's detections, as indices into all, by falling score.
    scores: (D',) float64.
    matched: by rule, "voc" and "coco", (T, D') index into all objects at each of IOU_THRESHS, -1
        for none, -2 for an ignored one.
    matched_object: (D',) index into all objects, -1 for none, at IoU .5.
    iou: (D',) with the object of the class that is overlapped most, 0 for none; crowds are none.
    is_tp, is_ignored: (D',) bool, at IoU .5.
    precision, recall: after each detection that is not ignored, by falling score, at .5.
    best_f1, best_f1_thresh: the highest F1 on these detections, and the score it is reached at;
        nan where no detection is right.
    """

    ap: dict[str, float]
    num_objects: int
    num_difficult: int
    inds: torch.Tensor
    scores: torch.Tensor
    matched: dict[str, torch.Tensor]
    matched_object: torch.Tensor
    iou: torch.Tensor
    is_tp: torch.Tensor
    is_ignored: torch.Tensor
    precision: torch.Tensor
    recall: torch.Tensor
    best_f1: float
    best_f1_thresh: float


def evaluate_detections(
    detections: Detections, objects: Objects, num_classes: int
) -> list[ClassResult]:
    """
    Matches detections with objects and computes the AP of each class.

    For `area` and `voc07` a detection is matched to the object of its class and image that it
    overlaps most, if IoU > threshold; a match with a difficult object is ignored (Everingham et
    al., IJCV 2010), and so is a detection that matches no object and lies in a crowd by more than
    that share of its area. For `coco101` by COCO's rule, :func:`match_coco`. Of equal scores the
    first detection comes first.

    Raises:
        FloatingPointError: a score that is not finite.
    """
    return [_evaluate_class(detections, objects, k) for k in range(num_classes)]


def mean_ap(results: Sequence[ClassResult]) -> dict[str, float]:
    """Means over the classes that have an object which counts; nan if none has."""
    present = [result.ap for result in results if result.num_objects]
    if not present:
        return {name: float("nan") for result in results[:1] for name in result.ap}
    return {name: sum(ap[name] for ap in present) / len(present) for name in present[0]}


def named_ap(
    scores: torch.Tensor, matched: dict[str, torch.Tensor], num_objects: int, infix: str = ""
) -> dict[str, float]:
    """
    AP, AP50 and AP75 of one list of detections, by each of AP_SUFFIX, in [0, 1].

    Args:
        scores: (D,).
        matched: as in :class:`ClassResult`.
        num_objects: those that count.
        infix: comes between "AP50" and the suffix.
    """
    ap = {}
    for ap_type, suffix in AP_SUFFIX.items():
        by_thresh = matched["coco" if ap_type == "coco101" else "voc"]
        values = [float(average_precision(scores, m, num_objects, ap_type)) for m in by_thresh]
        ap[f"AP{infix}{suffix}"] = sum(values) / len(values)
        ap[f"AP50{infix}{suffix}"] = values[0]
        ap[f"AP75{infix}{suffix}"] = values[5]
    return ap


def _evaluate_class(detections: Detections, objects: Objects, class_id: int) -> ClassResult:
    inds = (detections.classes == class_id).nonzero().squeeze(1)
    # Sorted once here, so that the sorting inside of each AP finds it done.
    inds = inds[torch.argsort(detections.scores[inds], descending=True, stable=True)]
    is_mine = objects.classes == class_id
    mine = is_mine.nonzero().squeeze(1)
    nearest, iou, matched_voc = _match_voc(detections, inds, objects, is_mine)
    matched = {
        "voc": matched_voc,
        "coco": _of_all(_match_coco(detections, inds, objects, mine), mine),
    }
    num_objects = int((is_mine & ~objects.is_crowd & ~objects.is_difficult).sum())
    scores = detections.scores[inds].double()
    is_tp = torch.zeros(len(inds), dtype=torch.bool)
    ranked = rank_detections(scores, matched_voc[0])
    is_tp[ranked.order] = ranked.is_tp
    precision, recall = precision_recall(scores, matched_voc[0], num_objects)
    best_f1, best_f1_thresh = _best_f1(precision, recall, scores[ranked.order])
    return ClassResult(
        ap=named_ap(scores, matched, num_objects),
        num_objects=num_objects,
        num_difficult=len(mine) - num_objects,
        inds=inds,
        scores=scores,
        matched=matched,
        matched_object=nearest,
        iou=iou,
        is_tp=is_tp,
        is_ignored=matched_voc[0] == -2,
        precision=precision,
        recall=recall,
        best_f1=best_f1,
        best_f1_thresh=best_f1_thresh,
    )


def _match_voc(
    detections: Detections, inds: torch.Tensor, objects: Objects, is_mine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(D,) the object of any kind but crowds over IoU .5, or -1; (D,) IoU; (T, D) matched."""
    object_inds = (is_mine & ~objects.is_crowd).nonzero().squeeze(1)
    gt_boxes, is_difficult = objects.boxes[object_inds], objects.is_difficult[object_inds]
    boxes, image_inds = detections.boxes[inds], detections.image_inds[inds]
    nearest = match_detections(
        boxes, image_inds, gt_boxes, objects.image_inds[object_inds], iou_thresh=0.0
    )
    share_in_crowd = _share_in_crowd(boxes, image_inds, objects, is_mine & objects.is_crowd)
    # The object overlapped most is the same at every threshold: one matching serves all of them.
    iou = _nearest_iou(boxes, gt_boxes, nearest)
    matched = [
        _match_at(nearest, iou, is_difficult, share_in_crowd, thresh) for thresh in IOU_THRESHS
    ]
    over_half = torch.where(iou > IOU_THRESHS[0], nearest, -1)
    return _of_all(over_half, object_inds), iou, _of_all(torch.stack(matched), object_inds)


def _of_all(matched: torch.Tensor, object_inds: torch.Tensor) -> torch.Tensor:
    """Indices into a class's objects as indices into all; -1 and -2 stay."""
    if not len(object_inds):
        return matched
    return torch.where(matched >= 0, object_inds[matched.clamp(min=0)], matched)


def _nearest_iou(
    boxes: torch.Tensor, gt_boxes: torch.Tensor, nearest: torch.Tensor
) -> torch.Tensor:
    """(D,) IoU of each detection with the object it overlaps most; 0 where it overlaps none."""
    iou = torch.zeros(len(boxes), dtype=boxes.dtype)
    is_near = nearest >= 0
    boxes, others = boxes[is_near], gt_boxes[nearest[is_near]]
    size = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    inter = size.clamp(min=0).prod(1)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, others)]
    iou[is_near] = inter / (areas[0] + areas[1] - inter)
    return iou


def _share_in_crowd(
    boxes: torch.Tensor, image_inds: torch.Tensor, objects: Objects, is_crowd: torch.Tensor
) -> torch.Tensor:
    """(D,) largest share of a detection's area that lies in one crowd of its image."""
    share = torch.zeros(len(boxes))
    for i in is_crowd.nonzero().squeeze(1).tolist():
        there = image_inds == objects.image_inds[i]
        crowd, mine = Boxes(objects.boxes[i : i + 1]), Boxes(boxes[there])
        share[there] = torch.maximum(share[there], pairwise_ioa(crowd, mine)[0])
    return share


def _match_at(
    nearest: torch.Tensor,
    iou: torch.Tensor,
    is_difficult: torch.Tensor,
    share_in_crowd: torch.Tensor,
    iou_thresh: float,
) -> torch.Tensor:
    """(D,) index of the object matched, -1 for none, -2 for a difficult one or a crowd."""
    matched = torch.where(iou > iou_thresh, nearest, -1)
    if len(is_difficult):
        matched[(matched >= 0) & is_difficult[matched.clamp(min=0)]] = -2
    matched[(matched == -1) & (share_in_crowd > iou_thresh)] = -2
    return matched


def _match_coco(
    detections: Detections, inds: torch.Tensor, objects: Objects, object_inds: torch.Tensor
) -> torch.Tensor:
    """(T, D) as :func:`match_coco`."""
    is_crowd = objects.is_crowd[object_inds]
    matched = match_coco(
        detections.boxes[inds].numpy(),
        detections.image_inds[inds].numpy(),
        objects.boxes[object_inds].numpy(),
        objects.image_inds[object_inds].numpy(),
        (objects.is_difficult[object_inds] | is_crowd).numpy(),
        is_crowd.numpy(),
        IOU_THRESHS,
    )
    return torch.from_numpy(matched)


def _best_f1(
    precision: torch.Tensor, recall: torch.Tensor, scores: torch.Tensor
) -> tuple[float, float]:
    if not len(precision) or not float(recall[-1]) > 0:
        return float("nan"), float("nan")
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    best = int(f1.argmax())
    return float(f1[best]), float(scores[best])
