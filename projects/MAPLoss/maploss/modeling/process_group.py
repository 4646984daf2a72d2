# SPDX-License-Identifier: Apache-2.0
"""The one mAP of all processes that train together."""

import torch
from detectron2.utils import comm

from ..layers.surrogate_gradient import scale_gradient


def all_ranks() -> "torch.distributed.ProcessGroup | None":
    """The processes that train together; None for one."""
    return torch.distributed.group.WORLD if comm.get_world_size() > 1 else None


def scale_for_all_ranks(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    DistributedDataParallel averages gradients over processes, and logs average losses. Here they
    are of the sum: the one mAP of all has the gradients of all proposals.

    Args:
        losses: "loss_map" and "loss_score_reg", as :class:`maploss.layers.MAPLoss` returns them.
    """
    num_ranks = comm.get_world_size()
    return {
        "loss_map": scale_gradient(losses["loss_map"], num_ranks),
        "loss_score_reg": losses["loss_score_reg"] * num_ranks,
    }
