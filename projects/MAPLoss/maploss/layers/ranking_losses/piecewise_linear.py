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
    The points between which a function is linear.

    Attributes:
        x: (M + 2,) of the points with (0, 0) and (1, 1), float64.
        y: (M + 2,) likewise.
        slopes: (M + 1,) of the segments between; one without width has that of the next, or of the
            last that has one.
    """

    x: torch.Tensor
    y: torch.Tensor
    slopes: torch.Tensor


def knots(points: torch.Tensor) -> Knots:
    """
    The knots of a function.

    Args:
        points: (M, 2) control points, x and y both rising.

    Example:
        >>> knots(torch.tensor([[0.5, 0.25]])).slopes
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
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
        x: any shape, float, in [0, 1].
        points: (M, 2), x and y both rising (:func:`check_points`), M = 0 for f(x) = x.

    Returns:
        As x: the shape and dtype.

    Example:
        >>> x = torch.tensor([0.0, 0.25, 0.5, 1.0])
        >>> piecewise_linear(x, torch.tensor([[0.5, 0.2]]))
        tensor([0.0000, 0.1000, 0.2000, 1.0000])
    """
    return value_and_slope(x.double(), knots(points))[0].to(x.dtype)


def value_and_slope(x: torch.Tensor, f: Knots) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The values and slopes of a piecewise-linear function; values are differentiable.

    Args:
        x: any shape, float64, in [0, 1].
        f: the function.

    Returns:
        Both of the shape and dtype of x.

    Example:
        >>> value_and_slope(torch.tensor([0.75]).double(), knots(torch.tensor([[0.5, 0.25]])))
        (tensor([0.6250], dtype=torch.float64), tensor([1.5000], dtype=torch.float64))
    """
    starts, y, slopes = f
    segment = torch.searchsorted(starts, x.detach().contiguous(), right=True) - 1
    segment = segment.clamp_(0, len(starts) - 1).masked_fill_(x <= 0, 0)
    slope = torch.cat([slopes, slopes[-1:]])[segment]
    return y[segment] + slope * (x - starts[segment]), slope


def identity_points() -> torch.Tensor:
    """
    (4, 2) control points of f(x) = x, a fifth apart.

    Example:
        >>> identity_points()[:2]
        tensor([[0.2000, 0.2000],
                [0.4000, 0.4000]])
    """
    return torch.linspace(0, 1, NUM_POINTS + 2)[1:-1, None].repeat(1, 2)


def check_points(name: str, points: torch.Tensor, num_functions: int) -> None:
    """
    Checks the control points of several functions.

    Args:
        name: of the argument, for the message.
        points: are to be (num_functions, 4, 2), in [0, 1], and rising in x and y.
        num_functions: how many functions there are to be.

    Raises:
        ValueError: another shape, a number out of range, points that fall.

    Example:
        >>> check_points("points", identity_points()[None].flip(1), 1)
        Traceback (most recent call last):
        ...
        ValueError: points: expected points that rise in x and in y, ...
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

    All numbers in [0, 1] give rising points (Tao et al., NeurIPS 2021, "Searching Parameterized AP
    Loss for Object Detection").

    Args:
        theta: (..., 8), x and y of the first point, then of the second, and so on.

    Returns:
        (..., 4, 2).

    Example:
        >>> control_points(torch.tensor([0.5, 0.2, 0.5, 0.5, 0.0, 0.5, 1.0, 1.0]))
        tensor([[0.5000, 0.2000],
                [0.7500, 0.6000],
                [0.7500, 0.8000],
                [1.0000, 1.0000]])
    """
    steps = theta.unflatten(-1, (NUM_POINTS, 2))
    return 1 - (1 - steps).cumprod(dim=-2)


def theta_of_points(points: torch.Tensor) -> torch.Tensor:
    """
    The inverse of :func:`control_points`.

    Args:
        points: (..., 4, 2), rising.

    Returns:
        (..., 8); 1 where any number would do, which is after a coordinate of 1.

    Example:
        >>> theta = torch.tensor([0.5, 0.25, 0.5, 0.5, 0.0, 0.5, 1.0, 1.0])
        >>> theta_of_points(control_points(theta)).tolist() == theta.tolist()
        True
    """
    before = torch.cat([torch.zeros_like(points[..., :1, :]), points[..., :-1, :]], dim=-2)
    theta = torch.where(before < 1, (points - before) / (1 - before), 1.0)
    return theta.flatten(-2)
