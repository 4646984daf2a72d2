# SPDX-License-Identifier: Apache-2.0
"""
Sums over all pairs of scores of a function of their difference: what ranking losses are made of.

Shape letters: P queries (positives), D items, M control points of the function.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from .piecewise_linear import Knots, knots, value_and_slope

# Where the steepest part of the ramp is so many times narrower than the scores are wide, running
# sums would round it away.
_STEEPEST = 1e5
# Pairs computed at once, a few matrices of them: as much as a cache holds.
_BLOCK = 1 << 17


class PairSums(Protocol):
    """
    Sums of f(s_j - s_i) over items j, or over queries i, and the same of its derivative f'.

    All is float64.
    """

    def over_items(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(D,) weights to (P,) sum_j w_j f and (P,) sum_j w_j f'."""
        ...

    def over_queries(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(P,) weights to (D,) sum_i w_i f and (D,) sum_i w_i f'."""
        ...


class PiecewiseLinearPairs:
    """
    f(d) = h(clamp(d / (2 delta) + 1/2, 0, 1)), h piecewise linear, without making the pairs.

    On each segment of h, f is a + b s_j, so that its sum over the items in between, which are
    neighbours when sorted, is a difference of running sums: O((P M + D) log D) time and
    O(P M + D) memory for what takes P D as a matrix, with the same result.

    Example:
        >>> queries, items = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.5, 3.0])
        >>> pairs = PiecewiseLinearPairs(queries, items, 1.0, knots(torch.zeros(0, 2)))
        >>> pairs.over_items(torch.ones(3))[0]
        tensor([2.2500, 1.0000], dtype=torch.float64)
    """

    def __init__(self, queries: torch.Tensor, items: torch.Tensor, delta: float, h: Knots) -> None:
        """
        Args:
            queries: (P,) scores.
            items: (D,) scores.
            delta: half the width of the ramp, in units of score, above 0.
            h: with M control points.
        """
        x, y, slopes = h
        queries, items = _near_zero(queries, items, delta)
        self._sorted, self._order = items.sort()
        # Where each query's segments begin, in units of score, and as places among the items.
        starts = queries[:, None] + delta * (2 * x - 1)
        first = torch.searchsorted(self._sorted, starts)
        # h is 0 at 0 whatever it is just above.
        after = torch.searchsorted(self._sorted, starts, right=True)
        self._first = torch.where(x == 0, after, first)
        self._next = torch.cat([self._first[:, 1:], torch.full_like(first[:, :1], len(items))], 1)
        # Above the last knot f is 1.
        self._b = torch.cat([slopes / (2 * delta), slopes.new_zeros(1)])
        self._a = y - self._b * starts

    def over_items(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ordered = weights.double()[self._order]
        plain = self._between(ordered)
        moment = self._between(ordered * self._sorted)
        sums = (self._a * plain + self._b * moment).sum(dim=1)
        return sums, (self._b * plain).sum(dim=1)

    def over_queries(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = self._spread(weights.double()[:, None] * self._a)
        b = self._spread(weights.double()[:, None] * self._b)
        sums, slopes = torch.empty_like(a), torch.empty_like(b)
        sums[self._order] = a + b * self._sorted
        slopes[self._order] = b
        return sums, slopes

    def _between(self, ordered: torch.Tensor) -> torch.Tensor:
        """(D,) in order of score to (P, M + 2), the sum over the items of each segment."""
        running = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
        return running[self._next] - running[self._first]

    def _spread(self, per_segment: torch.Tensor) -> torch.Tensor:
        """(P, M + 2) to (D,) in order of score: of the segments that an item lies in, the sum."""
        changes = per_segment.new_zeros(len(self._sorted) + 1)
        changes.index_add_(0, self._first.flatten(), per_segment.flatten())
        changes.index_add_(0, self._next.flatten(), per_segment.flatten(), alpha=-1)
        return changes[:-1].cumsum(0)


class BlockedPairs:
    """
    Any f, by making the matrix of pairs in blocks of queries.

    Example:
        >>> f = lambda d: (d.square(), 2 * d)
        >>> pairs = BlockedPairs(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]), f)
        >>> pairs.over_items(torch.ones(2))
        (tensor([10.,  2.], dtype=torch.float64), tensor([8., 0.], dtype=torch.float64))
    """

    def __init__(
        self,
        queries: torch.Tensor,
        items: torch.Tensor,
        f: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """
        Args:
            queries: (P,) scores.
            items: (D,) scores.
            f: from differences (.., D) to f and f' there.
        """
        self._items = items.detach().double()
        self._queries = queries.detach().double().split(max(1, _BLOCK // max(len(items), 1)))
        self._f = f

    def over_items(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Written in place: small tensors kept between the blocks would hold the memory in pieces.
        sums, slopes = self._items.new_empty(2, sum(map(len, self._queries)))
        weights, start = weights.double(), 0
        for some in self._queries:
            place = slice(start, start + len(some))
            values, derivatives = self._values(some)
            torch.mv(values, weights, out=sums[place])
            torch.mv(derivatives, weights, out=slopes[place])
            start = place.stop
        return sums, slopes

    def over_queries(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sums, slopes = torch.zeros_like(self._items), torch.zeros_like(self._items)
        parts = weights.double().split(max(len(self._queries[0]), 1))
        for some, some_weights in zip(self._queries, parts, strict=True):
            values, derivatives = self._values(some)
            sums += some_weights @ values
            slopes += some_weights @ derivatives
        return sums, slopes

    def _values(self, some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._f(self._items - some[:, None])


def piecewise_linear_pairs(
    queries: torch.Tensor, items: torch.Tensor, delta: float, points: torch.Tensor
) -> PairSums:
    """
    :class:`PiecewiseLinearPairs`, or :class:`BlockedPairs` where h is too steep for it.

    Args:
        queries: (P,) scores.
        items: (D,) scores.
        delta: half the width of the ramp, in units of score, above 0.
        points: (M, 2) control points of h, M = 0 for a straight line.

    Example:
        >>> step = torch.tensor([[0.5, 0.0], [0.5, 1.0]])
        >>> pairs = piecewise_linear_pairs(torch.zeros(1), torch.tensor([-0.1, 0.1]), 1.0, step)
        >>> pairs.over_queries(torch.ones(1))[0]
        tensor([0., 1.], dtype=torch.float64)
    """
    h = knots(points)
    width = float(queries.max() - queries.min()) + 2 * delta if len(queries) else 0.0
    if float(h.slopes.max()) / (2 * delta) * width < _STEEPEST:
        return PiecewiseLinearPairs(queries, items, delta, h)

    def f(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place = (d / (2 * delta) + 0.5).clamp(0, 1)
        values, slopes = value_and_slope(place, h)
        is_inside = (place > 0) & (place < 1)
        return values, slopes / (2 * delta) * is_inside

    return BlockedPairs(queries, items, f)


def ramp_pairs(queries: torch.Tensor, items: torch.Tensor, delta: float) -> PairSums:
    """
    H(s_j - s_i), H(d) = clamp(d / (2 delta) + 1/2, 0, 1): the step of AP Loss and others.

    Args:
        queries: (P,) scores.
        items: (D,) scores.
        delta: half the width of the ramp, in units of score, above 0.

    Example:
        >>> pairs = ramp_pairs(torch.zeros(1), torch.tensor([-2.0, 0.0, 0.5, 2.0]), 1.0)
        >>> pairs.over_queries(torch.ones(1))[0]
        tensor([0.0000, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return piecewise_linear_pairs(queries, items, delta, items.new_zeros(0, 2))


def _near_zero(
    queries: torch.Tensor, items: torch.Tensor, delta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Both as float64, shifted together and with items cut to where f is not constant: differences
    that count stay as they are, and running sums stay small.
    """
    queries, items = queries.double(), items.double()
    if not len(queries):
        return queries, items
    low, high = queries.min(), queries.max()
    center = (low + high) / 2
    # Further out than the ramp, so that what is beyond its end stays so.
    reach = (high - low) / 2 + 2 * delta
    return queries - center, (items - center).clamp(-reach, reach)
