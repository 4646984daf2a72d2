# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers import Steps, ap_steps, exact_steps, nms_ap_steps, pseudo_gradient

from tests.scenes import random_scene

NAN = float("nan")


def steps_of(value, up_at, up_value, down_at, down_value, up_partner=1, down_partner=2) -> Steps:
    """One coordinate with the given steps, and two more without any."""

    def row(x: float) -> torch.Tensor:
        return torch.tensor([x, NAN, NAN], dtype=torch.float64)

    partners = [torch.tensor([p, -1, -1]) for p in (up_partner, down_partner)]
    value = torch.tensor(value, dtype=torch.float64)
    return Steps(value, row(up_at), row(up_value), row(down_at), row(down_value), *partners)


X = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
BOTH = steps_of(0.5, 2.0, 0.9, -1.0, 0.2)


def test_sde_is_the_mean_of_the_two_slopes():
    expected = 0.5 * ((0.9 - 0.5) / 2 + (0.5 - 0.2) / 1)
    assert pseudo_gradient(BOTH, X, "sde")[0] == pytest.approx(expected)


def test_mee_is_the_mean_slope_of_the_envelopes_whatever_the_value_between():
    expected = (0.9 - 0.2) / (2 * 3)
    assert pseudo_gradient(BOTH, X, "mee")[0] == pytest.approx(expected)
    other = BOTH._replace(value=torch.tensor(0.7, dtype=torch.float64))
    assert pseudo_gradient(other, X, "mee")[0] == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["sde", "mee"])
def test_a_missing_step_counts_0(estimator):
    up_only = steps_of(0.5, 2.0, 0.9, NAN, NAN, down_partner=-1)
    assert pseudo_gradient(up_only, X, estimator)[0] == pytest.approx(0.5 * 0.4 / 2)
    neither = steps_of(0.5, NAN, NAN, NAN, NAN, -1, -1)
    assert pseudo_gradient(neither, X, estimator).tolist() == [0, 0, 0]


def test_min_delta_bounds_single_steps_but_not_the_interval_of_mee():
    near = steps_of(0.5, 1e-6, 0.9, -1e-6, 0.2)
    assert pseudo_gradient(near, X, "sde", 0.1)[0] == pytest.approx(0.5 * (0.4 + 0.3) / 0.1)
    assert pseudo_gradient(near, X, "mee", 0.1)[0] == pytest.approx(0.7 / (2 * 2e-6))
    up_only = steps_of(0.5, 1e-6, 0.9, NAN, NAN, down_partner=-1)
    assert pseudo_gradient(up_only, X, "mee", 0.1)[0] == pytest.approx(0.5 * 0.4 / 0.1)


@pytest.mark.parametrize("estimator", ["sde", "mee"])
def test_two_steps_at_one_place_are_taken_over_min_delta(estimator):
    tied = steps_of(0.5, 0.0, 0.9, 0.0, 0.2)
    assert pseudo_gradient(tied, X, estimator, 0.1)[0] == pytest.approx(0.5 * (0.4 + 0.3) / 0.1)


def test_paired_slopes_are_taken_from_the_windows_passed():
    gradient = pseudo_gradient(BOTH, X, "sde", pairing="paired")
    up, down = 0.5 * 0.4 / 2, 0.5 * 0.3 / 1
    assert gradient.tolist() == pytest.approx([up + down, -up, -down])


@pytest.mark.parametrize("estimator", ["sde", "mee"])
@pytest.mark.parametrize("transitivity", ["exact", "label_aware", "paper", "none"])
def test_the_paired_gradient_of_a_class_sums_to_zero(estimator, transitivity):
    unpaired_sums = []
    for seed in range(20):
        scene = random_scene(seed)
        steps = nms_ap_steps(*scene, transitivity=transitivity)
        paired = pseudo_gradient(steps, scene.scores, estimator, pairing="paired")
        assert float(paired.sum().abs()) <= 1e-12 * float(paired.abs().sum())
        unpaired_sums.append(float(pseudo_gradient(steps, scene.scores, estimator).sum().abs()))
    assert max(unpaired_sums) > 0.1


def test_exact_steps_of_a_function_that_is_not_ap():
    # The rank of coordinate 0: a step where it passes each neighbour.
    x = torch.tensor([0.5, 1.0, 0.0, 3.0])
    steps = exact_steps(lambda v: (v > v[0]).sum().double(), x)
    assert float(steps.value) == 2
    assert (float(steps.up_at[0]), float(steps.up_value[0]), int(steps.up_partner[0])) == (1, 1, 1)
    assert (float(steps.down_at[0]), float(steps.down_value[0])) == (0, 3)
    assert int(steps.down_partner[3]) == 0  # it leaves the number of those above at one less
    assert steps.up_at[3].isnan()


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-45), (torch.float64, 5e-324)])
def test_slopes_between_the_closest_scores_there_are_stay_finite(dtype, tiny):
    scores = torch.tensor([tiny, 0.0, -tiny], dtype=dtype)
    steps = ap_steps(scores, torch.tensor([-1, 0, -1]), 1)
    gradient = pseudo_gradient(steps, scores, "mee", 0.5, "paired")
    assert gradient.isfinite().all()
    assert gradient[1] > 1e20


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"estimator": "mean"}, "estimator.*mee, sde.*'mean'"),
        ({"pairing": "pair"}, "pairing.*none, paired.*'pair'"),
        ({"min_delta": 0.0}, "min_delta.*got 0"),
    ],
)
def test_unknown_settings_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        pseudo_gradient(BOTH, X, **kwargs)


def test_scores_of_another_length_are_named():
    with pytest.raises(ValueError, match=r"scores.*\(3,\).*\(2,\)"):
        pseudo_gradient(BOTH, X[:2])
