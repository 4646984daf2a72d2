# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders share: a small config, and a small data set on disk."""

import logging
import runpy
import sys
from pathlib import Path

import cv2
import maploss  # noqa: F401 (registers the models)
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from maploss.config import add_maploss_config
from maploss.data.proposals import write_proposals

REPOSITORY = Path(__file__).resolve().parents[1]
# Tensors are tiny here: two threads gain nothing, and wait for each other where a core is busy,
# which makes the tests of the configs ten times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _loggers_as_before():
    """A run sets up loggers for the process, and what they then say caplog does not see."""
    loggers = [logging.getLogger(name) for name in ("maploss", "detectron2", "fvcore")]
    before = [(x.propagate, x.level, x.handlers[:]) for x in loggers]
    yield
    for logger, (propagate, level, handlers) in zip(loggers, before, strict=True):
        logger.propagate, logger.handlers = propagate, handlers
        logger.setLevel(level)


@pytest.fixture
def call_tool(monkeypatch, capsys):
    """Calls the main() of a file in tools/ with arguments: its status, output and errors."""

    def call(name, *args):
        # Its handler would go on writing to what capsys has closed.
        monkeypatch.setattr("detectron2.utils.logger.setup_logger", lambda **_: None)
        # By path: a checkout of Detectron2 has a package "tools" too.
        main = runpy.run_path(str(REPOSITORY / "tools" / f"{name}.py"))["main"]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
        status = main()
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def storage():
    """An event storage, which the heads need in training."""
    with EventStorage() as event_storage:
        yield event_storage


@pytest.fixture
def tiny_cfg() -> CfgNode:
    """The config of the shapes, for a CPU, with fewer channels."""
    cfg = get_cfg()
    add_maploss_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / "configs/Shapes-Detection/map.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SMALL_CONVNET.CHANNELS = [4, 4, 4, 4]
    cfg.MODEL.SMALL_CONVNET.NORM = ""
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 2
    cfg.MODEL.MAP_LOSS.AP_TYPE = "area"
    return cfg


@pytest.fixture
def tiny_dataset(tmp_path):
    """Name and proposal file of a registered data set: 6 images of noise, 4 classes, 20 windows."""
    rng = np.random.default_rng(0)
    records, boxes = [], []
    for i in range(6):
        file_name = str(tmp_path / f"{i}.png")
        cv2.imwrite(file_name, rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        corners = rng.uniform(0, [40, 24], size=(20, 2))
        windows = np.concatenate([corners, corners + rng.uniform(8, 24, (20, 2))], axis=1)
        annotations = [
            {
                "bbox": windows[k].tolist(),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": (i + k) % 4,
                "difficult": int(k == 2),
                "iscrowd": 0,
            }
            for k in range(3)
        ]
        records.append(
            {
                "file_name": file_name,
                "image_id": f"{i}",
                "height": 48,
                "width": 64,
                "annotations": annotations,
            }
        )
        boxes.append(windows.astype(np.float32))
    proposal_file = str(tmp_path / "proposals.npz")
    write_proposals(proposal_file, [record["image_id"] for record in records], boxes)
    name = f"tiny_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [dict(record) for record in records])
    MetadataCatalog.get(name).set(thing_classes=list("abcd"), ap_type="area")
    yield name, proposal_file
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
