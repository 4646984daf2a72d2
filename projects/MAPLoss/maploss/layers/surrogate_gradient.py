# SPDX-License-Identifier: Apache-2.0
"""Losses whose gradient is not the derivative of their value, but given."""

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
    The value, with a graph: its gradient by each of the inputs is the one given, whatever the value
    was made of.

    Args:
        value: 0-d. inputs, gradients: as many of each, of the same shapes and dtypes.
    """
    return _SurrogateGradient.apply(value.detach(), *gradients, *inputs)


def scale_gradient(x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """The value of x, with `scale` times its gradient."""
    return x.detach() + scale * (x - x.detach())
