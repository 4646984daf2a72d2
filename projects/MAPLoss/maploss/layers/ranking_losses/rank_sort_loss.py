# SPDX-License-Identifier: Apache-2.0
"""
Rank & Sort Loss (Oksuz et al., "Rank & Sort Loss for Object Detection and Instance Segmentation",
ICCV 2021) and its bucketed form (Yavuz et al., "Bucketed Ranking-based Losses for Efficient
Training of Object Detectors", ECCV 2024).

Shape letters: D scores, all windows x classes of the minibatch, P of them positive, N of them
negative and in reach of a positive, B buckets.
"""

import torch

from ..checks import check_positive
from ..surrogate_gradient import attach_gradient
from .labels import check_ranking, positives_and_negatives
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

    The gradient is the identity update (section 4 of the paper): R_i is shared among the
    negatives, S_i among the positives of less quality than i, in proportion to H; who has a share s
    is pushed down by s / P, and i up.

    Bucketed form (section 4 of its paper): negatives between the same two positives are one, with
    their mean score, counted as often as there are; the gradient of a bucket is shared equally.
    Negatives out of reach of all positives, at least delta below the lowest, are in no bucket: they
    change nothing, as in the plain form. Both forms are the same where a bucket's scores are
    equal, or delta goes to 0 (Theorem 4.1 of its paper). Elsewhere they differ: a bucket's mean
    may be out of reach of the positive above it where some of its negatives are not.

    The published code differs: H of a positive with itself counts 1/2; negatives exactly delta
    below the lowest positive are in its bucket; negatives of the same score as a positive are above
    or below it as the sort has it, here below; a positive of quality 0 is a negative.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        quality: (P,) in [0, 1], of the positives in their order, the IoU in the paper; a constant.
        delta: half the width of the step, in units of score, above 0.
        bucketed: whether negatives are ranked by buckets.

    Returns:
        0-d of the scores' dtype, 0 without positives.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label, quality or delta.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores = torch.tensor([2.0, 1.0, 3.0], requires_grad=True)
        >>> labels = torch.tensor([1, 1, 0])
        >>> loss = rank_sort_loss(scores, labels, torch.tensor([0.5, 0.9]))
        >>> loss.backward()
        >>> loss.detach(), scores.grad
        (tensor(0.5167), tensor([-0.1500, -0.2667,  0.4167]))
    """
    check_ranking(scores, labels, quality)
    check_positive("delta", delta)
    positive, negative = positives_and_negatives(labels)
    num = len(positive)
    if num == 0:
        return (scores * 0.0).sum()
    with torch.no_grad():
        positives = scores[positive].double()
        # The difference is exact near the limit, the limit itself would be rounded.
        negative = negative[scores[negative].double() - positives.min() > -delta]
        negatives = scores[negative].double()
        bucket, sizes, means = _buckets(positives, negatives, bucketed)
        among_negatives = ramp_pairs(positives, means, delta)
        false, _ = among_negatives.over_items(sizes)
        # A positive counts 1 in its own rank, H(0) being 1/2.
        true = ramp_pairs(positives, positives, delta).over_items(torch.ones_like(positives))[0]
        true += 0.5
        ranking = false / (false + true)
        sorting, pushed_down = _sorting(positives, quality.detach().double(), true, delta)
        shares = torch.where(false > 0, ranking / false, 0.0)
        gradient = scores.new_zeros(len(scores), dtype=torch.float64)
        gradient[negative] = among_negatives.over_queries(shares)[0][bucket] / num
        gradient[positive] = (pushed_down - ranking - sorting) / num
    value = (ranking + sorting).mean()
    return attach_gradient(value.to(scores.dtype), (scores,), (gradient.to(scores.dtype),))


def _buckets(
    positives: torch.Tensor, negatives: torch.Tensor, bucketed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    (N,) the bucket of each negative, (B,) sizes and (B,) mean scores; without `bucketed` each
    negative is one of its own.
    """
    if not bucketed:
        bucket = torch.arange(len(negatives), device=negatives.device)
        return bucket, torch.ones_like(negatives), negatives
    # Negatives of one score as the positive's count as below it.
    bucket = torch.searchsorted(positives.sort().values, negatives)
    sizes = torch.bincount(bucket, minlength=len(positives) + 1).to(negatives.dtype)
    sums = torch.zeros_like(sizes).index_add_(0, bucket, negatives)
    # Buckets without negatives have weight 0 wherever they stand.
    return bucket, sizes, sums / sizes.clamp(min=1)


def _sorting(
    scores: torch.Tensor, quality: torch.Tensor, true: torch.Tensor, delta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) the sorting errors, and (P,) what each positive has of those of others."""
    errors, shares = torch.zeros_like(scores), torch.zeros_like(scores)
    localization_error = 1 - quality
    inds = torch.arange(len(scores), device=scores.device)
    for some in inds.split(max(1, _BLOCK // len(scores))):
        above = ((scores - scores[some, None]) / (2 * delta) + 0.5).clamp_(0, 1)
        above[torch.arange(len(some), device=some.device), some] = 1.0
        worse = above * (quality < quality[some, None])
        total = worse.sum(dim=1)
        best = above - worse
        current = above @ localization_error / true[some]
        target = best @ localization_error / best.sum(dim=1)
        # None but by rounding where no worse one is above.
        error = torch.where(total > 0, current - target, 0.0)
        errors[some] = error
        shares += torch.where(total > 0, error / total, 0.0) @ worse
    return errors, shares
