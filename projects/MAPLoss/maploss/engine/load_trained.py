# SPDX-License-Identifier: Apache-2.0
"""A detector as a run has left it, for the tools that go on from there."""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..data.declared import register_declared_datasets
from .checkpoints import load_for_evaluation
from .safe_checkpointer import SafeCheckpointer
from .setup import load_config


def load_trained(config_file: str, overrides: Sequence[str]) -> tuple[CfgNode, nn.Module]:
    """
    The config, with MODEL.WEIGHTS the trained ones, and the model on the CPU.

    The weights are MODEL.WEIGHTS of the overrides, or else the last checkpoint in OUTPUT_DIR, or
    else MODEL.WEIGHTS of the config: in the config.yaml of a run, these are what it began with.

    Raises:
        OSError, ValueError: as :func:`load_config` and :func:`load_for_evaluation`.
    """
    cfg = load_config(config_file, overrides)
    register_declared_datasets(cfg.DATASETS.DECLARED)
    cpu_cfg = cfg.clone()
    cpu_cfg.MODEL.DEVICE = "cpu"
    model = build_model(cpu_cfg)
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR)
    if "MODEL.WEIGHTS" not in overrides and checkpointer.has_checkpoint():
        cfg.MODEL.WEIGHTS = os.path.abspath(checkpointer.get_checkpoint_file())
    load_for_evaluation(
        model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=False, allow_pickle=cfg.PICKLE_ON
    )
    return cfg, model
