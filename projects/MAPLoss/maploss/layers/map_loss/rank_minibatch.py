# SPDX-License-Identifier: Apache-2.0
"""
From the windows of a minibatch to AP of each overlap and class, and to what raises it.

Shape letters: R windows of N images, K classes, P of them ranked, G objects, T overlaps, n
detections of this process, m of all who take part.
"""

from typing import NamedTuple

import torch

from ..match_detections import DIFFICULT, match_windows
from ..nms import Overlaps, keep_by_batched_nms, keep_by_rounds
from .detection_memory import DetectionMemory
from .detection_pool import DetectionPool
from .detections import Detections
from .distributed import Group
from .error_driven_gradient import ranked_error_driven_gradient
from .part_timer import PartTimer
from .rankings import Ranking, average_precisions
from .settings import MAPLossSettings
from .step_gradient import step_gradient
from .windows import Cells, Objects, Windows


class RankedMinibatch(NamedTuple):
    """
    AP, and the direction in which it rises.

    Args:
        ap: (T, K) float64, of each overlap and class; nan for classes without an object.
        ppd: (R, K) float64, pseudo partial derivatives of each class's AP, the mean over overlaps.
        ranking: of the detections that this process has ranked.
        ranked: (P,) int64, the classes that the ranking counts from 0.
        is_ranked_here: (P,) bool, False for those that another process has ranked.
        timer: of "match", "nms", "ap", "gradient" and "exchange".
    """

    ap: torch.Tensor
    ppd: torch.Tensor
    ranking: Ranking
    ranked: torch.Tensor
    is_ranked_here: torch.Tensor
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
    candidates, cells = _candidates(windows, objects, pool.ranked, settings)
    timer.start("nms")
    overlaps = _find_overlaps(cells, settings)
    candidates = candidates._replace(is_kept=_suppress(cells, overlaps, settings.nms_thresh))
    timer.start("exchange")
    shared_mask = candidates.is_kept
    if settings.includes_suppressed:
        shared_mask = shared_mask | (candidates.objects >= 0)
    shared = shared_mask.nonzero().squeeze(1)
    pooled = pool.gather(candidates, shared)
    timer.start("ap")
    ranking = Ranking.of(pooled, pool.num_gt, pool.num_objects, len(settings.iou_threshs))
    ap = pool.sum_ap(average_precisions(ranking, settings.ap_type))
    timer.start("gradient")
    if settings.is_error_driven or overlaps is None:
        gradient = ranked_error_driven_gradient(ranking, settings.margin, settings.transitivity)
        ppd = torch.zeros_like(candidates.scores, dtype=torch.float64)
        ppd[shared] = pool.own_gradient(ranking.by_input(gradient))
    else:
        ppd = step_gradient(ranking, pool, cells, overlaps, shared, settings)
    timer.stop()
    ppd = pool.num_minibatches * ppd.view(len(pool.ranked), len(windows.scores)).t()
    return RankedMinibatch(
        ap.new_full((len(ap), num_classes), float("nan")).index_copy_(1, pool.ranked, ap),
        ppd.new_zeros(windows.scores.shape).index_copy_(1, pool.ranked, ppd),
        ranking,
        pool.ranked,
        pool.is_ranked_here,
        timer,
    )


def _candidates(
    windows: Windows, objects: Objects, ranked: torch.Tensor, settings: MAPLossSettings
) -> tuple[Detections, Cells]:
    """Each window as each class that is ranked, class by class, (P R,), as if all were kept."""
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
    found, levels = (x.t().flatten() for x in matches)
    if len(objects.classes):
        is_difficult = (found >= 0) & objects.is_difficult[found.clamp(min=0)]
        found = torch.where(is_difficult, DIFFICULT, found)
    classes = torch.arange(len(ranked), device=ranked.device).repeat_interleave(
        num_windows, output_size=num_windows * len(ranked)
    )
    scores = cells.scores.t().flatten()
    return Detections(scores, classes, found, levels, torch.ones_like(found).bool()), cells


def _find_overlaps(cells: Cells, settings: MAPLossSettings) -> Overlaps | None:
    """
    The pairs of boxes that suppress each other; None where `batched_nms` works without them.

    On a CPU it is several times slower. Nearest steps take the pairs on any device.
    """
    if settings.is_error_driven and cells.scores.device.type != "cpu":
        return None
    return cells.find_overlaps(settings.nms_thresh)


def _suppress(cells: Cells, overlaps: Overlaps | None, nms_thresh: float) -> torch.Tensor:
    """(P R,) bool, which windows NMS keeps in each class, class by class."""
    if overlaps is None:
        scores = cells.scores.flatten()
        is_kept = keep_by_batched_nms(cells.boxes_of_cells, scores, cells.groups, nms_thresh)
    else:
        is_kept = keep_by_rounds(overlaps, cells.scores_of_boxes)
    return is_kept.view(cells.scores.shape).t().flatten()
