# SPDX-License-Identifier: Apache-2.0
"""What the mAP loss may take of a GPU's time, held on a CPU."""

import pytest
import torch
from maploss.layers import MAPLossSettings

from benchmarks import bm_operations

CASES = [
    "default, ten overlaps",
    "error_driven, ten overlaps",
    "error_driven, one overlap",
    "error_driven with boxes, pooled .5",
    "mee, label_aware, ten overlaps",
    "mee, exact, ten overlaps",
]
X = torch.arange(6.0)
MASK, INDEX = X > 2, torch.tensor([0, 0, 3])


@pytest.fixture
def count():
    """The counts of a case by name, or of a function."""
    by_name = {case.name: case for case in bm_operations.CASES}

    def count(what):
        if isinstance(what, str):
            what = bm_operations.make_work(by_name[what], torch.device("cpu"))
        counts = bm_operations.count_operations(what)
        return counts.all.total(), counts.waiting.total()

    return count


@pytest.mark.parametrize("name", CASES)
def test_operations_and_synchronisations_are_within_their_limits(count, name):
    (case,) = (x for x in bm_operations.CASES if x.name == name)
    operations, waiting = count(name)
    assert operations <= case.most_operations
    assert waiting <= case.most_waiting


def test_neither_classes_nor_overlaps_take_more_operations(count):
    for large, small in zip(count(bm_operations.LARGE), count(bm_operations.SMALL), strict=True):
        assert small == pytest.approx(large, rel=bm_operations.MOST_DIFFERENCE)


def test_one_class_is_ranked_once_whether_classes_are_pooled_or_not(count):
    def sorts_and_all(pooled):
        settings = MAPLossSettings(pooled=pooled, box_gradient="error_driven")
        case = bm_operations.Case("", 1, 1, settings, 0, 0)
        counts = bm_operations.count_operations(
            bm_operations.make_work(case, torch.device("cpu"))
        ).all
        return sum(n for name, n in counts.items() if "sort" in name), counts.total()

    by_class, joint = sorts_and_all(0.0), sorts_and_all(1.0)
    assert joint[0] == by_class[0]
    assert joint[1] < by_class[1] + 10


def test_all_cases_are_held():
    assert [case.name for case in bm_operations.CASES] == CASES


@pytest.mark.parametrize(
    "work",
    [
        lambda: X.sum().item(),
        lambda: float(X[0]),
        lambda: bool(MASK.any()),
        lambda: X.tolist(),
        lambda: X.numpy(),
        lambda: MASK.nonzero(),
        lambda: torch.where(MASK),
        lambda: X[MASK],
        lambda: X.clone().__setitem__(MASK, X[:3]),
        lambda: X.masked_select(MASK),
        lambda: X.unique(),
        lambda: torch.unique_consecutive(X),
        lambda: torch.bincount(INDEX),
        lambda: torch.repeat_interleave(INDEX),
        lambda: X[:3].repeat_interleave(INDEX),
        lambda: torch.equal(X, X),
    ],
)
def test_what_the_host_must_read_is_one_synchronisation(count, work):
    assert count(work)[1] == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda: X.clone().__setitem__(MASK, 0.0),
        lambda: X[INDEX],
        lambda: X[:3].repeat_interleave(INDEX, output_size=3),
        lambda: torch.where(MASK, X, 0.0),
        lambda: X.sort(),
        lambda: X.masked_fill(MASK, 1.0),
        lambda: torch.searchsorted(X, X),
    ],
)
def test_what_stays_on_the_device_is_no_synchronisation(count, work):
    operations, waiting = count(work)
    assert waiting == 0
    assert operations > 0


def test_backward_counts_too_and_each_call_once(count):
    def forward_and_backward():
        x = X.clone().requires_grad_()  # 1
        (x * x).sum().backward()  # 2, then at least ones, expand, 2 mul and an add

    assert 8 <= count(forward_and_backward)[0] <= 10
