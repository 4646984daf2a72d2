# SPDX-License-Identifier: Apache-2.0
"""
Nearest steps of average precision in the score of each detection.

Shape letters: D detections of one class, D' of them not ignored, M true positives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..average_precision import AP_TYPES, check_detections, rank_detections, recall_weights
from ..checks import check_choice
from .precision_envelope import Move, PrecisionEnvelope

# Values that differ by less are equal: sums of the same terms in another order.
VALUE_TOLERANCE = 1e-12
# Numbers in the largest temporary matrix.
_CHUNK = 1 << 21


class Steps(NamedTuple):
    """
    The nearest steps of a piecewise-constant f above and below each coordinate, all else held.

    value: 0-d, f now. up_at, down_at: (D,) where the coordinate meets the step: the score of the
    detection that it passes there. up_value, down_value: (D,) f just beyond. nan where there is no
    step. up_partner, down_partner: (D,) int64, the detection that is passed, -1 for none.
    Values are float64, because their differences are small; places have the scores' dtype.
    """

    value: torch.Tensor
    up_at: torch.Tensor
    up_value: torch.Tensor
    down_at: torch.Tensor
    down_value: torch.Tensor
    up_partner: torch.Tensor
    down_partner: torch.Tensor

    @classmethod
    def none(cls, value: torch.Tensor, like: torch.Tensor) -> "Steps":
        """No step anywhere; shape, device and the places' dtype from `like` (D,)."""

        def filled(fill: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full_like(like, fill, dtype=dtype)

        nan = float("nan")
        places = [filled(nan, like.dtype) for _ in range(2)]
        values = [filled(nan, torch.float64) for _ in range(2)]
        partners = [filled(-1, torch.int64) for _ in range(2)]
        return cls(value.double(), places[0], values[0], places[1], values[1], *partners)

    def only(self, is_moving: torch.Tensor) -> "Steps":
        """Without the steps of the others: is_moving is (D,) bool."""
        nan = float("nan")
        is_fixed = ~is_moving
        columns = [x.masked_fill(is_fixed, nan if x.is_floating_point() else -1) for x in self[1:]]
        return Steps(self.value, *columns)

    def put(
        self,
        is_up: bool,
        who: torch.Tensor,
        partner: torch.Tensor,
        value: torch.Tensor,
        scores: torch.Tensor,
    ) -> None:
        """Writes in place: detections `who` (B,) have their step where they pass `partner` (B,)."""
        at = self.up_at if is_up else self.down_at
        at[who] = scores[partner]
        (self.up_value if is_up else self.down_value)[who] = value
        (self.up_partner if is_up else self.down_partner)[who] = partner


class RankedSteps(NamedTuple):
    """
    AP (0-d) and the nearest steps of ranked detections, (D',) each.

    *_value: float64, nan for no step. *_partner: int64, place of the detection passed, or -1.
    """

    value: torch.Tensor
    up_value: torch.Tensor
    up_partner: torch.Tensor
    down_value: torch.Tensor
    down_partner: torch.Tensor


def first_steps(gt: torch.Tensor, is_tp: torch.Tensor, weights: torch.Tensor) -> RankedSteps:
    """
    Nearest steps of AP of a ranked list.

    What a detection meets depends only on its index among the true positives, if it is one, or on
    how many are above it: 2 M + 1 moves answer for all. A duplicate (a lower match of an object
    that has a true positive) becomes that true positive when it rises past it, and the true
    positive becomes the duplicate when it falls past; neither crossing changes AP.

    Args:
        gt: (D',) int64, object of each ranked detection, -1 for none. is_tp: (D',) bool.
        weights: (M,) recall weights.
    """
    tp_rank = is_tp.nonzero().squeeze(1)
    fp_rank = (~is_tp).nonzero().squeeze(1)
    num_tp, num_fp = len(tp_rank), len(fp_rank)
    tps_above = is_tp.cumsum(0) - is_tp.long()
    if num_tp == 0:
        nan = torch.full(gt.shape, float("nan"), dtype=torch.float64, device=gt.device)
        no_partner = torch.full_like(gt, -1)
        return RankedSteps(nan.new_zeros(()), nan, no_partner, nan.clone(), no_partner.clone())
    fps = tp_rank - torch.arange(num_tp, device=gt.device)

    tps = torch.arange(1, num_tp + 1, device=gt.device)
    gaps = torch.arange(num_tp + 1, device=gt.device)
    tp_moves, gap_moves = [], []
    for some in tps.split(max(1, _CHUNK // num_tp)):
        curves = PrecisionEnvelope(fps.expand(len(some), -1), num_tp, weights)
        tp_moves.append((curves.raise_tp(some), curves.lower_tp(some, num_fp)))
    for some in gaps.split(max(1, _CHUNK // num_tp)):
        curves = PrecisionEnvelope(fps.expand(len(some), -1), num_tp, weights)
        gap_moves.append((curves.raise_fp(some), curves.lower_fp(some)))
    tp_up, tp_down = (_as_ranks(moves, fp_rank, first=0) for moves in zip(*tp_moves, strict=True))
    fp_up, fp_down = (_as_ranks(moves, tp_rank, first=1) for moves in zip(*gap_moves, strict=True))

    # The true positive (from 0) and the best duplicate's rank of each detection's object.
    own_tp, best_duplicate = _own_tp_and_duplicate(gt, is_tp, tp_rank)
    is_duplicate = ~is_tp & (gt >= 0)
    # An FP step counts for a duplicate only if it comes before its own true positive.
    meets_own_tp = is_duplicate & (fp_up[1][tps_above] <= tp_rank[own_tp])
    up = _choose(is_tp | meets_own_tp, own_tp, tp_up, tps_above, fp_up)
    has_duplicate = is_tp & (best_duplicate < len(gt))
    step_first = (tp_down[1][own_tp] >= 0) & (tp_down[1][own_tp] < best_duplicate)
    falls_as_tp = is_tp & (~has_duplicate | step_first)
    gap_of_duplicate = tps_above[best_duplicate.clamp(max=len(gt) - 1)]
    gap = torch.where(has_duplicate, gap_of_duplicate, tps_above)
    down = _choose(falls_as_tp, own_tp, tp_down, gap, fp_down)
    # All rows of all curves are the same list.
    return RankedSteps(curves.ap[0], *up, *down)


def _as_ranks(
    moves: Sequence[Move], ranks: torch.Tensor, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and rank of the passed detection of all; nan and -1 where AP never changes."""
    move = Move(*(torch.cat(parts) for parts in zip(*moves, strict=True)))
    value = torch.where(move.found, move.value, float("nan"))
    if not len(ranks):
        return value, torch.full_like(move.passed, -1)
    passed = ranks[(move.passed - first).clamp(0, len(ranks) - 1)]
    return value, torch.where(move.found, passed, -1)


def _choose(
    is_first: torch.Tensor,
    first_row: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    second_row: torch.Tensor,
    second: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    value = torch.where(is_first, first[0][first_row], second[0][second_row])
    return value, torch.where(is_first, first[1][first_row], second[1][second_row])


def _own_tp_and_duplicate(
    gt: torch.Tensor, is_tp: torch.Tensor, tp_rank: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each detection's object: its true positive (from 0), its best duplicate's rank or D'."""
    objects, number = gt.unique(return_inverse=True)
    has_object = gt >= 0
    own_tp = torch.zeros_like(objects)
    own_tp[number[tp_rank]] = torch.arange(len(tp_rank), device=gt.device)
    duplicate = torch.full_like(objects, len(gt))
    ranks = torch.arange(len(gt), device=gt.device)
    rank = torch.where(is_tp | ~has_object, len(gt), ranks)
    duplicate.scatter_reduce_(0, number, rank, "amin")
    return torch.where(has_object, own_tp[number], 0), duplicate[number]


@torch.no_grad()
def ap_steps(
    scores: torch.Tensor, matched_gt: torch.Tensor, num_gt: int, ap_type: str = "area"
) -> Steps:
    """
    The nearest steps of AP above and below each detection's score, the other scores held.

    Exact, in O(M^2 + D log D), after Henderson & Ferrari 2016, section 4.4, with duplicates and
    ignored detections. Tied scores keep their input order, as if an infinitesimal amount apart.

    Args:
        scores: (D,) float. matched_gt: (D,) int64, index of the object matched, -1 for none, -2 for
            a difficult object. num_gt: number of objects without the difficult ones. ap_type:
            "area", "voc07" or "coco101".

    Returns:
        Steps in the order of the input. Without objects or without a true positive there is no
        step; value is nan without objects.

    Raises:
        ValueError, TypeError: as :func:`~maploss.layers.average_precision`.
        FloatingPointError: a score that is not finite.
    """
    check_choice("ap_type", ap_type, AP_TYPES)
    check_detections(scores, matched_gt, num_gt)
    ranked = rank_detections(scores, matched_gt)
    num_tp = int(ranked.is_tp.sum())
    if num_gt == 0:
        return Steps.none(scores.new_tensor(float("nan")), scores)
    weights = recall_weights(num_gt, num_tp, ap_type, scores.device)
    order = ranked.order
    nearest = first_steps(matched_gt[order], ranked.is_tp, weights)
    steps = Steps.none(nearest.value, scores)
    for is_up, value, rank in (
        (True, nearest.up_value, nearest.up_partner),
        (False, nearest.down_value, nearest.down_partner),
    ):
        found = rank >= 0
        steps.put(is_up, order[found], order[rank[found]], value[found], scores)
    return steps
