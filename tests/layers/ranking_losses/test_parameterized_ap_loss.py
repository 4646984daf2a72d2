# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
import torch
from maploss.layers import ParameterizedAPLoss, parameterized_ap_loss
from maploss.layers.ranking_losses.parameterized_ap_loss import FORMS
from maploss.layers.ranking_losses.piecewise_linear import control_points, identity_points

from tests.reference.parameterized_ap_loss import whole_matrix_loss


def make_case(seed, num=300, share=0.1):
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(num, generator=generator, dtype=torch.float64)
    labels = (torch.rand(num, generator=generator) < share).long()
    labels[torch.rand(num, generator=generator) < 0.1] = -1
    quality = torch.rand(int((labels == 1).sum()), generator=generator, dtype=torch.float64)
    points = control_points(torch.rand(5, 8, generator=generator, dtype=torch.float64))
    return scores.requires_grad_(), labels, quality.requires_grad_(), points


def value_and_gradients(loss, *inputs):
    return (loss.detach(), *torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_ranked", [100_000, 40])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradients_are_those_of_the_whole_matrix(form, num_ranked, seed):
    scores, labels, quality, points = make_case(seed)
    loss = parameterized_ap_loss(
        scores, labels, quality, points=points, form=form, num_ranked=num_ranked
    )
    expected = whole_matrix_loss(scores, labels, quality, points, form, num_ranked)
    for got, want in zip(
        value_and_gradients(loss, scores, quality),
        value_and_gradients(expected, scores, quality),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_a_large_case_is_that_of_the_whole_matrix():
    scores, labels, quality, points = make_case(0, num=20_000, share=0.01)
    loss = parameterized_ap_loss(scores, labels, quality, points=points)
    expected = whole_matrix_loss(scores, labels, quality, points, "searched")
    for got, want in zip(
        value_and_gradients(loss, scores, quality),
        value_and_gradients(expected, scores, quality),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux gives it")
@pytest.mark.parametrize("form", ["searched", "sigmoid"])
def test_a_thousand_positives_of_100_000_need_less_than_512_mib(form):
    code = f"""
import resource, torch
from maploss.layers import parameterized_ap_loss
torch.set_num_threads(1)
scores = torch.randn(100_000, requires_grad=True)
labels = (torch.arange(100_000) < 1000).long()
quality = torch.rand(1000, requires_grad=True)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parameterized_ap_loss(scores[:9], labels[:9], quality[:9], form={form!r}).backward()
before = peak()
parameterized_ap_loss(scores, labels, quality, form={form!r}).backward()
print((peak() - before) // 1024)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 512


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num", [0, 5])
def test_without_positives_the_loss_is_0_with_a_graph(form, num):
    scores = torch.randn(num, requires_grad=True)
    quality = torch.zeros(0, requires_grad=True)
    labels = -torch.ones(num, dtype=torch.int64)
    labels[1:3] = 0
    loss = parameterized_ap_loss(scores, labels, quality, form=form)
    loss.backward()
    assert loss == 0
    assert not scores.grad.any()
    assert quality.grad is not None


def test_steps_for_functions_give_one_minus_ap():
    # Almost a step at 1/2 for H, and all boxes are good.
    step = torch.tensor([[0.5 - 1e-9, 0.0], [0.5 - 1e-9, 0.0], [0.5, 1.0], [0.5, 1.0]])
    points = step.double().expand(5, 4, 2)
    labels = torch.tensor([1, 0, 1, 0, 0, 1, -1])
    scores = torch.tensor([6.0, 5, 4, 3, 2, 1, 9], dtype=torch.float64)
    loss = parameterized_ap_loss(scores, labels, torch.ones(3), points=points)
    torch.testing.assert_close(1 - loss, torch.tensor((1 + 2 / 3 + 3 / 6) / 3).double())
    loose = torch.tensor([0.0, 0.0, 0.0])
    assert parameterized_ap_loss(scores, labels, loose, points=points) == 1


def test_the_gradient_scale_scales_the_gradient_of_the_boxes_alone():
    scores, labels, quality, points = make_case(3)
    plain = ParameterizedAPLoss(points=points)(scores, labels, quality)
    scaled = ParameterizedAPLoss(points=points, gradient_scale=7.13)(scores, labels, quality)
    first = value_and_gradients(plain, scores, quality)
    second = value_and_gradients(scaled, scores, quality)
    torch.testing.assert_close(second[:2], first[:2])
    torch.testing.assert_close(second[2], 7.13 * first[2])
    assert first[2].abs().max() > 0


def test_control_points_and_scale_are_in_the_checkpoint():
    points = control_points(torch.rand(5, 8, dtype=torch.float64))
    state = ParameterizedAPLoss(points=points, gradient_scale=3.0).state_dict()
    module = ParameterizedAPLoss()
    module.load_state_dict(state)
    torch.testing.assert_close(module.points, points)
    assert module.gradient_scale == 3.0


def test_a_positive_of_rank_0_shares_no_errors():
    # H1 is 0 but for scores a whole unit above; H2 is 1/2 for the positive itself.
    points = identity_points().double().repeat(5, 1, 1)
    points[0] = torch.tensor([1.0, 0.0])
    scores = torch.tensor([5.0, 0.0], dtype=torch.float64, requires_grad=True)
    quality = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    loss = parameterized_ap_loss(scores, torch.tensor([1, 0]), quality, points=points)
    value, by_scores, by_quality = value_and_gradients(loss, scores, quality)
    assert value.item() == pytest.approx(0.3)
    assert not by_scores.any()
    assert by_quality.item() == pytest.approx(-1.0)


def test_functions_of_rank_0_give_finite_gradients():
    scores, labels, quality, _ = make_case(0)
    for theta in ([0.0, 1.0], [1.0, 0.0]):  # 1 from 0 on, and 0 up to 1
        points = control_points(torch.tensor(4 * theta, dtype=torch.float64).expand(5, 8))
        loss = parameterized_ap_loss(scores, labels, quality, points=points)
        assert all(torch.isfinite(x).all() for x in value_and_gradients(loss, scores, quality))


def test_half_precision_free_float32_is_close_to_float64():
    scores, labels, quality, points = make_case(1)
    single = scores.detach().float().requires_grad_(), quality.detach().float().requires_grad_()
    loss = parameterized_ap_loss(single[0], labels, single[1], points=points.float())
    assert loss.dtype == torch.float32
    expected = parameterized_ap_loss(scores, labels, quality, points=points)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert single[0].grad.dtype == single[1].grad.dtype == torch.float32


BAD_INPUT = {
    "scores": ({"scores": torch.zeros(3, 1)}, ValueError, r"scores: expected shape \(D,\)"),
    "dtype": ({"scores": torch.zeros(3).half()}, TypeError, "scores: expected torch.float32"),
    "nan": ({"scores": torch.tensor([0, 1, float("nan")])}, FloatingPointError, "not finite"),
    "labels": ({"labels": torch.tensor([1, 0, 2])}, ValueError, "labels: expected 1, 0 or -1"),
    "label type": ({"labels": torch.ones(3)}, TypeError, "labels: expected dtype torch.int64"),
    "count": ({"quality": torch.ones(2)}, ValueError, r"quality: expected shape \(1,\)"),
    "quality": ({"quality": torch.tensor([1.5])}, ValueError, r"in \[0, 1\], got 1.5 to 1.5"),
    "form": ({"form": "cubic"}, ValueError, "form: expected one of searched, .*, got 'cubic'"),
    "points": (
        {"points": torch.zeros(4, 4, 2)},
        ValueError,
        r"points: expected shape \(5, 4, 2\)",
    ),
    "none": ({"num_ranked": 0}, ValueError, "num_ranked: expected at least 1, got 0"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named(name):
    change, error, message = BAD_INPUT[name]
    good = {"scores": torch.zeros(3), "labels": torch.tensor([1, 0, -1]), "quality": torch.ones(1)}
    parameterized_ap_loss(**good)
    with pytest.raises(error, match=message):
        parameterized_ap_loss(**{**good, **change})


def test_a_scale_that_is_not_above_0_is_refused():
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gradient_scale: expected a number above 0, got"):
            ParameterizedAPLoss(gradient_scale=scale)
