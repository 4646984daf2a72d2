# SPDX-License-Identifier: Apache-2.0
"""
What raises AP of a ranked minibatch: pseudo partial derivatives by scores and by boxes.

Shape letters: R windows, K classes, P of them ranked, G objects, m detections of all who take part.
"""

from typing import NamedTuple, cast

import torch

from ..match_detections import DIFFICULT, UNMATCHED
from ..steps.pseudo_gradient import ESTIMATORS
from .box_gradient import overlap_gradient_of_errors, overlap_step_gradient
from .detection_pool import DetectionPool
from .error_driven_gradient import find_errors, gradient_of_errors
from .rank_minibatch import Candidates, RankedMinibatch
from .rankings import Ranking
from .reinforce_gradient import reinforce_gradient
from .settings import MAPLossSettings
from .step_gradient import step_gradient


class BoxGradient(NamedTuple):
    """
    What better boxes are worth.

    Args:
        by_overlap: (R, K) float64, 0 or more, pseudo partial derivatives by the IoU of each
            window's box, as each class, with its object.
        objects: (R, K) int64, index in the G objects of that object, UNMATCHED for none.
    """

    by_overlap: torch.Tensor
    objects: torch.Tensor


def differentiate(
    minibatch: RankedMinibatch, settings: MAPLossSettings
) -> tuple[torch.Tensor, BoxGradient | None]:
    """
    Derivatives of `minibatch.value`, which is raised by going their way.

    With processes each has those of its own windows: what one process would have with the windows
    of all. With a memory they are multiplied by the number of minibatches ranked: the windows at
    hand stand for those of the others.

    Returns:
        (R, K) float64 by the scores, and by the boxes where `settings.box_gradient` asks for it.
    """
    pool, candidates, num_classes = minibatch.pool, minibatch.candidates, minibatch.ap.shape[1]
    minibatch.timer.start("gradient")
    parts = []
    for ranking, share in (
        (minibatch.ranking, (1 - settings.pooled) / max(num_classes, 1)),
        (minibatch.joint, settings.pooled),
    ):
        if ranking is None or share == 0:
            continue
        columns = _error_driven(ranking, pool, settings)
        if settings.is_made_of_steps:
            columns.insert(0, step_gradient(ranking, pool, candidates, settings))
        if settings.box_gradient in ESTIMATORS:
            columns.append(_overlap_steps(ranking, pool, candidates, settings))
        parts.append([pool.num_minibatches * share * column for column in columns])
    columns = [sum(column[1:], start=column[0]) for column in zip(*parts, strict=True)]
    if settings.gradient == "reinforce":
        # Last: its samples go through the pool.
        by_score = reinforce_gradient(candidates, pool, settings, num_classes)
        columns.insert(0, pool.num_minibatches * by_score)
    by_candidate = torch.stack(columns)
    minibatch.timer.stop()
    shape = (len(pool.ranked), len(candidates.cells.scores))
    by_class = by_candidate.new_zeros((len(by_candidate), num_classes, shape[1]))
    by_class.index_copy_(1, pool.ranked, by_candidate.view(len(by_candidate), *shape))
    by_score, *by_overlap = by_class.transpose(1, 2).unbind(0)
    if not by_overlap:
        return by_score, None
    nearest = torch.full_like(by_class[0], UNMATCHED, dtype=torch.int64)
    nearest.index_copy_(0, pool.ranked, candidates.nearest.view(shape))
    return by_score, BoxGradient(by_overlap[0], nearest.t())


def _error_driven(
    ranking: Ranking, pool: DetectionPool, settings: MAPLossSettings
) -> list[torch.Tensor]:
    """(P R,) float64 each: by score, by overlap, or both, whatever is error-driven."""
    if not settings.needs_errors:
        return []
    errors, columns = find_errors(ranking, settings.margin), []
    if settings.is_error_driven:
        transitivity = cast(str, settings.transitivity)
        columns.append(gradient_of_errors(ranking, errors, transitivity))
    if settings.box_gradient == "error_driven":
        columns.append(overlap_gradient_of_errors(ranking, errors))
    by_place = torch.stack(columns, dim=1)
    return list(pool.own_gradient(ranking.by_input(by_place)).unbind(1))


def _overlap_steps(
    ranking: Ranking, pool: DetectionPool, candidates: Candidates, settings: MAPLossSettings
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
