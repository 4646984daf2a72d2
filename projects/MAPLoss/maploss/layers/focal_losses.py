# SPDX-License-Identifier: Apache-2.0
"""
Focal losses: each score by itself, easy ones with little weight.

All are divided by the number of positives, as in their papers: negatives are many and their sum
hardly grows with their number. p is the sigmoid of a score.

Shape letters: D scores, all windows x classes of the minibatch, P of them positive.
"""

import torch
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from .checks import check_fraction, check_positive
from .ranking_losses.labels import IGNORED, POSITIVE, check_ranking


def focal_loss(
    scores: torch.Tensor, labels: torch.Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> torch.Tensor:
    """
    Sigmoid focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 3).

        L = 1/P [sum_positives -alpha (1 - p)^gamma log p
                 + sum_negatives -(1 - alpha) p^gamma log(1 - p)]

    It is fvcore's, which computes in single precision.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        alpha: weight of positives, in [0, 1].
        gamma: above 0; the larger, the less easy ones count.

    Returns:
        0-d of the scores' dtype; without positives the sum.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label or number.
        FloatingPointError: a score that is not finite.

    Example:
        >>> focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([1, 0]))
        tensor(0.1733)
    """
    check_ranking(scores, labels)
    check_fraction("alpha", alpha)
    check_positive("gamma", gamma)
    targets = (labels == POSITIVE).to(scores.dtype)
    losses = sigmoid_focal_loss(scores, targets, alpha=alpha, gamma=gamma).to(scores.dtype)
    return _per_positive(losses, labels)


def quality_focal_loss(
    scores: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor, *, beta: float = 2.0
) -> torch.Tensor:
    """
    Quality focal loss (Li et al., "Generalized Focal Loss", NeurIPS 2020, equation 2): the score of
    a positive is to be the overlap of its box.

        L = 1/P sum -|y - p|^beta ((1 - y) log(1 - p) + y log p)

    with y the quality of a positive and 0 for a negative. Its least value is not 0.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        quality: (P,) in [0, 1], of the positives in their order, the IoU in the paper; a constant.
        beta: above 0; the larger, the less those near their target count.

    Returns:
        0-d of the scores' dtype; without positives the sum.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label, quality or number.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores, labels = torch.tensor([0.0, 0.0]), torch.tensor([1, 0])
        >>> quality_focal_loss(scores, labels, torch.tensor([1.0]))
        tensor(0.3466)
    """
    check_ranking(scores, labels, quality)
    check_positive("beta", beta)
    targets = _targets(scores, labels, quality)
    entropy = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return _per_positive((targets - scores.sigmoid()).abs().pow(beta) * entropy, labels)


def varifocal_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> torch.Tensor:
    """
    Varifocal loss (Zhang et al., "VarifocalNet: An IoU-aware Dense Object Detector", CVPR 2021,
    equation 2): positives weigh as much as their boxes overlap, only easy negatives weigh less.

        L = 1/P [sum_{y > 0} -y (y log p + (1 - y) log(1 - p))
                 + sum_{y = 0} -alpha p^gamma log(1 - p)]

    with y the quality of a positive and 0 for a negative: a positive of quality 0 is a negative.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        quality: (P,) in [0, 1], of the positives in their order, the IoU in the paper; a constant.
        alpha: weight of negatives, in [0, 1].
        gamma: above 0; the larger, the less easy negatives count.

    Returns:
        0-d of the scores' dtype; without positives the sum.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label, quality or number.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores, labels = torch.tensor([0.0, 0.0]), torch.tensor([1, 0])
        >>> varifocal_loss(scores, labels, torch.tensor([0.5]))
        tensor(0.4765)
    """
    check_ranking(scores, labels, quality)
    check_fraction("alpha", alpha)
    check_positive("gamma", gamma)
    targets = _targets(scores, labels, quality)
    weights = torch.where(targets > 0, targets, alpha * scores.sigmoid().pow(gamma))
    entropy = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return _per_positive(weights * entropy, labels)


def _targets(scores: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """(D,) the quality of positives, 0 of others."""
    places = (labels == POSITIVE).nonzero().squeeze(1)
    return torch.zeros_like(scores).index_copy(0, places, quality.detach().to(scores.dtype))


def _per_positive(losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of (D,) losses that are not ignored, by the number of positives."""
    return (losses * (labels != IGNORED)).sum() / (labels == POSITIVE).sum().clamp(min=1)
