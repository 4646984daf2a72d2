# SPDX-License-Identifier: Apache-2.0
from functools import partial

import numpy as np
import pytest
import torch
from maploss.layers import ap_steps, average_precision, exact_steps
from maploss.layers.average_precision import AP_TYPES

from tests.reference import ap_after_nms as reference
from tests.scenes import as_steps, differing


def random_list(seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scores, matches (duplicates and ignored ones among them) and the number of objects."""
    generator = torch.Generator().manual_seed(seed)

    def randint(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    # Every tenth list is long and has many objects, for 11 and 101 points' sake.
    count, num_gt = (
        (randint(20, 45), randint(8, 40)) if seed % 10 == 0 else (randint(0, 13), randint(1, 9))
    )
    scores = torch.randn(count, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        scores = (scores * 2).round() / 2
    matched = torch.randint(-3, min(num_gt, 12), (count,), generator=generator).clamp(min=-2)
    if seed % 2:
        matched[torch.rand(count, generator=generator) < 0.4] = -1
    return scores, matched, num_gt


@pytest.mark.parametrize("ap_type", AP_TYPES)
@pytest.mark.slow
def test_equals_exact_steps_on_400_random_lists_of_each_ap_type(ap_type):
    for seed in range(400):
        scores, matched, num_gt = random_list(seed)
        ap = partial(average_precision, matched_gt=matched, num_gt=num_gt, ap_type=ap_type)
        exact = exact_steps(ap, scores)
        steps = ap_steps(scores, matched, num_gt, ap_type)
        assert not differing(steps, exact).any(), seed
        assert float(steps.value) == pytest.approx(float(exact.value), abs=1e-12)


@pytest.mark.parametrize("ap_type", AP_TYPES)
def test_equals_the_reference(ap_type):
    for seed in range(60):
        scores, matched, num_gt = random_list(seed)
        ap = partial(
            reference.average_precision, matched_gt=matched.tolist(), num_gt=num_gt, ap_type=ap_type
        )
        expected = reference.nearest_steps(ap, scores.numpy())
        steps = ap_steps(scores, matched, num_gt, ap_type)
        assert not differing(steps, as_steps(*expected)).any(), seed


def test_a_small_list_by_hand():
    # False, true (object 0), false, true (object 1): AP = (1/2 + 2/4) / 2.
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    steps = ap_steps(scores, torch.tensor([-1, 0, -1, 1]), 2)
    assert float(steps.value) == pytest.approx(0.5)
    # The first true one rises over the false one: (1 + 1/2) / 2.
    assert (float(steps.up_at[1]), int(steps.up_partner[1])) == (4.0, 0)
    assert float(steps.up_value[1]) == pytest.approx(0.75)
    # The best false one falls below it: the same list.
    assert (float(steps.down_at[0]), int(steps.down_partner[0])) == (3.0, 1)
    assert float(steps.down_value[0]) == pytest.approx(0.75)
    assert int(steps.up_partner[0]) == -1
    assert steps.up_at[0].isnan()


def test_the_result_follows_the_order_of_the_input_and_keeps_the_scores_dtype():
    scores, matched, num_gt = random_list(10)
    mix = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    steps, mixed = ap_steps(scores, matched, num_gt), ap_steps(scores[mix], matched[mix], num_gt)
    partner = mixed.up_partner
    partner = torch.where(partner >= 0, mix[partner.clamp(min=0)], -1)
    # Seed 10 has no ties, so that the order decides nothing else.
    assert torch.equal(partner, steps.up_partner[mix])
    assert torch.equal(mixed.up_value.nan_to_num(-1), steps.up_value[mix].nan_to_num(-1))
    assert ap_steps(scores.float(), matched, num_gt).up_at.dtype == torch.float32


@pytest.mark.parametrize(
    ("matched", "num_gt"), [([-1, -1, -2], 3), ([-1, -2, -1], 0), ([], 2), ([], 0), ([-2, -2], 1)]
)
def test_without_objects_or_true_positives_there_is_no_step(matched, num_gt):
    matched = torch.tensor(matched, dtype=torch.int64)
    steps = ap_steps(torch.randn(len(matched)), matched, num_gt)
    for at in (steps.up_at, steps.up_value, steps.down_at, steps.down_value):
        assert at.isnan().all()
    assert (steps.up_partner == -1).all()
    assert (steps.down_partner == -1).all()
    assert steps.value.isnan() if num_gt == 0 else steps.value == 0


def test_a_thousand_true_positives_need_no_matrix_of_detections():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20000, generator=generator)
    matched = torch.full((20000,), -1)
    matched[torch.randperm(20000, generator=generator)[:1000]] = torch.arange(1000)
    steps = ap_steps(scores, matched, 1200)
    assert (~steps.up_at.isnan()).any()
    # One window spot-checked against AP computed anew just beyond its step.
    who = int((~steps.up_at.isnan()).nonzero()[7])
    moved = scores.double().clone()
    moved[who] = np.nextafter(float(steps.up_at[who]), np.inf)
    assert float(average_precision(moved, matched, 1200)) == pytest.approx(
        float(steps.up_value[who]), abs=1e-12
    )
