# SPDX-License-Identifier: Apache-2.0
"""
From the windows of a minibatch to AP of each overlap and class, and to what raises it.

Shape letters: R windows of N images, K classes, P of them ranked, G objects, T overlaps, n
detections of this process, m of all who take part.
"""

from typing import NamedTuple

import torch

from ..match_detections import DIFFICULT, UNMATCHED, match_windows
from ..nms import Overlaps
from ..steps.pseudo_gradient import ESTIMATORS
from .box_gradient import overlap_gradient_of_errors, overlap_step_gradient
from .detection_memory import DetectionMemory
from .detection_pool import DetectionPool
from .detections import Detections
from .distributed import Group
from .error_driven_gradient import find_errors, gradient_of_errors
from .part_timer import PartTimer
from .rankings import Ranking, average_precisions
from .reinforce_gradient import reinforce_gradient
from .settings import MAPLossSettings
from .step_gradient import step_gradient
from .windows import Cells, Objects, Windows


class BoxGradient(NamedTuple):
    """
    How AP changes with the boxes.

    Args:
        by_overlap: (R, K) float64, pseudo partial derivatives by the IoU of each window's box, as
            each class, with its object.
        objects: (R, K) int64, index in the G objects of that object, UNMATCHED for none.
    """

    by_overlap: torch.Tensor
    objects: torch.Tensor


class RankedMinibatch(NamedTuple):
    """
    AP, and the direction in which it rises.

    Args:
        ap: (T, K) float64, of each overlap and class; nan for classes without an object.
        pooled_ap: (T,) float64, of all classes in one list; None where nothing asks for it.
        value: 0-d float64, what the loss is of: the mean over overlaps of mAP and of pooled AP, in
            the shares that `settings.pooled` says.
        by_score: (R, K) float64, pseudo partial derivatives of the value by the scores.
        boxes: derivatives by the boxes; None where nothing asks for them.
        ranking: of the detections that this process has ranked.
        ranked: (P,) int64, the classes that the ranking counts from 0.
        is_ranked_here: (P,) bool, False for those that another process has ranked.
        timer: of "match", "nms", "ap", "gradient" and "exchange".
    """

    ap: torch.Tensor
    pooled_ap: torch.Tensor | None
    value: torch.Tensor
    by_score: torch.Tensor
    boxes: BoxGradient | None
    ranking: Ranking
    ranked: torch.Tensor
    is_ranked_here: torch.Tensor
    timer: PartTimer


class _Candidates(NamedTuple):
    """
    Each window as each class that is ranked, class by class: P R of them.

    Args:
        detections: what takes part.
        ious: (P R,) with the object that each overlaps most.
        nearest: (P R,) int64, that object of the G, or UNMATCHED where it overlaps none.
        is_difficult: (G,) bool.
        cells: the same, window by window.
        overlaps: pairs of boxes that suppress each other, None where nothing needs them.
        shared: (n,) int64, those that other processes and the memory get.
    """

    detections: Detections
    ious: torch.Tensor
    nearest: torch.Tensor
    is_difficult: torch.Tensor
    cells: Cells
    overlaps: Overlaps | None
    shared: torch.Tensor


