# SPDX-License-Identifier: Apache-2.0
"""Checks of the layers' public inputs: each says what was expected and what came."""

from collections.abc import Sequence

import torch


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int | str]) -> None:
    """Raises ValueError unless `tensor` has this shape; a letter stands for any size."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        want = ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape ({want}), got {tuple(tensor.shape)}")


def check_int64(name: str, tensor: torch.Tensor) -> None:
    """Raises TypeError unless `tensor` holds int64 indices."""
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype torch.int64, got {tensor.dtype}")


def check_mask(name: str, mask: torch.Tensor, size: int) -> None:
    """Raises ValueError or TypeError unless `mask` is (size,) bool."""
    check_shape(name, mask, (size,))
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype torch.bool, got {mask.dtype}")


def check_scores(scores: torch.Tensor, shape: Sequence[int | str]) -> None:
    """Raises ValueError or TypeError on a wrong shape or dtype, FloatingPointError on nan, inf."""
    check_shape("scores", scores, shape)
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scores: expected torch.float32 or torch.float64, got {scores.dtype}")
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).sum())
        raise FloatingPointError(f"scores: {bad} of {scores.numel()} are not finite")


def check_ranking(
    scores: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor | None = None
) -> None:
    """
    Raises ValueError, TypeError or FloatingPointError unless these are scores (D,), labels (D,)
    int64 of 1, 0 or -1, and (P,) numbers in [0, 1], one for each label 1.
    """
    check_scores(scores, ("D",))
    check_shape("labels", labels, (len(scores),))
    check_int64("labels", labels)
    if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) <= 1:
        raise ValueError(f"labels: expected 1, 0 or -1, got {labels.unique().tolist()}")
    if quality is None:
        return
    check_shape("quality", quality, (int((labels == 1).sum()),))
    if not ((quality >= 0) & (quality <= 1)).all():  # nan is not
        raise ValueError(
            f"quality: expected numbers in [0, 1], got {quality.min():g} to {quality.max():g}"
        )


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless `value` is a finite number above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a number above 0, got {value}")
