# SPDX-License-Identifier: Apache-2.0
"""
AP of each class of a minibatch, and what raises it.

Shape letters: R windows of all images of the minibatch, K classes, G objects, E entries of the
ranking of one class (the windows, and detections of others where these take part).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..average_precision import average_precision
from ..match_detections import match_detections
from ..nms import NMSRecord, Overlaps, find_overlaps, nms_record
from ..steps.ap_steps import Steps
from ..steps.nms_ap_steps import nms_ap_steps
from ..steps.pseudo_gradient import pseudo_gradient
from .detection_memory import DetectionMemory
from .detection_pool import Entries, RankingContext
from .distributed import Group
from .error_driven_gradient import error_driven_gradient
from .part_timer import PartTimer
from .settings import MAPLossSettings


class Windows(NamedTuple):
    """scores: (K, R). boxes: (R, 4) or (R, K, 4) XYXY in pixels. image_ids: (R,) int64."""

    scores: torch.Tensor
    boxes: torch.Tensor
    image_ids: torch.Tensor


class Objects(NamedTuple):
    """boxes: (G, 4). classes, image_ids: (G,) int64. is_difficult: (G,) bool."""

    boxes: torch.Tensor
    classes: torch.Tensor
    image_ids: torch.Tensor
    is_difficult: torch.Tensor


class ClassCurve(NamedTuple):
    """The detections that the AP of a class is of. scores, matched_gt: (D,). num_gt: objects."""

    scores: torch.Tensor
    matched_gt: torch.Tensor
    num_gt: int


class Rankings(NamedTuple):
    """
    ap_per_class: (K,) float64, nan without objects. ppd: (R, K), pseudo partial derivatives of the
    AP of each class. curves: by class. seconds: of each part of the work.
    """

    ap_per_class: torch.Tensor
    ppd: torch.Tensor
    curves: dict[int, ClassCurve]
    seconds: dict[str, float]


class _Listed(NamedTuple):
    """The windows of one class. boxes: (R, 4). matched_gt: (R,), of all G objects."""

    boxes: torch.Tensor
    matched_gt: torch.Tensor
    record: NMSRecord

    def is_told(self, tells_hidden: bool) -> torch.Tensor:
        """(R,) bool, which windows others learn of."""
        is_kept = self.record.is_kept
        return is_kept | (self.matched_gt >= 0) if tells_hidden else is_kept

    def told(
        self, scores: torch.Tensor, tells_hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What others learn of them: scores, matched_gt, is_kept."""
        chosen = self.is_told(tells_hidden)
        return scores[chosen], self.matched_gt[chosen], self.record.is_kept[chosen]


def rank_classes(
    windows: Windows,
    objects: Objects,
    settings: MAPLossSettings,
    group: Group | None = None,
    memory: DetectionMemory | None = None,
) -> Rankings:
    """
    AP and its pseudo-gradient for all classes with an object.

    With a `group`, the detections of all its processes are in one ranking, and each has the
    gradient by its own windows: what one process would have with the windows of all. With a
    `memory`, what that holds is in the ranking too, as constants, and the gradient is multiplied
    by the number of minibatches ranked: the windows at hand stand for those of the others.
    """
    timer = PartTimer(windows.scores.device)
    timer.start("exchange")
    num_classes = len(windows.scores)
    if num_classes == 0:  # nothing to rank, and nobody who takes part has more
        group = memory = None
    num_gt = torch.bincount(objects.classes[~objects.is_difficult], minlength=num_classes)
    context = RankingContext(group, memory, windows.scores, num_gt, len(objects.classes))
    timer.start("nms")
    overlaps = None
    if windows.boxes.dim() == 2:
        overlaps = find_overlaps(windows.boxes, windows.image_ids, settings.nms_thresh)
    listed = {c: _list(c, windows, objects, settings, overlaps, timer) for c in context.listed}
    timer.start("exchange")
    hides = memory is not None and settings.includes_suppressed
    if not context.is_alone:
        context.meet({c: x.told(windows.scores[c], hides) for c, x in listed.items()})
    ap_per_class = torch.full((num_classes,), float("nan"), dtype=torch.float64)
    ppd = torch.zeros_like(windows.scores)
    curves, pushes = {}, {}
    num_gt_of_all = context.num_gt.tolist()
    for c, own in listed.items():
        if not num_gt_of_all[c]:
            continue
        timer.start("ap")
        entries = context.entries(c, windows.scores[c], own.matched_gt, own.record.is_kept)
        kept = entries.is_kept
        curve = ClassCurve(entries.scores[kept], entries.matched_gt[kept], num_gt_of_all[c])
        curves[c] = curve
        ap_per_class[c] = average_precision(
            curve.scores.double(), curve.matched_gt, curve.num_gt, settings.ap_type
        )
        timer.start("gradient")
        gradient_of = _gradient_by_movers(
            entries, own, windows.image_ids, curve.num_gt, settings, overlaps
        )
        gradient = gradient_of(entries.own)
        pushes[c] = (entries, gradient)
        ppd[c] = gradient[entries.own]
        if context.num_minibatches > 1:
            ppd[c] += gradient_of(entries.remembered)[entries.own]
    timer.start("exchange")
    for c, received in context.take_back(pushes).items():
        ppd[c, listed[c].is_told(hides)] += received
    ppd *= context.num_minibatches
    return Rankings(ap_per_class.to(ppd.device), ppd.t(), curves, timer.seconds())


