# SPDX-License-Identifier: Apache-2.0
import time

import pytest
import torch
from maploss.layers.map_loss.part_timer import PartTimer


def test_each_part_has_the_time_between_its_starts_and_the_next():
    timer = PartTimer(torch.device("cpu"))
    for part, wait in (("a", 0.02), ("b", 0.05), ("a", 0.02)):
        timer.start(part)
        time.sleep(wait)
    timer.stop()
    time.sleep(0.1)
    timer.start("c")
    timer.stop()
    seconds = timer.seconds()
    assert seconds.pop("c") < 0.1
    assert set(seconds) == {"a", "b"}
    assert seconds["a"] >= 0.04
    assert seconds["b"] >= 0.05


def test_nothing_started_has_no_time():
    assert PartTimer(torch.device("cpu")).seconds() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_a_part_has_the_time_of_its_work():
    timer = PartTimer(torch.device("cuda"))
    x = torch.randn(4096, 4096, device="cuda")
    timer.start("work")
    for _ in range(20):
        x = x @ x
    timer.start("nothing")
    timer.stop()
    seconds = timer.seconds()
    assert seconds["work"] > seconds["nothing"]
