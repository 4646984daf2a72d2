# SPDX-License-Identifier: Apache-2.0
"""What trains, and how: Detectron2's SGD, or AdamW with the same treatment of parameters."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """
    Optimizer of the parameters that train, as SOLVER.OPTIMIZER says: "SGD" or "AdamW".

    Weight decay of norms and biases and SOLVER.CLIP_GRADIENTS are those of Detectron2 for both.

    Raises:
        ValueError: another name.
    """
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    if cfg.SOLVER.OPTIMIZER != "AdamW":
        raise ValueError(f"SOLVER.OPTIMIZER: expected SGD or AdamW, got {cfg.SOLVER.OPTIMIZER!r}")
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer_class = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return optimizer_class(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


def freeze_except(model: torch.nn.Module, prefixes: Sequence[str]) -> None:
    """
    Freezes all parameters but those whose names begin with one of `prefixes`; none freezes nothing.

    Raises:
        ValueError: a prefix that no parameter has.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"MODEL.TRAIN_ONLY: expected beginnings of names such as {names[-1]!r}, "
                f"got {prefix!r}"
            )
    if prefixes:
        for name, param in model.named_parameters():
            param.requires_grad_(param.requires_grad and name.startswith(tuple(prefixes)))
