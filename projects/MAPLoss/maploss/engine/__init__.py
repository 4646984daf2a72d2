# SPDX-License-Identifier: Apache-2.0
"""Around the training loop: what is settled before, and what is told meanwhile."""

from .optimizer import build_optimizer
from .progress_writer import ProgressWriter
from .setup import prepare_config

__all__ = ["ProgressWriter", "build_optimizer", "prepare_config"]
