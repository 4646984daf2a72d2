# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from benchmarks import bm_map_loss

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_exactly_as_many_classes_have_objects_as_are_asked_for():
    make_minibatch = bm_map_loss.make_minibatch
    for num_present in (1, 4, 20):
        batch = make_minibatch(
            16, CPU, num_windows=20, num_classes=20, max_objects=8, num_present=num_present
        )
        assert batch.gt_classes.unique().tolist() == list(range(num_present))
    with pytest.raises(ValueError, match=r"num_present: expected at most \d+, got 20"):
        make_minibatch(1, CPU, num_windows=20, num_present=20)


def test_the_code_of_another_checkout_takes_turns_with_this_one(monkeypatch):
    monkeypatch.setattr(bm_map_loss, "peak_mebibytes", lambda work, device: 1.0)
    rows = bm_map_loss.measure_many_classes(CPU, REPOSITORY, repeats=1, num_windows=20)
    *ours, before = rows
    assert before.milliseconds > 0
    for row in ours:
        assert row.ratio == pytest.approx(row.milliseconds / before.milliseconds)
        assert row.ratio_to == "before"
