# SPDX-License-Identifier: Apache-2.0
"""
The gradient from the nearest steps of AP after NMS, of all classes and overlaps.

Shape letters: R windows, P classes, T overlaps, m detections of all who take part.
"""

from typing import cast

import torch

from ..match_detections import UNMATCHED
from ..nms import best_suppressors, oriented
from ..steps.nms_ap_steps import ranked_nms_ap_steps
from ..steps.pseudo_gradient import ranked_pseudo_gradient
from ..steps.ranked_windows import RankedWindows
from .detection_pool import DetectionPool
from .rank_minibatch import Candidates
from .rankings import Ranking
from .settings import MAPLossSettings


def step_gradient(
    ranking: Ranking, pool: DetectionPool, candidates: Candidates, settings: MAPLossSettings
) -> torch.Tensor:
    """
    (P R,) float64, what raises AP in each window as each class, class by class; the mean over
    overlaps.

    With a group each process makes the steps of its own windows, since only it knows what NMS
    suppressed there, and sends the others what they push the detections of these. What is
    remembered has steps too, made by each process for its own windows.

    Args:
        ranking: of all windows, and the detections of others.
        pool: where they come from.
        candidates: the windows of this process.
        settings: of the loss.
    """
    windows = rank_windows(ranking, pool, candidates)
    steps = ranked_nms_ap_steps(windows, settings.ap_type, cast(str, settings.transitivity))
    scores = ranking.detections.scores.double()
    estimator = settings.gradient, settings.min_delta, settings.pairing
    args = (steps, windows.classes, scores, *estimator)
    if pool.group is None:
        return ranking.by_input(ranked_pseudo_gradient(*args))[pool.own]
    at = ranking.order
    is_own = (at >= pool.own.start) & (at < pool.own.stop)
    gradient = ranking.by_input(ranked_pseudo_gradient(*args, is_moving=is_own))
    own = gradient[pool.own].index_add_(0, candidates.shared, pool.gradient_of_others(gradient))
    is_remembered = at >= pool.remembered.start
    earlier = ranked_pseudo_gradient(*args, is_moving=is_remembered)
    return own + ranking.by_input(earlier)[pool.own]


def rank_windows(ranking: Ranking, pool: DetectionPool, candidates: Candidates) -> RankedWindows:
    """The windows by place in the ranking; the others' detections are kept and overlap nothing."""
    cells, overlaps = candidates.cells, candidates.overlaps
    if overlaps is None:
        raise RuntimeError("overlaps: expected pairs of boxes for nearest steps, got None")
    detections = ranking.detections
    place = torch.empty_like(ranking.order)
    place[ranking.order] = torch.arange(len(place), device=place.device)
    # Of each cell, window by window; in the ranking's input they stand class by class.
    place = place[pool.own].view(cells.scores.shape[::-1]).t().flatten()
    higher, lower = (place[x.flatten()] for x in oriented(overlaps, cells.scores_of_boxes))
    is_kept = detections.is_kept
    touching = (is_kept[higher] | is_kept[lower]).nonzero().squeeze(1)
    higher, lower = higher[touching], lower[touching]
    # The others are in an image that no window is in.
    image_ids = torch.full_like(detections.classes, cells.num_images)
    boxes = cells.boxes.new_zeros((len(ranking.order), 4), dtype=torch.float32)
    of_overlaps = torch.arange(ranking.num_overlaps, device=place.device)[:, None]
    return RankedWindows(
        classes=detections.classes,
        image_ids=image_ids.index_copy_(0, place, cells.images_of_cells),
        boxes=boxes.index_copy_(0, place, cells.boxes_of_cells.float()),
        is_kept=is_kept,
        suppressor=best_suppressors(higher, lower, is_kept),
        higher=higher,
        lower=lower,
        limit=overlaps.limit,
        gt=torch.where(detections.levels > of_overlaps, detections.objects, UNMATCHED),
        num_gt=ranking.num_gt,
    )
