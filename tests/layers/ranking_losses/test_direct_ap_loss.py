# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from maploss.layers.ranking_losses.direct_ap_loss import direct_ap_loss

from tests.reference.direct_ap_loss import (
    average_precision,
    best_of_all_rankings,
    ranking_gradient,
    value_of_the_ranking_found,
)

UPDATES = ("positive", "negative")


def random_case(seed: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores without ties, and labels with at least one positive and one negative."""
    rng = np.random.default_rng(seed)
    count = count or int(rng.integers(2, 8))
    labels = (rng.random(count) < 0.5).astype(np.int64)
    labels[:2] = rng.permutation([0, 1])
    return rng.standard_normal(count), labels


def gradient_of(scores, labels, **kwargs) -> tuple[float, np.ndarray]:
    scores = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss = direct_ap_loss(scores, torch.tensor(labels), **kwargs)
    loss.backward()
    return loss.item(), scores.grad.numpy()


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("epsilon", [1.0, 3.0, 10.0])
def test_value_and_gradient_are_those_of_a_search_of_all_rankings(update, epsilon):
    num_pushed = 0
    for seed in range(12):
        scores, labels = random_case(seed, 7 if seed == 0 else 2 + seed % 5)
        by_score = np.argsort(-scores)
        _, direct = best_of_all_rankings(scores, labels, epsilon, update)
        expected = (direct - ranking_gradient(by_score, labels)) / epsilon
        if update == "negative":
            expected = -expected
        loss, gradient = gradient_of(scores, labels, epsilon=epsilon, update=update)
        assert loss == pytest.approx(1 - average_precision(labels[by_score]))
        np.testing.assert_allclose(gradient, expected, atol=1e-12, err_msg=str(seed))
        num_pushed += bool(expected.any())
    assert num_pushed > 3


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
def test_the_ranking_found_has_the_largest_augmented_score_of_all(update, epsilon):
    for seed in range(16):
        scores, labels = random_case(100 + seed, 7 if seed == 0 else 2 + seed % 5)
        if seed % 2:
            scores = scores.round()
        expected, _ = best_of_all_rankings(scores, labels, epsilon, update)
        found = value_of_the_ranking_found(scores, labels, epsilon, update)
        assert found == pytest.approx(expected, abs=1e-12), seed


@pytest.mark.parametrize(
    ("scores", "epsilon"),
    [
        ([0.857, 0.852, 0.846, 0.843, 0.364, -0.869], 1.0),
        ([1.419, 1.281, 1.193, 1.185, 0.147, -1.281], 3.0),
    ],
)
def test_a_positive_that_alone_would_stand_below_the_next_one_is_placed_with_it(scores, epsilon):
    scores, labels = np.array(scores), np.array([1, 1, 1, 1, 0, 0])
    expected, _ = best_of_all_rankings(scores, labels, epsilon, "positive")
    found = value_of_the_ranking_found(scores, labels, epsilon, "positive")
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("update", UPDATES)
def test_the_gradient_sums_to_zero_and_pushes_positives_up(update):
    for seed in range(20):
        scores, labels = random_case(seed, 50)
        labels[rng_choice(seed)] = -1
        _, gradient = gradient_of(scores, labels, epsilon=1.0, update=update)
        assert abs(gradient.sum()) < 1e-12
        assert gradient.any()
        assert (gradient[labels == 1] <= 0).all()
        assert (gradient[labels == 0] >= 0).all()
        assert not gradient[labels == -1].any()


def rng_choice(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.arange(2, 50), 10, replace=False)


def test_labels_left_out_change_nothing():
    scores, labels = random_case(3, 30)
    labels[[4, 9, 20]] = -1
    loss, gradient = gradient_of(scores, labels, epsilon=0.5)
    rest = labels >= 0
    loss_of_rest, gradient_of_rest = gradient_of(scores[rest], labels[rest], epsilon=0.5)
    assert loss == loss_of_rest
    np.testing.assert_array_equal(gradient[rest], gradient_of_rest)


@pytest.mark.parametrize("update", UPDATES)
def test_gradient_descent_on_the_scores_raises_ap(update):
    scores, labels = random_case(0, 60)
    before, gradient = gradient_of(scores, labels, epsilon=10.0, update=update)
    assert before > 0.2
    for _ in range(100):
        loss, gradient = gradient_of(scores, labels, epsilon=10.0, update=update)
        scores = scores - 5 * gradient
    assert loss < 0.05 * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_have_the_scores_dtype_and_the_gradient_is_scaled(dtype):
    scores = torch.tensor([3.0, 2.0, 1.0], dtype=dtype, requires_grad=True)
    loss = direct_ap_loss(scores, torch.tensor([0, 1, 0]), epsilon=100.0, update="negative")
    assert (loss.shape, loss.dtype, loss.item()) == ((), dtype, 0.5)
    (3 * loss).backward()
    # The best ranking has the positive first: one pair of two changes its sign.
    assert scores.grad.dtype == dtype
    assert scores.grad.tolist() == pytest.approx([3 * 2 / 200, -3 * 2 / 200, 0.0])


def test_a_shift_of_all_scores_changes_nothing():
    scores, labels = random_case(5, 40)
    # So that the shift rounds no score.
    scores = np.round(scores * 64) / 64
    _, gradient = gradient_of(scores, labels, epsilon=0.3)
    _, shifted = gradient_of(scores + 2.0**44, labels, epsilon=0.3)
    assert gradient.any()
    np.testing.assert_array_equal(shifted, gradient)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1], [-1, 1], [-1, -1]])
def test_without_a_pair_the_loss_is_0_and_pushes_nothing(labels, update):
    scores = torch.randn(len(labels), requires_grad=True)
    labels = torch.tensor(labels, dtype=torch.int64)
    loss = direct_ap_loss(scores, labels, epsilon=1.0, update=update)
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


@pytest.mark.parametrize("update", UPDATES)
def test_a_hundred_positives_among_ten_thousand_are_taken(update):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(10_100, generator=generator).requires_grad_()
    labels = (torch.arange(10_100) < 100).long()
    direct_ap_loss(scores, labels, epsilon=1.0, update=update).backward()
    assert scores.grad.any()
    assert abs(float(scores.grad.double().sum())) < 1e-4 * float(scores.grad.abs().sum())


def test_bad_input_is_named():
    scores, labels = torch.zeros(2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"scores: expected shape \(D,\), got \(2, 1\)"):
        direct_ap_loss(scores[:, None], labels, epsilon=1.0)
    with pytest.raises(ValueError, match=r"labels: expected shape \(2,\), got \(1,\)"):
        direct_ap_loss(scores, labels[:1], epsilon=1.0)
    with pytest.raises(TypeError, match=r"labels: expected dtype torch.int64, got torch.float32"):
        direct_ap_loss(scores, labels.float(), epsilon=1.0)
    with pytest.raises(ValueError, match=r"labels: expected 1, 0 or -1, got \[0, 2\]"):
        direct_ap_loss(scores, 2 * labels, epsilon=1.0)
    with pytest.raises(TypeError, match=r"scores: expected torch.float32 .*got torch.float16"):
        direct_ap_loss(scores.half(), labels, epsilon=1.0)
    with pytest.raises(FloatingPointError, match="scores: 1 of 2 are not finite"):
        direct_ap_loss(torch.tensor([0.0, float("inf")]), labels, epsilon=1.0)
    with pytest.raises(ValueError, match="update: expected one of positive, negative, got 'both'"):
        direct_ap_loss(scores, labels, epsilon=1.0, update="both")


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_an_epsilon_out_of_range_is_named(epsilon):
    with pytest.raises(ValueError, match=f"epsilon: expected a number above 0, got {epsilon}"):
        direct_ap_loss(torch.zeros(2), torch.tensor([0, 1]), epsilon=epsilon)