def _list(
    c: int,
    windows: Windows,
    objects: Objects,
    settings: MAPLossSettings,
    overlaps: Overlaps | None,
    timer: PartTimer,
) -> _Listed:
    boxes = windows.boxes if windows.boxes.dim() == 2 else windows.boxes[:, c]
    timer.start("match")
    matched_gt = _match(c, boxes, windows.image_ids, objects, settings.iou_threshs[0])
    timer.start("nms")
    scores, image_ids = windows.scores[c], windows.image_ids
    record = nms_record(boxes, scores, image_ids, settings.nms_thresh, overlaps)
    return _Listed(boxes, matched_gt, record)


def _match(
    c: int, boxes: torch.Tensor, image_ids: torch.Tensor, objects: Objects, iou_thresh: float
) -> torch.Tensor:
    """(R,) the object of class c, of all G, that each window matches; -1 none, -2 difficult."""
    inds = (objects.classes == c).nonzero().squeeze(1)
    matched = match_detections(
        boxes,
        image_ids,
        objects.boxes[inds],
        objects.image_ids[inds],
        objects.is_difficult[inds],
        iou_thresh,
    )
    found = matched >= 0
    matched[found] = inds[matched[found]]
    return matched


def _gradient_by_movers(
    entries: Entries,
    own: _Listed,
    image_ids: torch.Tensor,
    num_gt: int,
    settings: MAPLossSettings,
    overlaps: Overlaps | None,
) -> Callable[[slice], torch.Tensor]:
    """From a part of the entries to (E,): what their moves, and no others', say that raises AP."""
    if settings.is_error_driven:
        return lambda movers: error_driven_gradient(
            entries.scores,
            entries.matched_gt,
            num_gt,
            entries.is_kept,
            margin=settings.margin,
            transitivity=settings.transitivity,
            is_moving=entries.is_in(movers),
        )
    steps = _steps(entries, own, image_ids, num_gt, settings, overlaps)
    return lambda movers: pseudo_gradient(
        steps.only(entries.is_in(movers)),
        entries.scores,
        settings.gradient,
        settings.min_delta,
        settings.pairing,
    )


def _steps(
    entries: Entries,
    own: _Listed,
    image_ids: torch.Tensor,
    num_gt: int,
    settings: MAPLossSettings,
    overlaps: Overlaps | None,
) -> Steps:
    """(E,) steps; those of detections that are not ours as if they had hidden nothing."""
    boxes = own.boxes
    record: NMSRecord | None = own.record
    if len(entries.scores) > len(image_ids):
        # The others overlap nothing: they are what NMS has kept, in other images.
        if overlaps is None:
            overlaps = find_overlaps(boxes, image_ids, settings.nms_thresh)
        first = entries.own.start
        all_boxes = boxes.new_zeros((len(entries.scores), 4))
        all_boxes[entries.own] = boxes
        elsewhere = int(image_ids.min()) - 1 if len(image_ids) else 0
        all_ids = image_ids.new_full((len(entries.scores),), elsewhere)
        all_ids[entries.own] = image_ids
        overlaps = overlaps._replace(
            boxes=all_boxes.float(), first=overlaps.first + first, second=overlaps.second + first
        )
        boxes, image_ids, record = all_boxes, all_ids, None
    return nms_ap_steps(
        entries.scores,
        boxes,
        image_ids,
        entries.matched_gt,
        num_gt,
        nms_thresh=settings.nms_thresh,
        ap_type=settings.ap_type,
        transitivity=settings.transitivity,
        overlaps=overlaps,
        record=record,
    )
