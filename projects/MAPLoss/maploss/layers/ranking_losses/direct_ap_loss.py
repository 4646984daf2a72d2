# SPDX-License-Identifier: Apache-2.0
"""
Direct loss minimisation for average precision.

Shape letters: D detections or documents of one class, P of them positive, N negative.
"""

import torch

from ..checks import check_choice, check_positive
from ..surrogate_gradient import attach_gradient
from .labels import IGNORED, POSITIVE, check_ranking

_SIGNS = {"positive": 1, "negative": -1}
UPDATES = tuple(_SIGNS)


def direct_ap_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    update: str = "positive",
) -> torch.Tensor:
    """
    L = 1 - AP of the ranking by score, with the gradient of direct loss minimisation (Song,
    Schwing, Zemel & Urtasun, "Training Deep Neural Networks via Direct Loss Minimization", ICML
    2016).

    A ranking y scores F(y) = 1 / (P N) sum over positives i and negatives j of y_ij (s_i - s_j),
    y_ij being 1 where i is above j, else -1; the ranking by score y_w has the largest F. With y_d
    the ranking of the largest F + epsilon L (`positive`) or F - epsilon L (`negative`),

        gradient = (grad F(y_d) - grad F(y_w)) / epsilon    or    (grad F(y_w) - grad F(y_d)) / ..,

    which becomes the gradient of the expected loss as epsilon falls to 0. It sums to zero. On one
    list it is 0 where epsilon L is too small to change the order, whatever AP is. AP is the mean
    over positives of the precision at their rank, not interpolated as in
    :func:`~maploss.layers.average_precision`. Tied scores keep their input order in y_w.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        epsilon: how much the loss counts beside the scores, in their unit, above 0.
        update: "positive" or "negative".

    Returns:
        0-d of the scores' dtype; 0 with a gradient of 0 if there is no positive or no negative.
        Takes O(P N) time, in P steps, and 4 P N bytes.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or label, update or epsilon.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores = torch.tensor([3.0, 2.0, 1.0], requires_grad=True)
        >>> loss = direct_ap_loss(scores, torch.tensor([0, 1, 0]), epsilon=100.0, update="negative")
        >>> loss.backward()
        >>> loss.detach(), scores.grad
        (tensor(0.5000), tensor([ 0.0100, -0.0100,  0.0000]))
    """
    check_ranking(scores, labels)
    check_choice("update", update, UPDATES)
    check_positive("epsilon", epsilon)
    gradient = torch.zeros_like(scores)
    counted = torch.argsort(scores.detach(), descending=True, stable=True)
    counted = counted[labels[counted] != IGNORED]
    is_positive = labels[counted] == POSITIVE
    positives, negatives = counted[is_positive], counted[~is_positive]
    if not len(positives) or not len(negatives):
        return attach_gradient(scores.new_zeros(()), [scores], [gradient])
    above = (~is_positive).cumsum(0)[is_positive]
    exact = scores.detach().double()
    above_direct = loss_augmented_ranking(exact[positives], exact[negatives], epsilon, update)
    # Both updates push away from the worse of the two rankings.
    scale = _SIGNS[update] / (epsilon * len(positives) * len(negatives))
    moved = 2 * scale * (above - above_direct).double()
    gradient[positives] = moved.to(scores.dtype)
    below = _positives_below(above, len(negatives)) - _positives_below(above_direct, len(negatives))
    gradient[negatives] = (-2 * scale * below.double()).to(scores.dtype)
    true = torch.arange(1, len(positives) + 1, device=scores.device)
    loss = 1 - (true.double() / (true + above)).mean()
    return attach_gradient(loss.to(scores.dtype), [scores], [gradient])


@torch.no_grad()
def loss_augmented_ranking(
    positives: torch.Tensor, negatives: torch.Tensor, epsilon: float, update: str
) -> torch.Tensor:
    """
    How many negatives are above each positive where F + epsilon L, or F - epsilon L, is largest.

    For both updates positives stand in the order of their scores, and negatives too: L depends only
    on which places are positive, and F is a sum of scores times a weight of the place, which falls
    from place to place, so that its largest value for given places is the sorted one
    (rearrangement inequality). What is left is the number of negatives a_1 <= .. <= a_P above each
    positive. With S_a the sum of the a best negatives' scores, all pairs of positive i decided by
    a_i, and the sign that of the update,

        b(i, a) = (s_i (N - 2 a) + 2 S_a - S_N) / (P N) - sign epsilon / P i / (i + a),
        h(i, a) = max(h(i, a - 1), h(i - 1, a) + b(i, a)),

    a running maximum for each positive: the dynamic programme of the paper, with the rows
    taken at once.

    Args:
        positives: (P,) float64, falling, P at least 1.
        negatives: (N,) float64, falling, N at least 1.
        epsilon: as in :func:`direct_ap_loss`.
        update: as in :func:`direct_ap_loss`.

    Returns:
        (P,) int64, rising.

    Example:
        >>> positives, negatives = torch.tensor([2.0]).double(), torch.tensor([3.0, 1.0]).double()
        >>> loss_augmented_ranking(positives, negatives, 0.1, "negative")
        tensor([1])
        >>> loss_augmented_ranking(positives, negatives, 100.0, "negative")
        tensor([0])
    """
    num_p, num_n = len(positives), len(negatives)
    # F depends on differences only; smaller sums are more exact.
    center = negatives.mean()
    positives, negatives = positives - center, negatives - center
    sums = torch.cat([negatives.new_zeros(1), negatives.cumsum(0)])
    above = torch.arange(num_n + 1, device=positives.device)
    of_negatives = (2 * sums - sums[-1]) / (num_p * num_n)
    of_positives = (num_n - 2 * above).double() / (num_p * num_n)
    best = torch.zeros_like(sums)
    choices = torch.empty(num_p, num_n + 1, dtype=torch.int32, device=positives.device)
    for i in range(num_p):
        precision = (i + 1) / (i + 1 + above).double()
        best = best + positives[i] * of_positives + of_negatives
        best -= _SIGNS[update] * epsilon / num_p * precision
        best, choice = best.cummax(0)
        choices[i] = choice
    chosen, last = [], num_n
    for row in choices.cpu().flip(0):
        last = int(row[last])
        chosen.append(last)
    return torch.tensor(chosen[::-1], device=positives.device)


def _positives_below(above: torch.Tensor, num_n: int) -> torch.Tensor:
    """(N,) positives below each negative, by rank, from the number of negatives above each."""
    return len(above) - torch.bincount(above, minlength=num_n + 1).cumsum(0)[:num_n]
