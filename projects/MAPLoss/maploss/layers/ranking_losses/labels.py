# SPDX-License-Identifier: Apache-2.0
"""The labels that all ranking losses take. Shape letters: D scores, P positives, N negatives, T
overlaps."""

import torch

from ..checks import check_int64, check_scores, check_shape

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def check_ranking(
    scores: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor | None = None
) -> None:
    """
    Checks the input of a ranking loss.

    Args:
        scores: is to be (D,) float32 or float64, finite.
        labels: is to be (D,) int64, POSITIVE, NEGATIVE or IGNORED.
        quality: is to be (P,) in [0, 1]; None for a loss that takes none.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label or quality.
        FloatingPointError: a score that is not finite.

    Example:
        >>> check_ranking(torch.zeros(2), torch.tensor([2, 0]))
        Traceback (most recent call last):
        ...
        ValueError: labels: expected 1, 0 or -1, got [0, 2]
    """
    check_scores(scores, ("D",))
    check_shape("labels", labels, (len(scores),))
    check_int64("labels", labels)
    if labels.numel() and not IGNORED <= int(labels.min()) <= int(labels.max()) <= POSITIVE:
        raise ValueError(f"labels: expected 1, 0 or -1, got {labels.unique().tolist()}")
    if quality is None:
        return
    check_shape("quality", quality, (int((labels == POSITIVE).sum()),))
    if not ((quality >= 0) & (quality <= 1)).all():  # nan is not
        raise ValueError(
            f"quality: expected numbers in [0, 1], got {quality.min():g} to {quality.max():g}"
        )


def positives_and_negatives(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where labels are POSITIVE, and where NEGATIVE.

    Args:
        labels: (D,) int64.

    Returns:
        (P,) and (N,) int64, rising.

    Example:
        >>> positives_and_negatives(torch.tensor([0, 1, -1, 0]))
        (tensor([1]), tensor([0, 3]))
    """
    return (
        (labels == POSITIVE).nonzero().squeeze(1),
        (labels == NEGATIVE).nonzero().squeeze(1),
    )


def matched_at_overlaps(is_matched: torch.Tensor | None, positive: torch.Tensor) -> torch.Tensor:
    """
    Which positives are right at each overlap; at the others they are negatives.

    Args:
        is_matched: is to be (T, P) bool with T above 0; None for all, at one overlap.
        positive: (P,) int64, where the positives are.

    Returns:
        (T, P) bool.

    Raises:
        ValueError, TypeError: a wrong shape or dtype.

    Example:
        >>> matched_at_overlaps(None, torch.tensor([3, 7]))
        tensor([[True, True]])
    """
    if is_matched is None:
        return torch.ones_like(positive, dtype=torch.bool)[None]
    check_shape("is_matched", is_matched, ("T", len(positive)))
    if is_matched.dtype != torch.bool:
        raise TypeError(f"is_matched: expected dtype torch.bool, got {is_matched.dtype}")
    if not len(is_matched):
        raise ValueError("is_matched: expected at least one overlap, got none")
    return is_matched
