# SPDX-License-Identifier: Apache-2.0
"""
Discounted cumulative gain, and its nearest steps in the score of each document.

Shape letter: D documents of one query.
"""

import torch

from ..checks import check_scores, check_shape
from .steps import Steps


@torch.no_grad()
def dcg(scores: torch.Tensor, gains: torch.Tensor, k: int | None = None) -> torch.Tensor:
    """
    DCG@k = sum over ranks r = 1 .. k of gain_(r) / log2(1 + r), by falling score.

    Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 2002, with
    the discount of Burges et al., ICML 2005. The gain of grade g is there 2^g - 1. Divided by
    `dcg(gains, gains, k)` it is the normalised DCG. Tied scores keep their input order.

    Args:
        scores: (D,) float32 or float64.
        gains: (D,), of either too.
        k: at least 1, None for all.

    Returns:
        0-d float64.

    Raises:
        ValueError, TypeError: a wrong shape or dtype, k below 1.
        FloatingPointError: a score or gain that is not finite.

    >>> dcg(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 3.0])).item()  # 1/log2 3 + 3/2
    2.1309297535714578
    """
    _check_documents(scores, gains, k)
    order = torch.argsort(scores, descending=True, stable=True)
    return (gains[order].double() * _discounts(len(scores), k, scores.device)).sum()


@torch.no_grad()
def dcg_steps(scores: torch.Tensor, gains: torch.Tensor, k: int | None = None) -> Steps:
    """
    The nearest steps of DCG@k above and below each document's score, the other scores held.

    With d_r = 1 / log2(1 + r) for r <= k, else 0, a document of gain g that passes others, of
    ranks s, on its way up or down changes DCG by

        sum_s (g - g_s) (d_s - d_{s+1})    or    sum_s (g_s - g) (d_{s-1} - d_s).

    Terms of equal gains are 0, and so are those of ranks beyond k (up) or k + 1 (down): the step
    is where the first other term comes in. Exact, in O(D log D). The steps of the normalised DCG
    are those of `gains / dcg(gains, gains, k)`. Tied scores keep their input order, as if an
    infinitesimal amount apart.

    Args:
        scores: (D,) float32 or float64.
        gains: (D,), of either too.
        k: at least 1, None for all.

    Returns:
        Steps in the order of the input, for :func:`~maploss.layers.pseudo_gradient`.

    Raises:
        ValueError, TypeError, FloatingPointError: as :func:`dcg`.

    The document of gain 1 rises above that of gain 0: DCG becomes 1.

    >>> steps = dcg_steps(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]))
    >>> steps.up_at.tolist(), steps.up_value.tolist()
    ([nan, 2.0], [nan, 1.0])
    """
    value = dcg(scores, gains, k)
    steps = Steps.none(value, scores)
    num = len(scores)
    if num < 2:
        return steps
    order = torch.argsort(scores, descending=True, stable=True)
    gain = gains[order].double()
    ranks = torch.arange(num, device=scores.device)  # From 0.
    is_new = torch.ones_like(order, dtype=torch.bool)
    is_new[1:] = gain[1:] != gain[:-1]
    run_start = torch.where(is_new, ranks, 0).cummax(0).values
    starts = is_new.nonzero().squeeze(1)
    run_end = torch.cat([starts[1:], starts.new_tensor([num])])[is_new.cumsum(0) - 1]
    last = num if k is None else min(k, num)

    nearest = (ranks - 1).clamp(0, last - 1)
    above = torch.where(gain[nearest] != gain, nearest, run_start[nearest] - 1)
    below = torch.where(run_end <= min(last, num - 1), run_end, -1)
    discounts = _discounts(num + 1, k, scores.device)
    for is_up, met, beyond in ((True, above, 1), (False, below, -1)):
        rank = (met >= 0).nonzero().squeeze(1)
        passed = met[rank]
        drop = discounts[passed] - discounts[passed + beyond]
        new = value + (gain[rank] - gain[passed]) * drop
        steps.put(is_up, order[rank], order[passed], new, scores)
    return steps


def _discounts(num: int, k: int | None, device: torch.device) -> torch.Tensor:
    """(num,) float64."""
    ranks = torch.arange(1, num + 1, device=device)
    discounts = 1 / torch.log2(1 + ranks.double())
    return discounts if k is None else discounts * (ranks <= k)


def _check_documents(scores: torch.Tensor, gains: torch.Tensor, k: int | None) -> None:
    check_scores(scores, ("D",))
    check_shape("gains", gains, (len(scores),))
    if gains.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"gains: expected torch.float32 or torch.float64, got {gains.dtype}")
    is_finite = torch.isfinite(gains)
    if not is_finite.all():
        raise FloatingPointError(f"gains: {int((~is_finite).sum())} of {len(gains)} not finite")
    if k is not None and k < 1:
        raise ValueError(f"k: expected at least 1 or None, got {k}")
