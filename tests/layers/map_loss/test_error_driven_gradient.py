# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers import MAPLossSettings, average_precision, error_driven_gradient

from tests.reference import error_driven_gradient as reference


def random_list(seed: int, count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, generator=generator, dtype=torch.float64)
    return scores, torch.randint(-2, 5, (count,), generator=generator)


def test_a_small_list_by_hand():
    # Far apart: H is 0 or 1. False, true, false, true: ranks 2 and 4, of 2 objects.
    scores = torch.tensor([9.0, 6.0, 3.0, 0.0])
    gradient = error_driven_gradient(scores, torch.tensor([-1, 0, -1, 1]), 2)
    first, second = 1 / (2 * 2), 1 / (2 * 4)
    assert gradient.tolist() == pytest.approx([-first - second, first, -second, 2 * second])


def test_far_apart_its_sum_is_what_ap_without_interpolation_lacks():
    for seed in range(20):
        scores, matched = random_list(seed)
        order = scores.argsort().argsort() * 10.0
        gradient = error_driven_gradient(order, matched, 5)
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
        gradient = error_driven_gradient(scores, matched, 5)
        assert float(gradient.sum().abs()) < 1e-12
        assert not gradient[matched == -2].any()
        assert gradient.any()


def test_no_pair_in_the_wrong_order_means_no_gradient():
    matched = torch.tensor([0, 1, -1, -1])
    scores = torch.tensor([5.0, 4.0, 1.9, 0.0])
    assert not error_driven_gradient(scores, matched, 2, margin=1.0).any()
    # Within the margin it still counts.
    assert error_driven_gradient(scores, matched, 2, margin=3.0)[2] < 0


def test_following_it_sorts_the_list():
    scores, matched = random_list(1)
    before = float(average_precision(scores, matched, 5))
    for _ in range(200):
        scores = scores + 0.5 * error_driven_gradient(scores, matched, 5)
    assert before < 0.9
    assert float(average_precision(scores, matched, 5)) == 1.0


@pytest.mark.parametrize("matched", [[], [-1, -1], [0, 1], [-2, 0], [-2]])
def test_without_a_pair_there_is_no_gradient(matched):
    matched = torch.tensor(matched, dtype=torch.int64)
    assert not error_driven_gradient(torch.zeros(len(matched)), matched, 2).any()


@pytest.mark.parametrize("num_gt", [0, 1])
def test_more_objects_than_there_are_is_an_error(num_gt):
    with pytest.raises(ValueError, match=f"num_gt.*got {num_gt}"):
        error_driven_gradient(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0, -1, 1]), num_gt)


def test_objects_of_hidden_windows_count_too():
    is_kept = torch.tensor([True, True, False])
    with pytest.raises(ValueError, match=r"num_gt.*2 objects.*got 1"):
        error_driven_gradient(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0, -1, 1]), 1, is_kept)


@pytest.mark.parametrize("margin", [-1.0, 0.0, 1e-50, float("inf"), float("nan")])
def test_a_margin_out_of_range_is_named(margin):
    with pytest.raises(ValueError, match=rf"margin.*got {margin}"):
        error_driven_gradient(torch.zeros(2), torch.tensor([0, -1]), 1, margin=margin)


def test_scores_that_are_not_finite_and_masks_that_are_none_are_named():
    matched = torch.tensor([0, -1])
    with pytest.raises(FloatingPointError, match=r"scores.*1 of 2"):
        error_driven_gradient(torch.tensor([0.0, float("nan")]), matched, 1)
    with pytest.raises(TypeError, match=r"is_kept.*bool.*int64"):
        error_driven_gradient(torch.zeros(2), matched, 1, torch.ones(2, dtype=torch.int64))


