# SPDX-License-Identifier: Apache-2.0
"""The bytes that docs/scaling.md tells, against those that processes exchange."""

import pytest
import torch

from benchmarks.bm_global_minibatch import Setting, formula_bytes, run_processes


@pytest.fixture
def results():
    """What each of some processes has measured of a small minibatch."""

    def run(num_ranks, **settings):
        sizes = {"images": 2, "windows": 60, "classes": 10, "max_objects": 6, "repeats": 1}
        return run_processes(num_ranks, Setting(**{**sizes, **settings}))

    return run


@pytest.mark.parametrize(
    ("num_ranks", "settings"),
    [(3, {}), (2, {"memory": 1}), (2, {"gradient": "mee"})],
    ids=str,
)
def test_processes_exchange_as_many_bytes_as_the_formula_says(results, num_ranks, settings):
    found = results(num_ranks, **settings)
    for result in found:
        assert (result.sent, result.got) == (result.formula_sent, result.formula_got)
    # What is sent arrives.
    assert sum(x.sent for x in found) == sum(x.got for x in found) > 0


def test_one_process_exchanges_nothing():
    told = torch.tensor([[5, 0, 7]])
    for settings in ({}, {"memory": 1}, {"gradient": "mee"}):
        assert formula_bytes(told, 0, Setting(**settings)) == (0, 0)


def test_bytes_of_shared_classes_do_not_grow_with_the_processes():

    def lists(num_ranks, **settings):
        """Bytes got, without those that do not depend on the detections."""
        some, none = (torch.full((num_ranks, 64), x) for x in (100, 0))
        setting = Setting(**settings)
        with_none = formula_bytes(none, 0, setting).got
        return formula_bytes(some, 0, setting).got - with_none

    # 12 bytes for each of 6,400 detections, but for those of the own classes.
    assert [lists(n) for n in (2, 8, 64)] == [12 * 6400 * (n - 1) // n for n in (2, 8, 64)]
    assert [lists(n, memory=1) for n in (2, 8, 64)] == [8 * 6400 * (n - 1) for n in (2, 8, 64)]
    assert lists(8, gradient="mee") == 12 * 6400 * 7
