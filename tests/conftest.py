# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders share: the tiny config and data set of tests/tiny.py, tools."""

import logging
import runpy
import sys

import maploss  # noqa: F401 (registers the models)
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from maploss.data import register_declared_datasets

from tests import tiny
from tests.tiny import REPOSITORY

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
    """The tiny detector with the mAP loss."""
    return tiny.make_cfg()


@pytest.fixture
def tiny_data(tmp_path):
    """The folder of the tiny data set, which is registered until the test ends."""
    tiny.write_data(tmp_path)
    register_declared_datasets(tiny.data_settings(tmp_path)["DATASETS.DECLARED"])
    yield tmp_path
    DatasetCatalog.remove(tiny.NAME)
    MetadataCatalog.remove(tiny.NAME)


@pytest.fixture
def data_cfg(tiny_cfg, tiny_data) -> CfgNode:
    """The tiny detector on the tiny data set."""
    tiny_cfg.merge_from_list(tiny.as_list(tiny.data_settings(tiny_data)))
    return tiny_cfg
