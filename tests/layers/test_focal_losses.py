# SPDX-License-Identifier: Apache-2.0
import functools

import numpy as np
import pytest
import torch
from maploss.layers import focal_loss, quality_focal_loss, varifocal_loss

from tests.reference import focal_losses as reference

LOSSES = {
    "focal": lambda s, x, q, **settings: focal_loss(s, x, **settings),
    "quality_focal": quality_focal_loss,
    "varifocal": varifocal_loss,
}
# Those of the papers, and others.
SETTINGS = {
    "focal": [{"alpha": 0.25, "gamma": 2.0}, {"alpha": 0.6, "gamma": 1.0}],
    "quality_focal": [{"beta": 2.0}, {"beta": 1.5}],
    "varifocal": [{"alpha": 0.75, "gamma": 2.0}, {"alpha": 0.4, "gamma": 1.0}],
}
CASES = [(name, settings) for name in LOSSES for settings in SETTINGS[name]]


def make_case(seed, num=40):
    """Positives, negatives and ignored ones; one positive of quality 0 and one of 1."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(num, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 2, (num,), generator=generator)
    quality = torch.rand(int((labels == 1).sum()), generator=generator, dtype=torch.float64)
    quality[:2] = torch.tensor([0.0, 1.0])
    return scores.requires_grad_(), labels, quality


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_the_value_is_that_of_a_loop_over_scores(name, settings, seed):
    scores, labels, quality = make_case(seed)
    pos, neg = (np.flatnonzero(labels.numpy() == x) for x in (1, 0))
    y = () if name == "focal" else (quality.numpy(),)
    slow = getattr(reference, f"{name}_loss")
    expected = slow(scores.detach().numpy(), pos, neg, *y, **settings)
    loss = LOSSES[name](scores, labels, quality, **settings)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


@pytest.mark.parametrize("name", LOSSES)
def test_numbers_are_those_of_the_papers_unless_given(name):
    case = make_case(0)
    assert LOSSES[name](*case) == LOSSES[name](*case, **SETTINGS[name][0])


@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
def test_the_gradient_is_the_derivative(name):
    scores, labels, quality = make_case(1)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, quality), (scores,))


def test_the_gradient_of_the_focal_loss_is_the_derivative_in_single_precision():
    scores, labels, _ = make_case(1)
    (got,) = torch.autograd.grad(focal_loss(scores, labels), scores)
    values = scores.detach().numpy()
    pos, neg = (np.flatnonzero(labels.numpy() == x) for x in (1, 0))
    slow = functools.partial(reference.focal_loss, pos=pos, neg=neg, alpha=0.25, gamma=2.0)
    for i in range(len(values)):
        step = 1e-6 * np.eye(len(values))[i]
        expected = (slow(values + step) - slow(values - step)) / 2e-6
        assert got[i].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
def test_a_positive_is_drawn_to_its_quality(name):
    scores = torch.tensor([4.0, -4.0], requires_grad=True)
    labels, quality = torch.ones(2, dtype=torch.int64), torch.tensor([0.3, 0.6])
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(800):
        optimizer.zero_grad()
        LOSSES[name](scores, labels, quality).backward()
        optimizer.step()
    torch.testing.assert_close(scores.detach().sigmoid(), quality, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_scores_count_for_nothing(name):
    scores, labels, quality = make_case(2)
    loss = LOSSES[name](scores, labels, quality)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not gradient[labels == -1].any()
    counted = labels != -1
    torch.testing.assert_close(LOSSES[name](scores[counted], labels[counted], quality), loss)


@pytest.mark.parametrize("name", LOSSES)
def test_without_positives_the_negatives_are_summed(name):
    for num in (0, 4):
        scores = torch.zeros(num, requires_grad=True)
        loss = LOSSES[name](scores, torch.zeros(num, dtype=torch.int64), torch.zeros(0))
        loss.backward()
        one = LOSSES[name](torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(0))
        assert loss.item() == pytest.approx(num * one.item())
        assert (scores.grad > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_scores_that_are_far_out_have_a_finite_loss_and_gradient(name):
    scores = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = LOSSES[name](scores, torch.tensor([1, 1, 0, 0]), torch.ones(2))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_quality_is_a_constant_and_the_dtype_that_of_the_scores(name):
    scores, labels, quality = make_case(3)
    quality.requires_grad_()
    for dtype in (torch.float32, torch.float64):
        loss = LOSSES[name](scores.detach().to(dtype).requires_grad_(), labels, quality)
        loss.backward()
        assert loss.dtype == dtype
    assert quality.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_bad_input_is_named(name):
    scores, labels, quality = torch.zeros(3), torch.tensor([1, 0, -1]), torch.ones(1)
    with pytest.raises(ValueError, match=r"labels: expected shape \(3,\), got \(2,\)"):
        LOSSES[name](scores, labels[:2], quality)
    with pytest.raises(FloatingPointError, match="scores: 1 of 3 are not finite"):
        LOSSES[name](torch.tensor([0, float("inf"), 0]), labels, quality)
    if name != "focal":
        with pytest.raises(ValueError, match=r"quality: expected numbers in \[0, 1\], got 2 to 2"):
            LOSSES[name](scores, labels, 2 * quality)
    power = "beta" if name == "quality_focal" else "gamma"
    with pytest.raises(ValueError, match=f"{power}: expected a number above 0, got 0"):
        LOSSES[name](scores, labels, quality, **{power: 0.0})
    if name != "quality_focal":
        with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\], got -1"):
            LOSSES[name](scores, labels, quality, alpha=-1.0)
