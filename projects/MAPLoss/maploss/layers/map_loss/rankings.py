# SPDX-License-Identifier: Apache-2.0
"""
The rankings of all classes and overlaps at once: a class is a segment of one sorted list.

Shape letters: n detections, P classes, G objects, T overlaps.
"""

from typing import NamedTuple

import torch

from ..average_precision import recall_weights_table
from ..match_detections import DIFFICULT
from .detections import Detections


class Matched(NamedTuple):
    """
    The q detections over an object, difficult or not, whose IoU exceeds the lowest overlap.

    Their labels depend on the overlap. Of each object the best-scored kept match is a true positive
    and other kept ones are false; matches of difficult objects are neither.

    Args:
        places: (q,) int64 in the ranking, rising.
        classes: (q,) int64.
        objects: (q,) int64, or DIFFICULT.
        starts: (P + 1,) int64, where the detections of each class begin among the q.
        is_matched: (T, q) bool, at each overlap.
        is_kept: (q,) bool.
        is_tp, is_fp: (T, q) bool.
        tp_at: (T, G) int64, which of the q is the true positive of each object, q for none.
        fps_above: (T, q) float64, how many false positives of the class stand above.
    """

    places: torch.Tensor
    classes: torch.Tensor
    objects: torch.Tensor
    starts: torch.Tensor
    is_matched: torch.Tensor
    is_kept: torch.Tensor
    is_tp: torch.Tensor
    is_fp: torch.Tensor
    tp_at: torch.Tensor
    fps_above: torch.Tensor


class Ranking(NamedTuple):
    """
    Detections by class, falling score, and their order in the input.

    Args:
        detections: n, sorted; classes in [0, P).
        order: (n,) int64, place of each in the input.
        starts: (P,) int64, where the segment of each class begins.
        num_gt: (P,) int64, objects of each class without difficult ones.
        num_overlaps: T.
        is_background: (n,) bool, kept and over no object: false positives at all overlaps.
        matched: the others.
    """

    detections: Detections
    order: torch.Tensor
    starts: torch.Tensor
    num_gt: torch.Tensor
    num_overlaps: int
    is_background: torch.Tensor
    matched: Matched

    @classmethod
    def of(
        cls, detections: Detections, num_gt: torch.Tensor, num_objects: int, num_overlaps: int
    ) -> "Ranking":
        """
        Sorts and labels.

        Args:
            detections: n in any order.
            num_gt: (P,).
            num_objects: G, up to which objects are counted.
            num_overlaps: T.
        """
        by_score = torch.argsort(detections.scores, descending=True, stable=True)
        order = by_score[torch.argsort(detections.classes[by_score], stable=True)]
        ordered = detections.take(order)
        classes = torch.arange(len(num_gt), device=num_gt.device)
        starts = torch.searchsorted(ordered.classes, classes)
        is_background = ordered.is_kept & (ordered.levels == 0)
        background_before = running_sums(is_background)
        matched = _match(ordered, starts, background_before, num_objects, num_overlaps)
        return cls(ordered, order, starts, num_gt, num_overlaps, is_background, matched)

    def in_one_list(self, num_objects: int) -> "Ranking":
        """
        The detections of all classes as if they were of one. Ties are in the order of the classes,
        then of the input: with several processes as with one, whose input is class by class.
        One class has its list already.
        """
        if len(self.num_gt) == 1:
            return self
        detections = self.detections._replace(classes=torch.zeros_like(self.detections.classes))
        ranking = self.of(detections, self.num_gt.sum()[None], num_objects, self.num_overlaps)
        return ranking._replace(order=self.order[ranking.order])

    def by_input(self, values: torch.Tensor) -> torch.Tensor:
        """(n, ...) values in the order of the input."""
        return torch.empty_like(values).index_copy_(0, self.order, values)


def _match(
    ordered: Detections,
    starts: torch.Tensor,
    background_before: torch.Tensor,
    num_objects: int,
    num_overlaps: int,
) -> Matched:
    places = ordered.levels.nonzero().squeeze(1)
    some, num = ordered.take(places), len(places)
    overlaps = torch.arange(num_overlaps, device=places.device)[:, None]
    is_matched = some.levels > overlaps
    is_candidate = is_matched & some.is_kept & (some.objects >= 0)
    candidates = torch.where(is_candidate, torch.arange(num, device=places.device), num)
    # One object more for the difficult ones, of which none is a true positive.
    tp_at = torch.full((num_overlaps, num_objects + 1), num, device=places.device)
    objects = torch.where(some.objects >= 0, some.objects, num_objects).expand(num_overlaps, -1)
    tp_at = tp_at.scatter_reduce_(1, objects, candidates, "amin")[:, :-1]
    is_tp = torch.zeros((num_overlaps, num + 1), dtype=torch.bool, device=places.device)
    is_tp = is_tp.scatter_(1, tp_at, True)[:, :-1]
    is_ignored = is_matched & (some.objects == DIFFICULT)
    is_fp = some.is_kept & ~is_tp & ~is_ignored
    bounds = torch.nn.functional.pad(starts, (0, 1), value=len(ordered.scores))
    bounds = torch.searchsorted(places, bounds)
    fps_before = running_sums(is_fp)
    fps_above = background_before[places] - background_before[starts[some.classes]]
    fps_above = fps_above + fps_before[:, :-1] - fps_before[:, bounds[some.classes]]
    return Matched(
        places,
        some.classes,
        some.objects,
        bounds,
        is_matched,
        some.is_kept,
        is_tp,
        is_fp,
        tp_at,
        fps_above,
    )


def running_sums(values: torch.Tensor) -> torch.Tensor:
    """(..., n) to (..., n + 1) float64: at each place, the sum of those before it."""
    sums = values.new_zeros((*values.shape[:-1], values.shape[-1] + 1), dtype=torch.float64)
    torch.cumsum(values, -1, dtype=torch.float64, out=sums[..., 1:])
    return sums


def average_precisions(ranking: Ranking, ap_type: str) -> torch.Tensor:
    """
    AP of each overlap and class, (T, P) float64; nan for classes without an object.

    Args:
        ranking: of all classes.
        ap_type: see :func:`~maploss.layers.average_precision`.
    """
    matched, num_classes = ranking.matched, len(ranking.num_gt)
    # Objects by the places of their true positives, so class by class; the last class stands for
    # objects without one.
    tps = matched.tp_at.sort(dim=1).values
    classes = torch.nn.functional.pad(matched.classes, (0, 1), value=num_classes)[tps]
    index = torch.arange(tps.shape[1], device=tps.device) - torch.searchsorted(classes, classes)
    fps = torch.nn.functional.pad(matched.fps_above, (0, 1)).gather(1, tps)
    precision = torch.where(classes < num_classes, (index + 1) / (index + 1 + fps), 0.0)
    # The largest precision from here on, in the class: other classes after it are lowered.
    lowered = (precision - 2 * classes).flip(1)
    interpolated = precision.flip(1).gather(1, lowered.cummax(1).indices).flip(1)
    weights = recall_weights_table(ranking.num_gt, ap_type, tps.shape[1])
    weights = torch.nn.functional.pad(weights, (0, 0, 0, 1))
    ap = interpolated.new_zeros((ranking.num_overlaps, num_classes + 1))
    ap.scatter_add_(1, classes, weights[classes, index] * interpolated)
    return torch.where(ranking.num_gt > 0, ap[:, :-1], float("nan"))
