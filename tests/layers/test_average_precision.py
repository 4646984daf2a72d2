# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from maploss.layers import average_precision, precision_recall
from maploss.layers.average_precision import AP_TYPES, recall_weights

from tests.reference import ap_after_nms as reference


@pytest.mark.parametrize("ap_type", AP_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference_with_duplicates_ties_and_ignored_detections(ap_type, dtype):
    generator = torch.Generator().manual_seed(3)
    for case in range(100):
        num_gt = 1 + case % 13
        count = int(torch.randint(0, 40, (), generator=generator))
        matched = torch.randint(-2, num_gt, (count,), generator=generator)
        scores = torch.randn(count, generator=generator, dtype=dtype)
        if case % 3 == 0:
            scores = scores.round()
        order = np.argsort(-scores.numpy(), kind="stable")
        expected = reference.average_precision(order, matched.tolist(), num_gt, ap_type)
        found = average_precision(scores, matched, num_gt, ap_type)
        assert found.dtype == dtype
        assert found.shape == ()
        assert float(found) == pytest.approx(
            expected, abs=1e-6 if dtype == torch.float32 else 1e-12
        )


def test_recall_levels_reached_exactly_are_not_lost_to_rounding():
    # 3 of 10 objects: levels 0, .1, .2 and .3 are reached; np.arange puts .3 just above 3 / 10.
    assert np.arange(0, 1.1, 0.1)[3] > 3 / 10
    scores, matched = torch.arange(3).float(), torch.arange(3)
    assert float(average_precision(scores, matched, 10, "voc07")) == pytest.approx(4 / 11)


@pytest.mark.parametrize("ap_type", AP_TYPES)
@pytest.mark.parametrize("num_gt", [1, 3, 10, 57])
def test_weights_sum_to_one_over_all_objects(ap_type, num_gt):
    assert float(recall_weights(num_gt, num_gt, ap_type).sum()) == pytest.approx(1.0)


def test_a_second_match_of_an_object_is_a_false_positive():
    scores = torch.tensor([3.0, 2.0, 1.0])
    assert float(average_precision(scores, torch.tensor([0, 0, 1]), 2)) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_a_match_of_a_difficult_object_is_ignored():
    scores = torch.tensor([3.0, 2.0, 1.0])
    assert float(average_precision(scores, torch.tensor([-2, 0, -2]), 1)) == 1.0


def test_tied_scores_keep_their_input_order():
    scores = torch.zeros(2)
    assert float(average_precision(scores, torch.tensor([-1, 0]), 1)) == 0.5
    assert float(average_precision(scores, torch.tensor([0, -1]), 1)) == 1.0


def test_objects_may_have_any_number():
    matched = torch.tensor([10**15, -1, 7])
    assert float(average_precision(torch.tensor([3.0, 2.0, 1.0]), matched, 2)) == pytest.approx(
        5 / 6
    )


def test_without_detections_ap_is_0_and_without_objects_it_is_undefined():
    none = torch.zeros(0)
    assert float(average_precision(none, none.long(), 4)) == 0.0
    assert average_precision(none, none.long(), 0).isnan()
    assert average_precision(torch.ones(2), torch.tensor([-1, -2]), 0).isnan()


def test_precision_and_recall_of_a_small_list():
    precision, recall = precision_recall(
        torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([1, 0, -1, -2]), 4
    )
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert recall.tolist() == pytest.approx([1 / 4, 1 / 4, 2 / 4])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((torch.zeros(2, 1), torch.zeros(2).long(), 1), ValueError, r"scores.*\(D,\).*\(2, 1\)"),
        ((torch.zeros(2), torch.zeros(3).long(), 1), ValueError, r"matched_gt.*\(2,\).*\(3,\)"),
        ((torch.zeros(2), torch.zeros(2), 1), TypeError, "matched_gt.*int64.*float32"),
        ((torch.zeros(2).long(), torch.zeros(2).long(), 1), TypeError, "scores.*float32 or.*int64"),
        ((torch.zeros(2).half(), torch.zeros(2).long(), 1), TypeError, "scores.*got torch.float16"),
        ((torch.zeros(2), torch.zeros(2).long(), 0), ValueError, "num_gt.*got 0"),
        ((torch.zeros(2), torch.tensor([0, -3]), 1), ValueError, "at least -2, got -3"),
        ((torch.zeros(2), torch.tensor([0, 1]), 1), ValueError, "num_gt.*2 objects.*got 1"),
        ((torch.zeros(2), torch.zeros(2).long(), -1), ValueError, "num_gt.*got -1"),
        ((torch.tensor([float("nan")]), torch.tensor([0]), 1), FloatingPointError, "1 of 1"),
        ((torch.zeros(1), torch.tensor([0]), 1, "voc12"), ValueError, "ap_type.*'voc12'"),
    ],
)
def test_bad_input_is_named(arguments, error, says):
    with pytest.raises(error, match=says):
        average_precision(*arguments)
