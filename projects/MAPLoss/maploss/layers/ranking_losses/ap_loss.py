# SPDX-License-Identifier: Apache-2.0
"""
AP Loss (Chen et al., "Towards Accurate One-Stage Object Detection with AP-Loss", CVPR 2019).

Shape letters: D scores, all windows x classes of the minibatch, P of them positive, T overlaps.
"""

import torch

from ..checks import check_positive
from ..surrogate_gradient import attach_gradient
from .labels import check_ranking, matched_at_overlaps, positives_and_negatives
from .pair_sums import ramp_pairs


def ap_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    delta: float = 1.0,
    is_matched: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    1 - AP of all classes' scores in one ranking, with interpolated precision, and the error-driven
    update for its gradient (section 3 of the paper).

    With H(d) = clamp(d / (2 delta) + 1/2, 0, 1) and rank_i = 1 + sum_{j != i} H(s_j - s_i),

        L_ij = r_i H(s_j - s_i) / rank_i,    L = 1/P sum_ij L_ij    (i positive, j negative),

    the gradient by s_i being -1/P sum_j L_ij and that by s_j 1/P sum_i L_ij. r_i
    replaces the precision at i by the best one at the same or a higher recall.

    With several overlaps the loss is the mean of theirs, 0 at one without a positive: what COCO's
    AP is to AP (this project's own).

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        delta: half the width of the step, in units of score, above 0.
        is_matched: (T, P) bool, of the positives in their order, which are right at each overlap;
            the others are negatives there. None for all, at one overlap.

    Returns:
        0-d of the scores' dtype, 0 without positives.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label or delta, no overlap.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores = torch.tensor([3.0, 2.5, 0.0], requires_grad=True)
        >>> loss = ap_loss(scores, torch.tensor([0, 1, 1]), delta=0.5)
        >>> loss.backward()
        >>> loss.detach(), scores.grad
        (tensor(0.3333), tensor([ 0.3333, -0.1667, -0.1667]))
    """
    check_ranking(scores, labels)
    check_positive("delta", delta)
    positive, negative = positives_and_negatives(labels)
    is_matched = matched_at_overlaps(is_matched, positive)
    if len(positive) == 0:
        return (scores * 0.0).sum()
    with torch.no_grad():
        positives, negatives = scores[positive], scores[negative]
        among_negatives = ramp_pairs(positives, negatives, delta)
        among_positives = ramp_pairs(positives, positives, delta)
        background, _ = among_negatives.over_items(torch.ones_like(negatives))
        order = positives.argsort()
        value = scores.new_zeros((), dtype=torch.float64)
        by_positives, all_shares = torch.zeros_like(background), torch.zeros_like(background)
        for matched in is_matched.double():
            # A positive counts 1 in its own rank, H(0) being 1/2.
            true = among_positives.over_items(matched)[0] + 0.5 * matched
            false = background + among_positives.over_items(1 - matched)[0]
            precision = matched * true / (true + false)
            best = torch.empty_like(precision)
            best[order] = precision[order].cummax(0).values
            # Error i, (1 - precision) r_i, is shared by the negatives in proportion to H.
            errors = matched * (1 - best) / matched.sum().clamp(min=1)
            shares = torch.where(false > 0, errors / false, 0.0)
            by_positives += (1 - matched) * among_positives.over_queries(shares)[0]
            by_positives -= errors * (false > 0)
            all_shares += shares
            value += errors.sum()
        gradient = scores.new_zeros(len(scores), dtype=torch.float64)
        gradient[positive] = by_positives / len(is_matched)
        gradient[negative] = among_negatives.over_queries(all_shares / len(is_matched))[0]
        value /= len(is_matched)
    return attach_gradient(value.to(scores.dtype), (scores,), (gradient.to(scores.dtype),))
