# SPDX-License-Identifier: Apache-2.0
"""
AP Loss (Chen et al., "Towards Accurate One-Stage Object Detection with AP-Loss", CVPR 2019).

Shape letters: D scores, all windows x classes of the minibatch, P of them positive.
"""

import torch

from ..checks import check_positive
from ..surrogate_gradient import attach_gradient
from .labels import check_ranking, positives_and_negatives
from .pair_sums import ramp_pairs


def ap_loss(scores: torch.Tensor, labels: torch.Tensor, *, delta: float = 1.0) -> torch.Tensor:
    """
    1 - AP of all classes' scores in one ranking, with interpolated precision, and the error-driven
    update for its gradient (section 3 of the paper).

    With H(d) = clamp(d / (2 delta) + 1/2, 0, 1) and rank_i = 1 + sum_{j != i} H(s_j - s_i),

        L_ij = r_i H(s_j - s_i) / rank_i,    L = 1/P sum_ij L_ij    (i positive, j negative),

    the gradient by s_i being -1/P sum_j L_ij and that by s_j 1/P sum_i L_ij. r_i
    replaces the precision at i by the best one at the same or a higher recall.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        delta: half the width of the step, in units of score, above 0.

    Returns:
        0-d of the scores' dtype, 0 without positives.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label or delta.
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
    if len(positive) == 0:
        return (scores * 0.0).sum()
    with torch.no_grad():
        positives, negatives = scores[positive], scores[negative]
        among_negatives = ramp_pairs(positives, negatives, delta)
        false, _ = among_negatives.over_items(torch.ones_like(negatives))
        # A positive counts 1 in its own rank, H(0) being 1/2.
        true = ramp_pairs(positives, positives, delta).over_items(torch.ones_like(positives))[0]
        true += 0.5
        precision = true / (true + false)
        order = positives.argsort()
        best = torch.empty_like(precision)
        best[order] = precision[order].cummax(0).values
        # Error i, (1 - precision) r_i, is shared by the negatives in proportion to H.
        errors = 1 - best
        shares = torch.where(false > 0, errors / false, 0.0) / len(positive)
        gradient = scores.new_zeros(len(scores), dtype=torch.float64)
        gradient[positive] = -errors * (false > 0) / len(positive)
        gradient[negative] = among_negatives.over_queries(shares)[0]
    return attach_gradient(errors.mean().to(scores.dtype), (scores,), (gradient.to(scores.dtype),))
