# SPDX-License-Identifier: Apache-2.0
"""The fully connected layers of a box head as thin ones (Girshick 2015, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..layers import LowRankLinear, truncated_svd


@dataclass(frozen=True)
class LayerCompression:
    """
    What became of one layer: its name in the head, its shape (outputs, inputs), the rank, and what
    the weights lost (Frobenius norm, as a share of that of the weights).
    """

    name: str
    shape: tuple[int, int]
    rank: int
    error: float


def factorize_linear(box_head: nn.Module, ranks: Sequence[int]) -> None:
    """
    Puts low-rank layers with random weights in the place of the head's linear layers.

    Args:
        box_head: changed in place.
        ranks: of its linear layers in their order; 0 keeps one.

    Raises:
        ValueError: not as many ranks as layers, or a rank that the layer cannot have.
    """
    for name, layer, rank in _pairs(box_head, ranks):
        limit = min(layer.weight.shape)
        if rank > limit:
            raise ValueError(f"rank of {name}: expected at most {limit}, got {rank}")
        _replace(box_head, name, LowRankLinear(layer.in_features, layer.out_features, rank))


@torch.no_grad()
def compress(box_head: nn.Module, ranks: Sequence[int]) -> list[LayerCompression]:
    """
    As :func:`factorize_linear`, but the new layers do what the layers did, as nearly as their
    ranks allow: truncated SVD of the weights, the bias as it was.
    """
    report = []
    for name, layer, rank in _pairs(box_head, ranks):
        try:
            thin = truncated_svd(layer.weight, rank)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        replacement = LowRankLinear(layer.in_features, layer.out_features, rank).to(layer.weight)
        weights = {"0.weight": thin.first, "1.weight": thin.second, "1.bias": layer.bias}
        replacement.load_state_dict(weights)
        _replace(box_head, name, replacement)
        shape = (layer.out_features, layer.in_features)
        report.append(LayerCompression(name, shape, rank, thin.error))
    return report


def _pairs(box_head: nn.Module, ranks: Sequence[int]) -> list[tuple[str, nn.Linear, int]]:
    if any(isinstance(x, LowRankLinear) for x in box_head.modules()):
        raise ValueError("ranks: expected a box head that is whole, got one that is compressed")
    layers = [(name, x) for name, x in box_head.named_modules() if isinstance(x, nn.Linear)]
    if len(ranks) != len(layers) or any(rank < 0 for rank in ranks):
        names = ", ".join(name for name, _ in layers)
        raise ValueError(
            f"ranks: expected {len(layers)}, one for each of {names}, 0 or more, got {list(ranks)}"
        )
    return [(name, layer, rank) for (name, layer), rank in zip(layers, ranks, strict=True) if rank]


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own_name = name.rpartition(".")
    setattr(module.get_submodule(parent), own_name, layer)