def hidden_list(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random list of which two thirds are hidden, each object kept at most once."""
    generator = torch.Generator().manual_seed(seed)
    scores, matched = random_list(seed, 40)
    is_kept = torch.rand(40, generator=generator) < 0.35
    return scores, matched, is_kept


@pytest.mark.parametrize("margin", [0.05, 1.0])
@pytest.mark.parametrize("transitivity", ["label_aware", "object_aware"])
def test_hidden_windows_over_objects_are_pushed_as_by_the_definition(margin, transitivity):
    for seed in range(30):
        scores, matched, is_kept = hidden_list(seed)
        args, settings = (scores, matched, 6, is_kept), {"margin": margin}
        gradient = error_driven_gradient(*args, transitivity=transitivity, **settings)
        args = scores.numpy(), *args[1:]
        expected = reference.error_driven_gradient(*args, **settings, transitivity=transitivity)
        torch.testing.assert_close(gradient, torch.from_numpy(expected).to(gradient))
        assert (gradient[~is_kept & (matched >= 0)] > 0).any()
        assert not gradient[~is_kept & (matched < 0)].any()
        assert float(gradient.sum().abs()) < 1e-12


def test_without_transitivity_it_is_that_of_the_kept_windows_alone():
    for seed in range(10):
        scores, matched, is_kept = hidden_list(seed)
        gradient = error_driven_gradient(scores, matched, 6, is_kept, transitivity="none")
        assert not gradient[~is_kept].any()
        alone = error_driven_gradient(scores[is_kept], matched[is_kept], 6)
        torch.testing.assert_close(gradient[is_kept], alone)


def test_an_object_hidden_by_a_false_positive_is_pushed_over_it():
    # NMS keeps one window, which is no match, and hides a match.
    scores, matched = torch.tensor([2.0, 1.0]), torch.tensor([-1, 0])
    is_kept = torch.tensor([True, False])
    assert error_driven_gradient(scores, matched, 1, is_kept, margin=0.1).tolist() == [-0.5, 0.5]


def test_an_unknown_transitivity_or_a_wrong_mask_is_named():
    scores, matched = torch.zeros(2), torch.tensor([0, -1])
    with pytest.raises(
        ValueError, match=r"transitivity.*label_aware, object_aware, none, got 'exact'"
    ):
        error_driven_gradient(scores, matched, 1, transitivity="exact")
    with pytest.raises(ValueError, match=r"is_kept: expected shape \(2,\), got \(3,\)"):
        error_driven_gradient(scores, matched, 1, torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="is_kept: expected dtype"):
        error_driven_gradient(scores, matched, 1, torch.ones(2))


@pytest.mark.parametrize("transitivity", ["label_aware", "object_aware", "none"])
def test_tied_true_positives_rank_in_input_order(transitivity):
    scores, matched = torch.tensor([1.0, 1.0, 9.0]), torch.tensor([0, 1, -1])
    gradient = error_driven_gradient(scores, matched, 2, transitivity=transitivity)
    # Ranks 2 and 3, of 2 objects.
    assert gradient.tolist() == pytest.approx([1 / 4, 1 / 6, -1 / 4 - 1 / 6])


def test_an_object_weighs_as_much_with_many_windows_as_with_one():
    # Over object 0 NMS keeps one window and suppresses three, over object 1 it keeps the only one;
    # both have the same false positive above them.
    scores = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    matched_gt = torch.tensor([-1, 0, 0, 0, 0, 1])
    is_kept = torch.tensor([True, True, False, False, False, True])
    args = scores, matched_gt, 2, is_kept
    aware = error_driven_gradient(*args, transitivity="object_aware")
    assert (aware[1:5] == aware[1]).all()
    assert aware.sum() == pytest.approx(0, abs=1e-12)
    # Tied: object 1 has object 0's true positive above it and rank 3, not 2.
    assert aware[1:5].sum().item() == pytest.approx(1 / 4)
    assert aware[5].item() == pytest.approx(1 / 6)
    by_default = error_driven_gradient(*args)
    assert torch.equal(by_default, aware)
    assert MAPLossSettings().transitivity == "object_aware"
    alone = error_driven_gradient(*args, transitivity="label_aware")
    assert alone[1:5].sum().item() == pytest.approx(4 / 4)
