# SPDX-License-Identifier: Apache-2.0
"""
Rank & Sort Loss (Oksuz et al., "Rank & Sort Loss for Object Detection and Instance Segmentation",
ICCV 2021) and its bucketed form (Yavuz et al., "Bucketed Ranking-based Losses for Efficient
Training of Object Detectors", ECCV 2024).

Shape letters: D scores, all windows x classes of the minibatch, P of them positive, B buckets.
"""

import torch

from ..checks import check_positive, check_ranking
from ..surrogate_gradient import attach_gradient
from .pair_sums import ramp_pairs

# Pairs of positives computed at once.
_BLOCK = 1 << 17


def rank_sort_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    *,
    delta: float = 0.5,
    bucketed: bool = False,
) -> torch.Tensor:
    """
    Positives above negatives (ranking), and better positives above worse ones (sorting).

    With H(d) = clamp(d / (2 delta) + 1/2, 0, 1), counting 1 for a positive itself, sums over k of
    positives, y the quality, N_i = sum_{negatives j} H(s_j - s_i), rank_i = N_i + sum_k H(s_k -
    s_i), and mean_i the mean weighted by H(s_k - s_i),

        ranking error R_i = N_i / rank_i,
        sorting error S_i = mean_i over k of (1 - y_k) - mean_i over k with y_k >= y_i of (1 - y_k),
        L = 1/P sum_i (R_i + S_i).

    The gradient is the identity update: R_i is shared among the negatives, S_i among the positives
    of less quality than i, in proportion to H; who has a share s is pushed down by s / P, and i up.

    `bucketed`: negatives between the same two positives are one, with their mean score, counted as
    often as there are; the gradient of a bucket is shared equally. The same for delta towards 0.

    Args:
        scores: (D,) logits, float32 or float64. labels: (D,) int64, 1 positive, 0 negative, -1
            ignored. quality: (P,) in [0, 1], of the positives in their order, the IoU in the
            paper; a constant. delta: half the width of the step, in units of score, above 0.

    Returns:
        0-d of the scores' dtype, 0 without positives.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label, quality or delta.
        FloatingPointError: a score that is not finite.
    """
    check_ranking(scores, labels, quality)
    check_positive("delta", delta)
    positive, negative = ((labels == x).nonzero().squeeze(1) for x in (1, 0))
    if len(positive) == 0:
        return (scores * 0.0).sum()
    with torch.no_grad():
        own, others = scores[positive].double(), scores[negative].double()
        bucket = torch.arange(len(others), device=scores.device)
        if bucketed:
            # Negatives of one score as the positive's count as below it.
            bucket = torch.searchsorted(own.sort().values, others)
        sizes = torch.bincount(bucket).to(own.dtype)
        sums = torch.zeros_like(sizes).index_add_(0, bucket, others)
        # Buckets without negatives have weight 0 wherever they stand.
        items = sums / sizes.clamp(min=1)
        among_negatives = ramp_pairs(own, items, delta)
        false, _ = among_negatives.over_items(sizes)
        true = ramp_pairs(own, own, delta).over_items(torch.ones_like(own))[0] + 0.5
        ranking = false / (false + true)
        sorting, pushed_down = _sorting(own, quality.detach().double(), true, delta)
        shares = torch.where(false > 0, ranking / false, 0.0)
        num = len(positive)
        gradient = scores.new_zeros(len(scores), dtype=torch.float64)
        gradient[negative] = among_negatives.over_queries(shares)[0][bucket] / num
        gradient[positive] = (pushed_down - ranking - sorting) / num
    value = (ranking + sorting).mean()
    return attach_gradient(value.to(scores.dtype), (scores,), (gradient.to(scores.dtype),))


def _sorting(
    scores: torch.Tensor, quality: torch.Tensor, true: torch.Tensor, delta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) the sorting errors, and (P,) what each positive has of those of others."""
    errors, shares = torch.zeros_like(scores), torch.zeros_like(scores)
    inds = torch.arange(len(scores), device=scores.device)
    for some in inds.split(max(1, _BLOCK // len(scores))):
        above = ((scores - scores[some, None]) / (2 * delta) + 0.5).clamp_(0, 1)
        above[torch.arange(len(some), device=some.device), some] = 1.0
        worse = above * (quality < quality[some, None])
        total = worse.sum(dim=1)
        loose = 1 - quality
        best = above - worse
        error = above @ loose / true[some] - best @ loose / best.sum(dim=1)
        # None but by rounding where no worse one is above.
        error = torch.where(total > 0, error, 0.0)
        errors[some] = error
        shares += torch.where(total > 0, error / total, 0.0) @ worse
    return errors, shares
