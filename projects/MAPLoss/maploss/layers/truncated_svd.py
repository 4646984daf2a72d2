# SPDX-License-Identifier: Apache-2.0
"""
A linear layer as two of low rank, by truncated SVD of its weights (Girshick 2015, section 3.1).

Shape letters: U outputs, V inputs, T the rank.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .checks import check_shape


@dataclass(frozen=True)
class Compression:
    """
    The best approximation of a linear layer of rank T.

    Attributes:
        first: (T, V) weights of the first layer, which has no bias.
        second: (U, T) weights of the second layer, which keeps the bias of the layer.
        error: Frobenius norm of what is lost, as a share of that of the weights.
    """

    first: torch.Tensor
    second: torch.Tensor
    error: float


@torch.no_grad()
def truncated_svd(weight: torch.Tensor, rank: int) -> Compression:
    """
    The weights of two layers of a given rank that do most nearly what one does.

    W = U S V^T is cut after the `rank` largest singular values: second = U, first = S V^T
    (Girshick 2015, "Fast R-CNN", equation 5 of section 3.1). T (U + V) parameters take the place of
    U V.

    Args:
        weight: (U, V) of nn.Linear, float32 or float64.
        rank: T, from 1 to min(U, V).

    Returns:
        Both weights, and what is lost.

    Raises:
        ValueError, TypeError: another shape, or a rank that a matrix of this shape cannot have.

    Example:
        >>> layers = truncated_svd(torch.diag(torch.tensor([4.0, 3.0])), rank=1)
        >>> layers.second @ layers.first
        tensor([[4., 0.],
                [0., 0.]])
        >>> round(layers.error, 6)
        0.6
    """
    check_shape("weight", weight, ("U", "V"))
    limit = min(weight.shape)
    if not 1 <= rank <= limit:
        raise ValueError(
            f"rank: expected 1 to {limit} for weights of {tuple(weight.shape)}, got {rank}"
        )
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    total = float(s.norm())
    error = float(s[rank:].norm()) / total if total else 0.0
    return Compression(s[:rank, None] * vh[:rank], u[:, :rank].contiguous(), error)


class LowRankLinear(nn.Sequential):
    """
    A linear layer of low rank: two, of `rank` outputs without bias and of `out_features` with it.

    There is no non-linearity between them: (.., in_features) to (.., out_features).

    Example:
        >>> layer = LowRankLinear(in_features=100, out_features=40, rank=5)
        >>> layer(torch.zeros(2, 100)).shape
        torch.Size([2, 40])
        >>> sum(x.numel() for x in layer.parameters()) == 5 * (100 + 40) + 40
        True
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features))
