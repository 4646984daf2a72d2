# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from maploss.engine import ProgressWriter


@pytest.fixture
def write(caplog, monkeypatch):
    """Returns the lines that a writer of 100 iterations logs at an iteration, given scalars."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def _write(iteration, **scalars):
        with EventStorage(iteration) as storage, caplog.at_level(logging.INFO, "maploss"):
            storage.put_scalars(**scalars)
            ProgressWriter(100).write()
        return [record.getMessage() for record in caplog.records]

    return _write


def test_the_line_shows_all_that_there_is(write):
    scalars = {
        "total_loss": 2.5,
        "map/minibatch_map": 0.4321,
        "loss_score_reg": 0.01,
        "lr": 0.05,
        "time": 2.0,
    }
    assert write(39, **scalars) == [
        "iteration 39/100  ETA 0:02:00  loss 2.5000  minibatch mAP 0.432  regulariser 0.0100  "
        "lr 0.05  2.000 s/iteration"
    ]


def test_what_is_missing_is_left_out(write):
    assert write(0, total_loss=1.0) == ["iteration 0/100  loss 1.0000"]


def test_nothing_is_written_after_the_last_iteration(write):
    assert write(99, total_loss=1.0)
    assert len(write(100, total_loss=1.0)) == 1
