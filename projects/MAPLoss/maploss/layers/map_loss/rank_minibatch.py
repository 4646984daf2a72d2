# SPDX-License-Identifier: Apache-2.0
"""
From the windows of a minibatch to AP of each overlap and class.

Shape letters: R windows of N images, K classes, P of them ranked, G objects, T overlaps, n
detections of this process, m of all who take part.
"""

from typing import NamedTuple

import torch

from ..match_detections import DIFFICULT, UNMATCHED, match_windows
from ..nms import Overlaps
from .detection_memory import DetectionMemory
from .detection_pool import DetectionPool
from .detections import Detections
from .distributed import Group
from .part_timer import PartTimer
from .rankings import Ranking, average_precisions
from .settings import MAPLossSettings
from .windows import Cells, Objects, Windows


class Candidates(NamedTuple):
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


class RankedMinibatch(NamedTuple):
    """
    AP, and all that it follows from.

    Args:
        ap: (T, K) float64, of each overlap and class; nan for classes without an object.
        pooled_ap: (T,) float64, of all classes in one list; None where nothing asks for it.
        value: 0-d float64, what the loss is of: the mean over overlaps of mAP and of pooled AP, in
            the shares that `settings.pooled` says.
        ranking: of the detections that this process has ranked, class by class.
        joint: the same in one list; None where nothing asks for it.
        candidates: the windows of this process.
        pool: who takes part.
        timer: of "match", "nms", "ap", "gradient" and "exchange".
    """

    ap: torch.Tensor
    pooled_ap: torch.Tensor | None
    value: torch.Tensor
    ranking: Ranking
    joint: Ranking | None
    candidates: Candidates
    pool: DetectionPool
    timer: PartTimer


def rank_minibatch(
    windows: Windows,
    objects: Objects,
    settings: MAPLossSettings,
    group: Group | None = None,
    memory: DetectionMemory | None = None,
) -> RankedMinibatch:
    """
    All classes and overlaps at once; arguments as those of :func:`maploss.layers.map_loss`.

    With a `group`, the detections of all its processes are in one ranking; with a `memory`, what
    that holds too.
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
    joint = pooled_ap = None
    if share > 0:
        joint = ranking.in_one_list(pool.num_objects)
        pooled_ap = ap if joint is ranking else average_precisions(joint, settings.ap_type)
        pooled_ap = pooled_ap[:, 0]
        value = value + share * pooled_ap.nan_to_num(nan=0.0).mean()
    ap = ap.new_full((num_overlaps, num_classes), float("nan")).index_copy_(1, pool.ranked, ap)
    timer.stop()
    return RankedMinibatch(ap, pooled_ap, value, ranking, joint, candidates, pool, timer)


def _match(
    windows: Windows, objects: Objects, ranked: torch.Tensor, settings: MAPLossSettings
) -> Candidates:
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
    return Candidates(
        detections, ious, nearest, objects.is_difficult, cells, overlaps=None, shared=found[:0]
    )


def _suppress(candidates: Candidates, settings: MAPLossSettings) -> Candidates:
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
