# SPDX-License-Identifier: Apache-2.0
"""Around the training loop: what is settled before, and what is told meanwhile."""

from .progress_writer import ProgressWriter
from .setup import prepare_config

__all__ = ["ProgressWriter", "prepare_config"]
