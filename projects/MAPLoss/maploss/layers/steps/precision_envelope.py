# SPDX-License-Identifier: Apache-2.0
"""
What AP becomes when one detection of a list moves until AP first changes.

A list of detections enters as the number of false positives above each true positive; nothing else
matters for AP. Shape letters: B lists (rows), M true positives (padded). True positives are counted
from 1, as in the formulas; 0 stands for "none".
"""

from functools import cached_property
from typing import NamedTuple

import torch


class FirstChange(NamedTuple):
    """
    First change of AP on a move. All (B,).

    passed: int64, which detection of the other kind is passed then: the true positive counted from
        1 for a moving false positive; the false positive counted from 0 for a moving true
        positive. Meaningless where `found` is False.
    value: float64, AP after the move.
    found: bool, False where AP never changes on this way.
    """

    passed: torch.Tensor
    value: torch.Tensor
    found: torch.Tensor


class PrecisionEnvelope:
    """
    Precision at each true positive of B lists, and how it reacts to the move of one detection.

    With F_m false positives above the m-th true positive: precision_m = m / (m + F_m),
    interpolated_m = max_{k >= m} precision_k, AP = sum_m w_m interpolated_m. "Attained" at k means
    precision_k = interpolated_m: AP falls when every k is lowered at which some weighted
    interpolated_m is attained.

    Args:
        fps: (B, M) int64, F_m; not falling along a row. M is at least 1.
        num_tp: (B,) int64, true positives of each row; the rest of it is padding.
        weights: (B, M) float64, recall weights of each row.
    """

    def __init__(self, fps: torch.Tensor, num_tp: torch.Tensor, weights: torch.Tensor) -> None:
        self.fps, self.weights = fps, weights
        self.num_tp = num_tp[:, None]
        self.index = torch.arange(1, fps.shape[1] + 1, device=fps.device)
        self.is_real = self.index <= self.num_tp
        self.precision = self._precision(fps)
        self.interpolated, self._attained_at = _reverse_cummax(self.precision)
        self.ap = (self.interpolated * weights).sum(1)

    def _precision(self, fps: torch.Tensor) -> torch.Tensor:
        precision = self.index / (self.index + fps).double()
        return torch.where(self.is_real, precision, 0.0)

    @cached_property
    def _source(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Where a gain at m has to exceed `interpolated`: at the nearest weighted index up to m.

        Returns:
            has_weight (B, M) bool, whether there is one; where its value is attained (B, M), and
            the false positives above that (B, M).
        """
        last_weighted = torch.where(self.weights > 0, self.index, 0).cummax(1).values
        attained = self._attained_at.gather(1, (last_weighted - 1).clamp(min=0))
        return last_weighted > 0, attained + 1, self.fps.gather(1, attained)

    @cached_property
    def _attained_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """First and last index >= m at which interpolated_m is attained, (B, M) each."""
        after = torch.nn.functional.pad(self.interpolated[:, 1:], (0, 1))
        beyond = self.fps.shape[1] + 1
        first = torch.where(self.precision == self.interpolated, self.index, beyond)
        last = torch.where(self.precision > after, self.index, beyond)
        return _reverse_cummin(first), _reverse_cummin(last)

    def _gain(self, upto: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
        """What AP gains if index `upto` (B,) gets this higher precision (B,)."""
        raised = (precision[:, None] - self.interpolated).clamp_(min=0) * self.weights
        return raised.masked_fill_(self.index > upto[:, None], 0.0).sum(1)

    def _ap_with(self, fps: torch.Tensor) -> torch.Tensor:
        return (_reverse_cummax(self._precision(fps))[0] * self.weights).sum(1)

    def raise_tp(self, tp: torch.Tensor) -> FirstChange:
        """
        True positive `tp` (B,) rises past false positives; no step where it is 0.

        With y of them still above, it has the index i with F_{i-1} <= y < F_i, and AP changes at
        the largest y with i / (i + y) > interpolated at the last weighted index up to i.
        """
        has_weight, source_index, source_fps = self._source
        before = torch.nn.functional.pad(self.fps[:, :-1], (1, 0))
        # y < i * F_q / q in integers, where q is where the interpolated one is attained.
        highest = (self.index * source_fps - 1).div(source_index, rounding_mode="floor")
        above = torch.minimum(highest, self.fps - 1)
        is_step = (above >= before) & (self.index <= tp[:, None]) & has_weight & self.is_real
        at = _last_true(is_step)
        passed = _pick(above, at)
        precision = at / (at + passed).clamp(min=1).double()
        return FirstChange(passed, self.ap + self._gain(at, precision), at > 0)

    def lower_fp(self, tps_above: torch.Tensor) -> FirstChange:
        """A false positive with `tps_above` (B,) true positives above it falls past others."""
        has_weight, source_index, source_fps = self._source
        improves = self.index * source_fps > source_index * (self.fps - 1)
        is_step = (improves & (self.index > tps_above[:, None]) & has_weight & self.is_real) & (
            self.fps > 0
        )
        at = _first_true(is_step)
        precision = at / (at + _pick(self.fps, at) - 1).clamp(min=1).double()
        return FirstChange(at, self.ap + self._gain(at, precision), at > 0)

    def raise_fp(self, tps_above: torch.Tensor) -> FirstChange:
        """
        A false positive with `tps_above` (B,) true positives above it rises past them.

        Passing j..tps_above lowers those precisions; AP changes when a weighted interpolated_m
        loses the last place where it is attained.
        """
        first, last = self._attained_range
        loses = (last <= tps_above[:, None]) & (self.weights > 0)
        at = _pick(first, _last_true(loses))
        is_passed = (self.index >= at[:, None]) & (self.index <= tps_above[:, None])
        return FirstChange(at, self._ap_with(self.fps + is_passed.long()), at > 0)

    def lower_tp(self, tp: torch.Tensor, num_fp: torch.Tensor) -> FirstChange:
        """
        True positive `tp` (B,) falls past false positives, `num_fp` (B,) in the list.

        Falling past the first of them below index e leaves F_{m+1} at tp..e-1 and F_e + 1 at e.
        Where the next true positive has no false positive above it either, index m keeps its
        precision of 1 with it.
        """
        first, last = self._attained_range
        next_fps = torch.nn.functional.pad(self.fps[:, 1:], (0, 1))
        keeps = (next_fps == 0) & (self.index < self.num_tp)
        loses = (first >= tp[:, None]) & (self.weights > 0) & self.is_real & ~keeps
        at = _pick(last, _first_true(loses))
        passed = _pick(self.fps, at)
        is_shifted = (self.index >= tp[:, None]) & (self.index < at[:, None])
        shifted = torch.where(is_shifted, self.fps.roll(-1, dims=1), self.fps)
        value = self._ap_with(shifted + (self.index == at[:, None]).long())
        return FirstChange(passed, value, (at > 0) & (passed < num_fp))


def _reverse_cummax(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, inds = x.flip(1).cummax(1)
    return values.flip(1), x.shape[1] - 1 - inds.flip(1)


def _reverse_cummin(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1).cummin(1).values.flip(1)


def _last_true(mask: torch.Tensor) -> torch.Tensor:
    """(B,) last true column of (B, M), from 1; 0 where there is none."""
    index = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return torch.where(mask, index, 0).amax(1)


def _first_true(mask: torch.Tensor) -> torch.Tensor:
    """(B,) first true column of (B, M), from 1; 0 where there is none."""
    beyond = mask.shape[1] + 1
    index = torch.arange(1, beyond, device=mask.device)
    first = torch.where(mask, index, beyond).amin(1)
    return torch.where(first == beyond, 0, first)


def _pick(x: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """(B,) values of (B, M) at `column`, which counts from 1; 0 where it is 0."""
    picked = x.gather(1, (column - 1).clamp(min=0)[:, None]).squeeze(1)
    return torch.where(column > 0, picked, 0)
