# SPDX-License-Identifier: Apache-2.0
"""
Smooth-AP (Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV
2020).

Shape letters: D scores, all windows x classes of the minibatch, P of them positive, T overlaps.
"""

import torch

from ..checks import check_positive
from ..surrogate_gradient import attach_gradient
from .labels import check_ranking, matched_at_overlaps, positives_and_negatives
from .pair_sums import BlockedPairs


def smooth_ap_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    is_matched: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    1 - AP with sigmoids for the steps, and its true gradient (section 4 of the paper).

    With G(d) = sigmoid(d / temperature), T_i = 1 + sum of G(s_k - s_i) over other positives k and
    F_i the sum of G(s_j - s_i) over negatives j: L = 1/P sum_i F_i / (T_i + F_i).

    With several overlaps the loss is the mean of theirs, 0 at one without a positive (this
    project's own).

    All P D pairs are made, in blocks; those of two positives once for each overlap.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        temperature: in units of score, above 0; .01 in the paper, for cosines.
        is_matched: (T, P) bool, of the positives in their order, which are right at each overlap;
            the others are negatives there. None for all, at one overlap.

    Returns:
        0-d of the scores' dtype, 0 without positives.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label or temperature, no overlap.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores = torch.tensor([2.0, 2.0], requires_grad=True)
        >>> loss = smooth_ap_loss(scores, torch.tensor([1, 0]))
        >>> loss.backward()
        >>> loss.detach(), scores.grad
        (tensor(0.3333), tensor([-0.1111,  0.1111]))
    """
    check_ranking(scores, labels)
    check_positive("temperature", temperature)
    positive, negative = positives_and_negatives(labels)
    is_matched = matched_at_overlaps(is_matched, positive)
    if len(positive) == 0:
        return (scores * 0.0).sum()

    def step(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.sigmoid(d / temperature)
        return g, g * (1 - g) / temperature

    with torch.no_grad():
        positives, negatives = scores[positive], scores[negative]
        among_negatives = BlockedPairs(positives, negatives, step)
        among_positives = BlockedPairs(positives, positives, step)
        background, background_slopes = among_negatives.over_items(torch.ones_like(negatives))
        all_above, all_slopes = among_positives.over_items(torch.ones_like(positives))
        value = scores.new_zeros((), dtype=torch.float64)
        by_positives, by_background = torch.zeros_like(background), torch.zeros_like(background)
        for matched in is_matched.double():
            true, true_slopes = among_positives.over_items(matched)
            false = background + all_above - true
            false_slopes = background_slopes + all_slopes - true_slopes
            true += 0.5 * matched
            shares = matched / matched.sum().clamp(min=1)
            # The derivatives of the loss by F_i and by T_i.
            by_false = shares * true / (true + false).square()
            by_true = -shares * false / (true + false).square()
            # A positive's difference with itself takes part on both sides, which cancels.
            as_item = torch.where(
                matched > 0,
                among_positives.over_queries(by_true)[1],
                among_positives.over_queries(by_false)[1],
            )
            by_positives += as_item - (by_false * false_slopes + by_true * true_slopes)
            by_background += by_false
            value += (shares * false / (true + false)).sum()
        gradient = scores.new_zeros(len(scores), dtype=torch.float64)
        gradient[negative] = among_negatives.over_queries(by_background / len(is_matched))[1]
        gradient[positive] = by_positives / len(is_matched)
        value /= len(is_matched)
    return attach_gradient(value.to(scores.dtype), (scores,), (gradient.to(scores.dtype),))
