# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from maploss.layers.ranking_losses.piecewise_linear import (
    check_points,
    control_points,
    identity_points,
    piecewise_linear,
    theta_of_points,
)

X = torch.linspace(0, 1, 101, dtype=torch.float64)


def test_it_interpolates_between_the_points_as_numpy_does():
    for seed in range(20):
        points = control_points(torch.rand(8, generator=torch.Generator().manual_seed(seed)))
        knots = np.concatenate([[[0, 0]], points.double().numpy(), [[1, 1]]])
        expected = np.interp(X, knots[:, 0], knots[:, 1])
        np.testing.assert_allclose(piecewise_linear(X, points), expected, atol=1e-12)


def test_its_derivative_is_the_slope_between_the_points():
    points = torch.tensor([[0.2, 0.1], [0.4, 0.5], [0.6, 0.5], [0.7, 0.9]])
    x = torch.tensor([0.1, 0.3, 0.5, 0.65, 0.9], requires_grad=True)
    piecewise_linear(x, points).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.5, 2.0, 0.0, 4.0, 1 / 3]))


def test_no_points_or_the_identity_give_the_identity():
    for points in (identity_points(), torch.zeros(0, 2)):
        torch.testing.assert_close(piecewise_linear(X, points), X)


def test_it_jumps_where_points_share_an_x_and_keeps_its_ends():
    points = torch.tensor([[0.0, 0.3], [0.5, 0.4], [0.5, 0.6], [1.0, 0.8]], dtype=torch.float64)
    x = torch.tensor([0.0, 1e-9, 0.5 - 1e-9, 0.5, 1 - 1e-9, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.3, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    torch.testing.assert_close(piecewise_linear(x, points), expected, atol=1e-8, rtol=0)
    x.requires_grad_()
    piecewise_linear(x, points).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.2, 0.2, 0.2, 0.4, 0.4, 0.4]).double())


@pytest.mark.parametrize("theta", [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
def test_the_ends_of_the_search_space_are_functions_too(theta):
    points = control_points(torch.tensor(4 * theta))
    check_points("points", points[None], 1)
    y = piecewise_linear(X, points)
    assert torch.isfinite(y).all()
    assert y[0] == 0
    assert y[-1] == 1
    # A step at either end, or the straight line.
    inside = {(0, 1): torch.ones(99), (1, 0): torch.zeros(99)}.get(tuple(theta), X[1:-1])
    torch.testing.assert_close(y[1:-1], inside.double())


def test_numbers_and_points_are_inverse_to_each_other():
    theta = torch.rand(5, 8, dtype=torch.float64)
    points = control_points(theta)
    assert points.shape == (5, 4, 2)
    assert (points.diff(dim=1) >= 0).all()
    torch.testing.assert_close(theta_of_points(points), theta)
    identity = theta_of_points(identity_points()).view(4, 2)
    torch.testing.assert_close(
        identity, torch.tensor([1 / 5, 1 / 4, 1 / 3, 1 / 2])[:, None].expand(4, 2)
    )
    at_the_end = torch.tensor([[0.5, 0.5], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(control_points(theta_of_points(at_the_end)), at_the_end)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:4], r"points: expected shape \(5, 4, 2\), got \(4, 4, 2\)"),
        (lambda p: p[:, :3], r"points: expected shape \(5, 4, 2\), got \(5, 3, 2\)"),
        (lambda p: p + 0.3, r"points: expected numbers in \[0, 1\], got 1.1"),
        (lambda p: p * float("nan"), r"points: expected numbers in \[0, 1\], got nan"),
        (lambda p: p.flip(1), r"points: expected points that rise in x and in y, got .* 0"),
    ],
)
def test_points_of_a_wrong_count_or_range_or_order_are_refused(change, message):
    points = identity_points().repeat(5, 1, 1)
    check_points("points", points, 5)
    with pytest.raises(ValueError, match=message):
        check_points("points", change(points), 5)
