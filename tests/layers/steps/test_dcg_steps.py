# SPDX-License-Identifier: Apache-2.0
import math
from functools import partial

import numpy as np
import pytest
import torch
from maploss.layers import ap_steps, average_precision, exact_steps, pseudo_gradient
from maploss.layers.steps.dcg_steps import dcg, dcg_steps

from tests.scenes import differing


def random_query(seed: int) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Scores and gains with ties, and where the list ends; every second query has graded gains."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 16))
    scores, gains = rng.standard_normal(count), rng.standard_normal(count)
    if seed % 3 == 0:
        scores = np.round(2 * scores) / 2
    if seed % 2 == 0:
        gains = 2.0 ** rng.integers(0, 4, count) - 1
    k = (None, 1, 3, max(count, 1), count + 5)[seed % 5]
    return torch.from_numpy(scores), torch.from_numpy(gains), k


def slow_dcg(scores: np.ndarray, gains: np.ndarray, k: int | None) -> float:
    """The definition, one rank at a time."""
    total = 0.0
    for rank, i in enumerate(np.argsort(-scores, kind="stable"), 1):
        if k is None or rank <= k:
            total += gains[i] / math.log2(1 + rank)
    return total


def test_dcg_is_the_sum_over_ranks():
    for seed in range(200):
        scores, gains, k = random_query(seed)
        value = dcg(scores, gains, k)
        assert (value.shape, value.dtype) == ((), torch.float64)
        assert float(value) == pytest.approx(slow_dcg(scores.numpy(), gains.numpy(), k), abs=1e-12)


def test_tied_scores_keep_their_input_order():
    # More than are sorted stably by chance.
    scores, gains = (torch.arange(1500) % 2).double(), torch.arange(1500).double()
    expected = slow_dcg(scores.numpy(), gains.numpy(), 100)
    assert float(dcg(scores, gains, 100)) == pytest.approx(expected)
    steps = dcg_steps(scores, gains, 100)
    assert float(steps.value) == pytest.approx(expected)
    assert int(steps.up_partner[3]) == 1
    assert int(steps.down_partner[3]) == 5


def test_steps_equal_exact_steps_on_300_random_lists():
    found = 0
    for seed in range(300):
        scores, gains, k = random_query(seed)

        def f(x, gains=gains, k=k):
            return torch.tensor(slow_dcg(x.numpy(), gains.numpy(), k), dtype=torch.float64)

        steps, exact = dcg_steps(scores, gains, k), exact_steps(f, scores)
        assert not differing(steps, exact).any(), seed
        assert float(steps.value) == pytest.approx(float(exact.value), abs=1e-12)
        found += int((steps.up_partner >= 0).sum() + (steps.down_partner >= 0).sum())
    assert found > 3000


def test_a_document_below_the_cut_meets_the_last_rank_within_it():
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0])
    steps = dcg_steps(scores, torch.tensor([1.0, 0.0, 7.0, 0.0]), k=2)
    assert steps.up_partner.tolist() == [-1, 0, 1, 0]
    assert steps.down_partner.tolist() == [1, 2, -1, -1]
    assert float(steps.up_at[2]) == 4
    # Two places below the cut it passes the worthless document at rank 2: nothing until rank 1.
    assert float(steps.up_value[3]) == pytest.approx(1 / math.log2(3))
    assert float(steps.down_value[1]) == pytest.approx(1 + 7 / math.log2(3))


def test_the_result_follows_the_order_of_the_input_and_keeps_the_scores_dtype():
    scores = torch.randn(30, generator=torch.Generator().manual_seed(0))
    gains = (torch.arange(30) % 4).float()
    mix = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    steps, mixed = dcg_steps(scores, gains, 9), dcg_steps(scores[mix], gains[mix], 9)
    partner = mixed.up_partner
    assert torch.equal(
        torch.where(partner >= 0, mix[partner.clamp(min=0)], -1), steps.up_partner[mix]
    )
    assert (steps.up_at.dtype, steps.up_value.dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize("estimator", ["mee", "sde"])
def test_following_the_pseudo_gradient_raises_dcg(estimator):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(30, generator=generator, dtype=torch.float64)
    gains = 2.0 ** torch.randint(0, 5, (30,), generator=generator).double() - 1
    gains /= dcg(gains, gains)
    before = float(dcg(scores, gains))
    for _ in range(300):
        steps = dcg_steps(scores, gains)
        gradient = pseudo_gradient(steps, scores, estimator, pairing="paired")
        assert float(gradient.sum().abs()) < 1e-10 * float(1 + gradient.abs().sum())
        scores = scores + 0.5 * gradient.clamp(-1, 1)
    assert before < 0.8
    assert float(dcg(scores, gains)) > 0.9


@pytest.mark.parametrize("k", [None, 1, 5])
@pytest.mark.parametrize("gains", [[], [3.0], [2.0, 2.0, 2.0]])
def test_without_two_gains_there_is_no_step(gains, k):
    gains = torch.tensor(gains)
    steps = dcg_steps(torch.zeros(len(gains)), gains, k)
    assert steps.up_at.isnan().all()
    assert steps.down_value.isnan().all()
    assert (steps.up_partner == -1).all()
    assert (steps.down_partner == -1).all()
    assert float(steps.value) == pytest.approx(
        slow_dcg(np.zeros(len(gains)), gains.numpy(), k), abs=1e-6
    )


def test_ap_steps_of_documents_equal_exact_steps_of_ap():
    # Each relevant document is an object of its own: there are no duplicates.
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scores = torch.from_numpy(rng.standard_normal(int(rng.integers(1, 15))).round(seed % 4))
        is_relevant = torch.from_numpy(rng.random(len(scores)) < 0.4)
        is_relevant[0] = True
        objects = torch.where(is_relevant, is_relevant.cumsum(0) - 1, -1)
        num = int(is_relevant.sum())
        ap = partial(average_precision, matched_gt=objects, num_gt=num)
        assert not differing(ap_steps(scores, objects, num), exact_steps(ap, scores)).any(), seed


@pytest.mark.parametrize("function", [dcg, dcg_steps])
def test_bad_input_is_named(function):
    scores, gains = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match=r"gains: expected shape \(3,\), got \(2,\)"):
        function(scores, gains[:2])
    with pytest.raises(ValueError, match=r"scores: expected shape \(D,\), got \(3, 1\)"):
        function(scores[:, None], gains)
    with pytest.raises(TypeError, match=r"gains: expected torch.float32 .*got torch.int64"):
        function(scores, gains.long())
    with pytest.raises(TypeError, match=r"scores: expected torch.float32 .*got torch.float16"):
        function(scores.half(), gains)
    with pytest.raises(FloatingPointError, match="gains: 1 of 3 not finite"):
        function(scores, torch.tensor([0.0, math.inf, 1.0]))
    with pytest.raises(FloatingPointError, match="scores: 1 of 3"):
        function(torch.tensor([0.0, math.nan, 1.0]), gains)
    with pytest.raises(ValueError, match="k: expected at least 1 or None, got 0"):
        function(scores, gains, 0)
