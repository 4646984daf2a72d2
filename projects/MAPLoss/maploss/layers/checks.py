# SPDX-License-Identifier: Apache-2.0
"""Checks of the layers' public inputs: each says what was expected and what came."""

from collections.abc import Sequence

import torch


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """
    Checks a name that is to be one of several.

    Args:
        name: of the argument, for the message.
        value: what came.
        choices: what there is to choose from.

    Raises:
        ValueError: `value` is none of them.

    Example:
        >>> check_choice("form", "cubic", ["linear", "square"])
        Traceback (most recent call last):
        ...
        ValueError: form: expected one of linear, square, got 'cubic'
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int | str]) -> None:
    """
    Checks the shape of a tensor.

    Args:
        name: of the argument, for the message.
        tensor: what came.
        shape: the size of each dimension; a letter stands for any.

    Raises:
        TypeError: no tensor.
        ValueError: another shape.

    Example:
        >>> check_shape("boxes", torch.zeros(3, 5), ("R", 4))
        Traceback (most recent call last):
        ...
        ValueError: boxes: expected shape (R, 4), got (3, 5)
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        want = ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape ({want}), got {tuple(tensor.shape)}")


def check_int64(name: str, tensor: torch.Tensor) -> None:
    """
    Checks a tensor of indices.

    Args:
        name: of the argument, for the message.
        tensor: what came.

    Raises:
        TypeError: its dtype is not int64.

    Example:
        >>> check_int64("image_ids", torch.zeros(3))
        Traceback (most recent call last):
        ...
        TypeError: image_ids: expected dtype torch.int64, got torch.float32
    """
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype torch.int64, got {tensor.dtype}")


def check_mask(name: str, mask: torch.Tensor, size: int) -> None:
    """
    Checks a mask.

    Args:
        name: of the argument, for the message.
        mask: what came.
        size: how many elements there are to be.

    Raises:
        ValueError: another shape than (size,).
        TypeError: its dtype is not bool.

    Example:
        >>> check_mask("is_kept", torch.ones(2), 2)
        Traceback (most recent call last):
        ...
        TypeError: is_kept: expected dtype torch.bool, got torch.float32
    """
    check_shape(name, mask, (size,))
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype torch.bool, got {mask.dtype}")


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raises FloatingPointError if there are nan or infinite numbers."""
    is_finite = torch.isfinite(tensor)
    if not bool(is_finite.all()):
        raise FloatingPointError(
            f"{name}: {int((~is_finite).sum())} of {tensor.numel()} are not finite"
        )


def check_scores(scores: torch.Tensor, shape: Sequence[int | str]) -> None:
    """
    Checks scores; waits for the device.

    Args:
        scores: what came.
        shape: as for :func:`check_shape`.

    Raises:
        ValueError: another shape.
        TypeError: a dtype that is not float32 or float64.
        FloatingPointError: a score that is not finite.

    Example:
        >>> check_scores(torch.tensor([0.0, float("nan")]), ("D",))
        Traceback (most recent call last):
        ...
        FloatingPointError: scores: 1 of 2 are not finite
    """
    check_shape("scores", scores, shape)
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scores: expected torch.float32 or torch.float64, got {scores.dtype}")
    check_finite("scores", scores)


def check_positive(name: str, value: float) -> None:
    """
    Checks a number that is to be above 0.

    Args:
        name: of the argument, for the message.
        value: what came.

    Raises:
        ValueError: it is not above 0, or not finite.

    Example:
        >>> check_positive("delta", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: delta: expected a number above 0, got -1.0
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a number above 0, got {value}")


def check_fraction(name: str, value: float) -> None:
    """
    Checks a number that is to be in [0, 1], as an IoU is.

    Args:
        name: of the argument, for the message.
        value: what came.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_fraction("iou_thresh", 50)
        Traceback (most recent call last):
        ...
        ValueError: iou_thresh: expected a number in [0, 1], got 50
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