def rank_minibatch(
    windows: Windows,
    objects: Objects,
    settings: MAPLossSettings,
    group: Group | None = None,
    memory: DetectionMemory | None = None,
) -> RankedMinibatch:
    """
    All classes and overlaps at once; arguments as those of :func:`maploss.layers.map_loss`.

    With a `group`, the detections of all its processes are in one ranking, and each has the
    gradient by its own windows: what one process would have with the windows of all. With a
    `memory`, what that holds is in the ranking too, as constants, and the gradient is multiplied
    by the number of minibatches ranked: the windows at hand stand for those of the others.
    """
    timer = PartTimer(windows.scores.device)
    timer.start("exchange")
    num_classes = windows.scores.shape[1]
    num_gt = objects.classes.new_zeros(num_classes)
    num_gt.index_add_(0, objects.classes, (~objects.is_difficult).long())
    num_objects = len(objects.classes)
    pool = DetectionPool(group, memory, windows.scores, num_gt, num_objects, settings)
    timer.start("match")
    candidates = _match(windows, objects, pool.ranked, settings)
    timer.start("nms")
    candidates = _suppress(candidates, settings)
    timer.start("exchange")
    pooled = pool.gather(candidates.detections, candidates.shared)
    timer.start("ap")
    num_overlaps, share = len(settings.iou_threshs), settings.pooled
    ranking = Ranking.of(pooled, pool.num_gt, pool.num_objects, num_overlaps)
    ap = pool.sum_ap(average_precisions(ranking, settings.ap_type))
    value = (1 - share) * ap.nansum() / (num_overlaps * max(num_classes, 1))
    parts = [((1 - share) / max(num_classes, 1), ranking)] if share < 1 else []
    pooled_ap = None
    if share > 0:
        joint = Ranking.in_one_list(pooled, pool.num_gt, pool.num_objects, num_overlaps)
        pooled_ap = average_precisions(joint, settings.ap_type)[:, 0]
        value = value + share * pooled_ap.nan_to_num(nan=0.0).mean()
        parts.append((share, joint))
    timer.start("gradient")
    weighted = [
        pool.num_minibatches * weight * _derivatives(x, pool, candidates, settings)
        for weight, x in parts
    ]
    columns = weighted[0] if len(weighted) == 1 else weighted[0] + weighted[1]
    timer.stop()
    columns = columns.view(len(pool.ranked), len(windows.scores), columns.shape[1])
    by_class = columns.new_zeros((num_classes, *columns.shape[1:]))
    by_class.index_copy_(0, pool.ranked, columns)
    by_score, *by_overlap = by_class.permute(2, 1, 0).unbind(0)
    return RankedMinibatch(
        ap.new_full((num_overlaps, num_classes), float("nan")).index_copy_(1, pool.ranked, ap),
        pooled_ap,
        value,
        by_score,
        BoxGradient(by_overlap[0], _nearest(candidates, pool.ranked, by_score))
        if by_overlap
        else None,
        ranking,
        pool.ranked,
        pool.is_ranked_here,
        timer,
    )


def _nearest(candidates: _Candidates, ranked: torch.Tensor, by_score: torch.Tensor) -> torch.Tensor:
    """(R, K) int64, the object that each window overlaps most as each class."""
    nearest = torch.full_like(by_score.t(), UNMATCHED, dtype=torch.int64)
    return nearest.index_copy_(0, ranked, candidates.nearest.view(len(ranked), len(by_score))).t()


def _derivatives(
    ranking: Ranking, pool: DetectionPool, candidates: _Candidates, settings: MAPLossSettings
) -> torch.Tensor:
    """
    (P R, 1 or 2) float64: of the sum of AP over the lists of a ranking, the mean over overlaps, by
    score and, if asked, by overlap.
    """
    columns = []
    if settings.is_error_driven or settings.box_gradient == "error_driven":
        errors = find_errors(ranking, settings.margin)
    if settings.is_error_driven:
        columns.append(gradient_of_errors(ranking, errors, settings.transitivity))
    if settings.box_gradient == "error_driven":
        columns.append(overlap_gradient_of_errors(ranking, errors))
    if columns:
        by_place = torch.stack(columns, dim=1)
        columns = list(pool.own_gradient(ranking.by_input(by_place)).unbind(1))
    if settings.box_gradient in ESTIMATORS:
        columns.append(_overlap_steps(ranking, pool, candidates, settings))
    cells, overlaps, shared = candidates.cells, candidates.overlaps, candidates.shared
    if settings.is_made_of_steps and overlaps is not None:
        columns.insert(0, step_gradient(ranking, pool, cells, overlaps, shared, settings))
    if settings.gradient == "reinforce":
        # Last: its samples go through the pool.
        detections = candidates.detections
        columns.insert(0, reinforce_gradient(detections, cells, overlaps, pool, settings))
    return torch.stack(columns, dim=1)


