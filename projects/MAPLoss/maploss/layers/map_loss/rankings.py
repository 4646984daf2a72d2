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


class Ranking(NamedTuple):
    """
    Detections sorted by class, falling score, and their order in the input.

    Args:
        detections: n, sorted; classes in [0, P).
        order: (n,) int64, place of each in the input.
        starts: (P,) int64, where the segment of each class begins.
        num_gt: (P,) int64, objects of each class without difficult ones.
        num_objects: G.
        num_overlaps: T.
    """

    detections: Detections
    order: torch.Tensor
    starts: torch.Tensor
    num_gt: torch.Tensor
    num_objects: int
    num_overlaps: int

    @classmethod
    def of(
        cls, detections: Detections, num_gt: torch.Tensor, num_objects: int, num_overlaps: int
    ) -> "Ranking":
        """Sorts `detections`."""
        by_score = torch.argsort(detections.scores, descending=True, stable=True)
        order = by_score[torch.argsort(detections.classes[by_score], stable=True)]
        ordered = detections.take(order)
        classes = torch.arange(len(num_gt), device=num_gt.device)
        starts = torch.searchsorted(ordered.classes, classes)
        return cls(ordered, order, starts, num_gt, num_objects, num_overlaps)

    def by_input(self, values: torch.Tensor) -> torch.Tensor:
        """(n,) values in the order of the input."""
        return torch.empty_like(values).index_copy_(0, self.order, values)


class Labels(NamedTuple):
    """
    Which kept detections are right at each overlap: of each object the best-scored match.

    A match of a difficult object is neither a true nor a false positive.

    Args:
        is_tp, is_fp: (T, n) bool.
        tp_at: (T, G) int64, place of each object's true positive, n for none.
    """

    is_tp: torch.Tensor
    is_fp: torch.Tensor
    tp_at: torch.Tensor


class MatchedDetections(NamedTuple):
    """
    The q detections that are matched to an object at the lowest overlap.

    Args:
        places: (q,) int64 in the ranking. objects: (q,) int64.
        is_matched: (T, q) bool. is_kept: (q,) bool.
    """

    places: torch.Tensor
    objects: torch.Tensor
    is_matched: torch.Tensor
    is_kept: torch.Tensor

    @classmethod
    def of(cls, ranking: Ranking) -> "MatchedDetections":
        """Of a ranking."""
        detections = ranking.detections
        places = (detections.objects >= 0).nonzero().squeeze(1)
        overlaps = torch.arange(ranking.num_overlaps, device=places.device)
        return cls(
            places,
            detections.objects[places],
            detections.levels[places] > overlaps[:, None],
            detections.is_kept[places],
        )


def label_detections(ranking: Ranking, matched: MatchedDetections) -> Labels:
    """Labels of all overlaps."""
    detections = ranking.detections
    num, shape = len(detections.scores), (ranking.num_overlaps, -1)
    tp_at = torch.full(
        (ranking.num_overlaps, ranking.num_objects), num, device=matched.places.device
    )
    candidates = torch.where(matched.is_matched & matched.is_kept, matched.places, num)
    tp_at.scatter_reduce_(1, matched.objects.expand(shape), candidates, "amin")
    overlaps = torch.arange(ranking.num_overlaps, device=matched.places.device)[:, None]
    is_difficult = detections.objects == DIFFICULT
    is_ignored = is_difficult & (detections.levels > overlaps)
    is_tp = torch.zeros((len(tp_at), num + 1), dtype=torch.bool, device=tp_at.device)
    is_tp = is_tp.scatter_(1, tp_at, True)[:, :num]
    return Labels(is_tp, (detections.is_kept & ~is_ignored) ^ is_tp, tp_at)


def running_sums(values: torch.Tensor) -> torch.Tensor:
    """(T, n) to (T, n + 1) float64: at each place, the sum of those before it."""
    sums = values.new_zeros((len(values), values.shape[1] + 1), dtype=torch.float64)
    torch.cumsum(values, 1, dtype=torch.float64, out=sums[:, 1:])
    return sums


def average_precisions(
    ranking: Ranking, labels: Labels, fps_before: torch.Tensor, ap_type: str
) -> torch.Tensor:
    """
    AP of each overlap and class, (T, P) float64; nan for classes without an object.

    Args:
        ranking, labels: of the same detections.
        fps_before: (T, n + 1), running sums of the false positives.
        ap_type: see :func:`~maploss.layers.average_precision`.
    """
    num_overlaps, num_classes = ranking.num_overlaps, len(ranking.num_gt)
    ap = fps_before.new_zeros((num_overlaps, num_classes + 1))
    if ranking.num_objects and len(ranking.order):
        places = labels.tp_at.sort(dim=1).values
        # The last class stands for objects without a true positive.
        classes = torch.nn.functional.pad(ranking.detections.classes, (0, 1), value=num_classes)
        classes = classes[places]
        starts = torch.nn.functional.pad(ranking.starts, (0, 1))[classes]
        # Columns go by class, so that a class's true positives are neighbours.
        index = torch.arange(1, places.shape[1] + 1, device=places.device)
        index = index - torch.searchsorted(classes, classes)
        fps = fps_before.gather(1, places) - fps_before.gather(1, starts)
        # A class without detections would be one without false positives.
        precision = torch.where(classes < num_classes, index / (index + fps), 0.0)
        # Of each class by itself: what comes after it is smaller.
        offset = 2.0 * (num_classes - classes)
        interpolated = (precision + offset).flip(1).cummax(1).values.flip(1) - offset
        weights = recall_weights_table(ranking.num_gt, ap_type, places.shape[1])
        weights = torch.nn.functional.pad(weights, (0, 0, 0, 1))
        ap.scatter_add_(1, classes, weights[classes, index - 1] * interpolated)
    return torch.where(ranking.num_gt > 0, ap[:, :-1], float("nan"))
