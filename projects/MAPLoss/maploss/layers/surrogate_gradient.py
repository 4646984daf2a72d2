# SPDX-License-Identifier: Apache-2.0
"""Losses whose gradient is not the derivative of their value, but chosen."""

from collections.abc import Sequence
from typing import Any

import torch


class _SurrogateGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        gradients = rest[: len(rest) // 2]
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.saved_tensors
        none = (None,) * (1 + len(gradients))
        return (*none, *(grad_output.to(x.dtype) * x for x in gradients))


def attach_gradient(
    value: torch.Tensor, inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> torch.Tensor:
    """
    The value, with a graph: its gradient by each of the inputs is the one chosen, whatever the
    value was made of.

    Args:
        value: 0-d.
        inputs: of any shapes.
        gradients: as many as inputs, of the same shapes and dtypes.

    Returns:
        0-d, equal to `value`.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = attach_gradient(x.max(), [x], [torch.tensor([0.5, -0.5])])
        >>> (3 * loss).backward()
        >>> x.grad
        tensor([ 1.5000, -1.5000])
    """
    return _SurrogateGradient.apply(value.detach(), *gradients, *inputs)


def scale_gradient(x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """
    The value of x, with `scale` times its gradient.

    Args:
        x: any shape.
        scale: a number, or 0-d.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> scale_gradient(x, 7.0).backward()
        >>> x.grad
        tensor(7.)
    """
    return x.detach() + scale * (x - x.detach())
