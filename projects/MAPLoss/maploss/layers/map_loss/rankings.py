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
    The q detections that are matched to an object at the lowest overlap.

    Args:
        places: (q,) int64 in the ranking.
        objects: (q,) int64.
        is_matched: (T, q) bool, at each overlap.
        is_kept: (q,) bool.
    """

    places: torch.Tensor
    objects: torch.Tensor
    is_matched: torch.Tensor
    is_kept: torch.Tensor


class Labels(NamedTuple):
    """
    Which kept detections are right at each overlap: of each object the best-scored match.

    A match of a difficult object is neither a true nor a false positive.

    Args:
        is_tp, is_fp: (T, n) bool.
        tp_at: (T, G) int64, place of each object's true positive, n for none.
        fps_before: (T, n + 1) float64, false positives before each place.
    """

    is_tp: torch.Tensor
    is_fp: torch.Tensor
    tp_at: torch.Tensor
    fps_before: torch.Tensor


class Ranking(NamedTuple):
    """
    Detections by class, falling score, and their order in the input.

    Args:
        detections: n, sorted; classes in [0, P).
        order: (n,) int64, place of each in the input.
        starts: (P,) int64, where the segment of each class begins.
        num_gt: (P,) int64, objects of each class without difficult ones.
        num_overlaps: T.
        matched: those over an object.
        labels: of all.
    """

    detections: Detections
    order: torch.Tensor
    starts: torch.Tensor
    num_gt: torch.Tensor
    num_overlaps: int
    matched: Matched
    labels: Labels

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
        matched = _match(ordered, num_overlaps)
        labels = _label(ordered, matched, num_objects)
        return cls(ordered, order, starts, num_gt, num_overlaps, matched, labels)

    def by_input(self, values: torch.Tensor) -> torch.Tensor:
        """(n,) values in the order of the input."""
        return torch.empty_like(values).index_copy_(0, self.order, values)


def _match(ordered: Detections, num_overlaps: int) -> Matched:
    places = (ordered.objects >= 0).nonzero().squeeze(1)
    overlaps = torch.arange(num_overlaps, device=places.device)[:, None]
    is_matched = ordered.levels[places] > overlaps
    return Matched(places, ordered.objects[places], is_matched, ordered.is_kept[places])


def _label(ordered: Detections, matched: Matched, num_objects: int) -> Labels:
    num, num_overlaps, device = len(ordered.scores), len(matched.is_matched), ordered.scores.device
    tp_at = torch.full((num_overlaps, num_objects), num, device=device)
    candidates = torch.where(matched.is_matched & matched.is_kept, matched.places, num)
    tp_at.scatter_reduce_(1, matched.objects.expand(num_overlaps, -1), candidates, "amin")
    is_tp = torch.zeros((num_overlaps, num + 1), dtype=torch.bool, device=device)
    is_tp = is_tp.scatter_(1, tp_at, True)[:, :num]
    overlaps = torch.arange(num_overlaps, device=device)[:, None]
    is_ignored = (ordered.objects == DIFFICULT) & (ordered.levels > overlaps)
    is_fp = (ordered.is_kept & ~is_ignored) ^ is_tp
    return Labels(is_tp, is_fp, tp_at, running_sums(is_fp))


def running_sums(values: torch.Tensor) -> torch.Tensor:
    """(T, n) to (T, n + 1) float64: at each place, the sum of those before it."""
    sums = values.new_zeros((len(values), values.shape[1] + 1), dtype=torch.float64)
    torch.cumsum(values, 1, dtype=torch.float64, out=sums[:, 1:])
    return sums


def average_precisions(ranking: Ranking, ap_type: str) -> torch.Tensor:
    """
    AP of each overlap and class, (T, P) float64; nan for classes without an object.

    Args:
        ranking: of all classes.
        ap_type: see :func:`~maploss.layers.average_precision`.
    """
    fps_before, num_classes = ranking.labels.fps_before, len(ranking.num_gt)
    ap = fps_before.new_zeros((ranking.num_overlaps, num_classes + 1))
    places = ranking.labels.tp_at.sort(dim=1).values
    # The last class stands for objects without a true positive.
    classes = torch.nn.functional.pad(ranking.detections.classes, (0, 1), value=num_classes)[places]
    starts = torch.nn.functional.pad(ranking.starts, (0, 1))[classes]
    # A class's true positives are neighbours: counted from 0.
    index = torch.arange(places.shape[1], device=places.device)
    index = index - torch.searchsorted(classes, classes)
    fps = fps_before.gather(1, places) - fps_before.gather(1, starts)
    precision = torch.where(classes < num_classes, (index + 1) / (index + 1 + fps), 0.0)
    # The largest precision from here on, in the class: other classes after it are lowered.
    lowered = (precision - 2 * classes).flip(1)
    interpolated = precision.flip(1).gather(1, lowered.cummax(1).indices).flip(1)
    weights = recall_weights_table(ranking.num_gt, ap_type, places.shape[1])
    weights = torch.nn.functional.pad(weights, (0, 0, 0, 1))
    ap.scatter_add_(1, classes, weights[classes, index] * interpolated)
    return torch.where(ranking.num_gt > 0, ap[:, :-1], float("nan"))