def _overlap_steps(
    ranking: Ranking, pool: DetectionPool, candidates: _Candidates, settings: MAPLossSettings
) -> torch.Tensor:
    """(P R,) float64 by overlap; what NMS suppresses is on no list and has no step."""
    candidate = pool.candidates_at(ranking.order)
    movers = (ranking.detections.is_kept & (candidate >= 0)).nonzero().squeeze(1)
    nearest = candidates.nearest[candidate[movers]]
    some = (nearest != UNMATCHED).nonzero().squeeze(1)
    movers, nearest = movers[some], nearest[some]
    candidate = candidate[movers]
    objects = torch.where(candidates.is_difficult[nearest], DIFFICULT, nearest + pool.first_object)
    ious = candidates.ious[candidate].double()
    gradient = overlap_step_gradient(ranking, movers, objects, ious, settings)
    by_candidate = torch.zeros_like(candidates.ious, dtype=torch.float64)
    return by_candidate.index_copy_(0, candidate, gradient)


def _match(
    windows: Windows, objects: Objects, ranked: torch.Tensor, settings: MAPLossSettings
) -> _Candidates:
    """As if all were kept, and none shared."""
    num_windows, num_classes = windows.scores.shape
    ids, images = torch.cat([windows.image_ids, objects.image_ids]).unique(return_inverse=True)
    images, gt_images = images.split([num_windows, len(objects.classes)])
    # Objects of other classes, all of them difficult, are matched by nobody.
    index = torch.full((num_classes,), len(ranked), device=ranked.device)
    index[ranked] = torch.arange(len(ranked), device=ranked.device)
    boxes = windows.boxes if windows.boxes.dim() == 2 else windows.boxes[:, ranked]
    threshs = torch.tensor(settings.iou_threshs, dtype=boxes.dtype, device=boxes.device)
    matches = match_windows(
        boxes,
        images,
        objects.boxes,
        gt_images,
        index[objects.classes],
        len(ranked),
        len(ids),
        threshs,
    )
    cells = Cells.of(windows, images, len(ids), ranked)
    nearest, ious, levels = (x.t().flatten() for x in matches)
    found = torch.where(levels > 0, nearest, UNMATCHED)
    if len(objects.classes):
        is_difficult = (found >= 0) & objects.is_difficult[found.clamp(min=0)]
        found = torch.where(is_difficult, DIFFICULT, found)
    classes = torch.arange(len(ranked), device=ranked.device).repeat_interleave(
        num_windows, output_size=num_windows * len(ranked)
    )
    scores = cells.scores.t().flatten()
    is_kept = torch.ones_like(found, dtype=torch.bool)
    detections = Detections(scores, classes, found, levels, is_kept)
    return _Candidates(
        detections, ious, nearest, objects.is_difficult, cells, overlaps=None, shared=found[:0]
    )


def _suppress(candidates: _Candidates, settings: MAPLossSettings) -> _Candidates:
    """What NMS keeps in each class, and who is shared."""
    overlaps = _find_overlaps(candidates.cells, settings)
    is_kept = candidates.cells.suppress(overlaps, settings.nms_thresh)
    detections = candidates.detections._replace(is_kept=is_kept)
    is_shared = is_kept
    if settings.includes_suppressed:
        is_shared = is_shared | (detections.objects >= 0)
    shared = is_shared.nonzero().squeeze(1)
    return candidates._replace(detections=detections, overlaps=overlaps, shared=shared)


def _find_overlaps(cells: Cells, settings: MAPLossSettings) -> Overlaps | None:
    """
    The pairs of boxes that suppress each other; None where `batched_nms` works without them.

    On a CPU it is several times slower. Nearest steps take the pairs on any device.
    """
    if not settings.is_made_of_steps and cells.scores.device.type != "cpu":
        return None
    return cells.find_overlaps(settings.nms_thresh)
