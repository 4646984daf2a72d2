# SPDX-License-Identifier: Apache-2.0
"""The searched functions of a loss: those of the config, not those of the weights that it loads."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import nn

from ..layers import ParameterizedAPLoss

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def preserve_loss_buffers(model: nn.Module) -> Iterator[None]:
    """
    What is loaded meanwhile leaves control points and gradient scales of the losses as they are.

    They are in a checkpoint, for what was trained to be known by it. But a run that begins with the
    weights of another, as samples of a search may, is to train with the loss of its own config.
    """
    losses = {
        name: (module, {key: value.clone() for key, value in module.named_buffers()})
        for name, module in model.named_modules()
        if isinstance(module, ParameterizedAPLoss)
    }
    yield
    for name, (module, own) in losses.items():
        loaded = dict(module.named_buffers())
        if all(torch.equal(loaded[key].to(value), value) for key, value in own.items()):
            continue
        logger.warning(
            f"{name}: the weights were trained with other functions of Parameterized AP Loss; "
            "training takes those of the config"
        )
        with torch.no_grad():
            for key, value in own.items():
                loaded[key].copy_(value)
