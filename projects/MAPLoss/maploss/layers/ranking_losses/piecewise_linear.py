# SPDX-License-Identifier: Apache-2.0
"""
Rising piecewise-linear functions from [0, 1] onto [0, 1], given by control points.

Shape letters: M points between (0, 0) and (1, 1), 4 in Parameterized AP Loss.
"""

from typing import NamedTuple

import torch

NUM_POINTS = 4


class Knots(NamedTuple):
    """
    x, y: (M + 2,), the points with (0, 0) and (1, 1). slopes: (M + 1,) of the segments between; one
    without width has that of the next, or of the last that has one.
    """

    x: torch.Tensor
    y: torch.Tensor
    slopes: torch.Tensor


def knots(points: torch.Tensor) -> Knots:
    """The knots of control points (M, 2), float64."""
    ends = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64, device=points.device)
    x, y = torch.cat([ends[:1], points.double(), ends[1:]]).t().contiguous()
    widths = x.diff()
    slopes = y.diff() / widths
    wide = (widths > 0).nonzero().squeeze(1)
    places = torch.arange(len(widths), device=x.device)
    nearest = torch.searchsorted(wide, places).clamp(max=len(wide) - 1)
    return Knots(x, y, slopes[wide[nearest]])


def piecewise_linear(x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """
    The function through (0, 0), the points and (1, 1), differentiable by x.

    Where two points have the same x it jumps there, to the upper one at that x already; but it is 0
    at 0 and 1 at 1.

    Args:
        x: any shape, float, in [0, 1]. points: (M, 2), x and y both rising (:func:`check_points`).

    Returns:
        As x: the shape and dtype.
    """
    return value_and_slope(x.double(), knots(points))[0].to(x.dtype)


def value_and_slope(x: torch.Tensor, given: Knots) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the function of these knots at x in [0, 1], float64; the value is differentiable."""
    at, y, slopes = given
    found = torch.searchsorted(at, x.detach().contiguous(), right=True) - 1
    segment = found.clamp_(0, len(at) - 1).masked_fill_(x <= 0, 0)
    slope = torch.cat([slopes, slopes[-1:]])[segment]
    return y[segment] + slope * (x - at[segment]), slope


def identity_points() -> torch.Tensor:
    """(4, 2) control points of f(x) = x, a fifth apart."""
    return torch.linspace(0, 1, NUM_POINTS + 2)[1:-1, None].repeat(1, 2)


def check_points(name: str, points: torch.Tensor, num_functions: int) -> None:
    """
    Raises ValueError unless `points` are (num_functions, 4, 2), in [0, 1], and rising in x and y.
    """
    shape = (num_functions, NUM_POINTS, 2)
    if tuple(points.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(points.shape)}")
    is_inside = (points >= 0) & (points <= 1)  # nan is not
    if not is_inside.all():
        raise ValueError(f"{name}: expected numbers in [0, 1], got {points[~is_inside][0]:g}")
    falls = (points.diff(dim=1) < 0).any(dim=2).any(dim=1).nonzero().squeeze(1)
    if len(falls):
        which = int(falls[0])
        raise ValueError(
            f"{name}: expected points that rise in x and in y, got {points[which].tolist()} "
            f"for function {which}"
        )


def control_points(theta: torch.Tensor) -> torch.Tensor:
    """
    Numbers to control points: point_k = point_{k-1} + theta_k (1 - point_{k-1}), in x and in y.

    All numbers in [0, 1] give rising points (Tao et al., NeurIPS 2021).

    Args:
        theta: (..., 8), x and y of the first point, then of the second, and so on.

    Returns:
        (..., 4, 2).
    """
    steps = theta.unflatten(-1, (NUM_POINTS, 2))
    return 1 - (1 - steps).cumprod(dim=-2)


def theta_of_points(points: torch.Tensor) -> torch.Tensor:
    """
    The inverse of :func:`control_points`: (..., 4, 2) to (..., 8). 1 where any number would do,
    which is after a coordinate of 1.
    """
    before = torch.cat([torch.zeros_like(points[..., :1, :]), points[..., :-1, :]], dim=-2)
    theta = torch.where(before < 1, (points - before) / (1 - before), 1.0)
    return theta.flatten(-2)
