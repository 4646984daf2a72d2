# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers import average_precision, pair_gradient


def random_list(seed: int, count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, generator=generator, dtype=torch.float64)
    return scores, torch.randint(-2, 5, (count,), generator=generator)


def test_a_small_list_by_hand():
    # Far apart: H is 0 or 1. False, true, false, true: ranks 2 and 4, of 2 objects.
    scores = torch.tensor([9.0, 6.0, 3.0, 0.0])
    gradient = pair_gradient(scores, torch.tensor([-1, 0, -1, 1]), 2)
    first, second = 1 / (2 * 2), 1 / (2 * 4)
    assert gradient.tolist() == pytest.approx([-first - second, first, -second, 2 * second])


def test_far_apart_its_sum_is_what_ap_without_interpolation_lacks():
    for seed in range(20):
        scores, matched = random_list(seed)
        order = scores.argsort().argsort() * 10.0
        gradient = pair_gradient(order, matched, 5)
        is_counted = matched[order.argsort(descending=True)] != -2
        gts = matched[order.argsort(descending=True)][is_counted].tolist()
        precisions = []
        for rank, gt in enumerate(gts, 1):
            if gt >= 0 and gt not in gts[: rank - 1]:
                precisions.append((len(precisions) + 1) / rank)
        lack = sum(1 - p for p in precisions) / 5
        assert float(gradient.clamp(min=0).sum()) == pytest.approx(lack)


def test_it_sums_to_zero_and_ignores_matches_of_difficult_objects():
    for seed in range(20):
        scores, matched = random_list(seed)
        gradient = pair_gradient(scores, matched, 5)
        assert float(gradient.sum().abs()) < 1e-12
        assert not gradient[matched == -2].any()
        assert gradient.any()


def test_no_pair_in_the_wrong_order_means_no_gradient():
    matched = torch.tensor([0, 1, -1, -1])
    scores = torch.tensor([5.0, 4.0, 1.9, 0.0])
    assert not pair_gradient(scores, matched, 2, margin=1.0).any()
    # Within the margin it still counts.
    assert pair_gradient(scores, matched, 2, margin=3.0)[2] < 0


def test_following_it_sorts_the_list():
    scores, matched = random_list(1)
    before = float(average_precision(scores, matched, 5))
    for _ in range(200):
        scores = scores + 0.5 * pair_gradient(scores, matched, 5)
    assert before < 0.9
    assert float(average_precision(scores, matched, 5)) == 1.0


@pytest.mark.parametrize("matched", [[], [-1, -1], [0, 1], [-2, 0], [-2]])
def test_without_a_pair_there_is_no_gradient(matched):
    matched = torch.tensor(matched, dtype=torch.int64)
    assert not pair_gradient(torch.zeros(len(matched)), matched, 2).any()


@pytest.mark.parametrize("num_gt", [0, 1])
def test_more_objects_than_there_are_is_an_error(num_gt):
    with pytest.raises(ValueError, match=f"num_gt.*got {num_gt}"):
        pair_gradient(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0, -1, 1]), num_gt)


def test_a_margin_that_is_not_above_0_is_named():
    with pytest.raises(ValueError, match=r"margin.*got -1"):
        pair_gradient(torch.zeros(2), torch.tensor([0, -1]), 1, margin=-1.0)
