# SPDX-License-Identifier: Apache-2.0
"""What docs/scaling.md says of the loss on one process, on small minibatches."""

import re

import pytest

from benchmarks import scaling as module

SMALL = {"images": 2, "windows": 40, "classes": 10, "overlaps": 1, "objects": 6, "memory": 0}


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.setattr(module, "CENTER", SMALL)
    monkeypatch.setattr(module, "peak_mebibytes", lambda work, device: 1.0)
    return module


def test_a_memory_holds_17_bytes_a_detection(scaling):
    detections, held = (
        int(x.replace(",", ""))
        for x in re.findall(r"[\d,]+(?= (?:det|byt))", scaling.remembered_bytes())
    )
    assert detections > 0
    assert held == 17 * detections


@pytest.mark.parametrize("name", list(SMALL))
def test_each_factor_has_a_row_a_value(scaling, name):
    values = (0, 1) if name == "memory" else (5, 10)
    lines = scaling.measure_factor(name, values, repeats=1).splitlines()
    cells = [[x.strip() for x in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in cells] == [
        name,
        cells[1][0],
        *map(str, values),
        "exponent",
        "of the last step",
    ]
    loss = cells[0].index("loss")
    assert all(float(row[loss]) > 0 for row in cells[2:4])


def test_what_a_gpu_ranks_of_shared_classes_does_not_grow_with_the_gpus(scaling):
    numbers = [len(scaling.make_detections(n, 80 // n, 5).scores) for n in (1, 8)]
    assert numbers[0] == numbers[1]
    assert all(x > 0 for x in scaling.rank(2, 4, 10))
