# SPDX-License-Identifier: Apache-2.0
"""
aLRP Loss (Oksuz et al., "A Ranking-based, Balanced Loss Function Unifying Classification and
Localisation in Object Detection", NeurIPS 2020).

Shape letters: D scores, all windows x classes of the minibatch, P of them positive.
"""

import torch

from ..checks import check_positive
from ..surrogate_gradient import attach_gradient
from .labels import check_ranking, positives_and_negatives
from .pair_sums import ramp_pairs

# The least sum of H over negatives that there is something to share among.
_LEAST_FALSE = 1e-6


def alrp_loss(
    scores: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor, *, delta: float = 1.0
) -> torch.Tensor:
    """
    The average Localisation-Recall-Precision error at the positives (section 4 of the paper).

    With E = 1 - quality, H(d) = clamp(d / (2 delta) + 1/2, 0, 1), N_i = sum_{negatives j}
    H(s_j - s_i), rank_i = 1 + sum_{j != i} H(s_j - s_i), sums over k of positives,

        l_i = (N_i + E_i + sum_{k != i} E_k H(s_k - s_i)) / rank_i,    L = 1/P sum_i l_i.

    Gradient by the scores: the error-driven update, which shares l_i - E_i / rank_i among the
    negatives in proportion to H. By the qualities: the derivative of the localisation part, sum_i
    l_i without N_i, times L over that part: its self-balancing, here with the ratio of the
    minibatch where the paper takes the mean of the last epoch.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        quality: (P,) in [0, 1], of the positives in their order, (GIoU + 1) / 2 in the paper.
        delta: half the width of the step, in units of score, above 0.

    Returns:
        0-d of the scores' dtype, 0 without positives.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label, quality or delta.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores = torch.tensor([3.0, 2.0, 0.0], requires_grad=True)
        >>> quality = torch.tensor([0.75], requires_grad=True)
        >>> loss = alrp_loss(scores, torch.tensor([0, 1, 0]), quality)
        >>> loss.backward()
        >>> loss.detach(), scores.grad, quality.grad
        (tensor(0.6250), tensor([ 0.5000, -0.5000,  0.0000]), tensor([-2.5000]))
    """
    check_ranking(scores, labels, quality)
    check_positive("delta", delta)
    positive, negative = positives_and_negatives(labels)
    num = len(positive)
    if num == 0:
        return (scores * 0.0).sum() + (quality * 0.0).sum()
    with torch.no_grad():
        positives, negatives = scores[positive], scores[negative]
        error = 1 - quality.double()
        among_negatives = ramp_pairs(positives, negatives, delta)
        among_positives = ramp_pairs(positives, positives, delta)
        false, _ = among_negatives.over_items(torch.ones_like(negatives))
        # A positive counts 1 in its own rank, H(0) being 1/2.
        rank = false + among_positives.over_items(torch.ones_like(positives))[0] + 0.5
        localization_error = among_positives.over_items(error)[0] + error / 2
        value = ((false + localization_error) / rank).mean()
        localization = (localization_error / rank).mean()
        # Negatives that are hardly in reach get no share: rounding would decide on theirs.
        has_false = false > _LEAST_FALSE
        shared = (false + localization_error - error) / rank / num * has_false
        by_scores = scores.new_zeros(len(scores), dtype=torch.float64)
        by_scores[positive] = -shared
        shares = torch.where(has_false, shared / false, 0.0)
        by_scores[negative] = among_negatives.over_queries(shares)[0]
        counts = among_positives.over_queries(1 / rank)[0] + 0.5 / rank
        balance = torch.where(localization > 0, value / localization, 1.0)
        by_quality = -balance * counts / num
    return attach_gradient(
        value.to(scores.dtype),
        (scores, quality),
        (by_scores.to(scores.dtype), by_quality.to(quality.dtype)),
    )
