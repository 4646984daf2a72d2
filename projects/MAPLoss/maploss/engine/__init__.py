# SPDX-License-Identifier: Apache-2.0
"""Around the training loop: what is settled before, and what is told meanwhile."""

from .checkpoints import load_for_evaluation, loading, wrote_checkpoint
from .optimizer import build_optimizer
from .progress_writer import ProgressWriter
from .setup import prepare_config
from .trainer import LocatingTrainer

__all__ = [
    "LocatingTrainer",
    "ProgressWriter",
    "build_optimizer",
    "load_for_evaluation",
    "prepare_config",
]
