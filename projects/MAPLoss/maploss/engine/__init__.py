# SPDX-License-Identifier: Apache-2.0
"""Around the training loop: what is settled before, and what is told meanwhile."""

from . import torchvision_weights as torchvision_weights  # registers a path
from .box_targets import set_box_targets
from .checkpoints import load_for_evaluation
from .failures import TrainingStopped
from .feature_cache import use_feature_cache
from .load_trained import load_trained
from .loaders import build_test_loader, training_records
from .optimizer import build_optimizer, freeze_except
from .progress_writer import ProgressWriter
from .setup import load_config, prepare_config, prepare_device, preserve_config, show_as_at_test
from .trainer import Trainer

__all__ = [
    "ProgressWriter",
    "Trainer",
    "TrainingStopped",
    "build_optimizer",
    "build_test_loader",
    "freeze_except",
    "load_config",
    "load_for_evaluation",
    "load_trained",
    "prepare_config",
    "prepare_device",
    "preserve_config",
    "set_box_targets",
    "show_as_at_test",
    "training_records",
    "use_feature_cache",
]
