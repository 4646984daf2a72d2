# SPDX-License-Identifier: Apache-2.0
"""
Gradient-like quantities of piecewise-constant functions: nothing here knows of boxes or AP.

Shape letter: D coordinates.
"""

from collections.abc import Callable

import torch

from ..checks import check_choice, check_scores
from .ranked_windows import RankedSteps
from .steps import VALUE_TOLERANCE, Steps

ESTIMATORS = ("mee", "sde")
PAIRINGS = ("none", "paired")
# Numbers in the largest temporary matrix.
_CHUNK = 1 << 20
# A slope over less would not be a finite float32.
_LEAST_WIDTH = 1e-30


@torch.no_grad()
def pseudo_gradient(
    steps: Steps,
    scores: torch.Tensor,
    estimator: str = "mee",
    min_delta: float = 0.1,
    pairing: str = "none",
) -> torch.Tensor:
    """
    Pseudo partial derivatives from the nearest steps (Henderson & Ferrari 2016, section 4.3).

    `sde`: the mean of the slopes to the step above and to the step below, a missing one counting
    0, none taken over less than `min_delta`. `mee`: the mean slope of the upper and the lower
    envelope, (v+ - v-) / (2 (t+ - t-)), where both steps exist at two places, else as `sde`; places
    closer than 1e-30 count as so far apart.

    `paired` also subtracts each one-sided slope from the coordinate that is passed at the step, so
    that the gradient sums to zero, as that of a function of differences must: this project's own.

    Args:
        steps: of the same D coordinates.
        scores: (D,).
        estimator: "mee" or "sde".
        min_delta: in units of the scores, > 0.
        pairing: "none" or "paired".

    Returns:
        (D,) of the scores' dtype: the direction in which f rises.

    Raises:
        ValueError: an unknown estimator or pairing, min_delta not above 0.

    A false detection 1 above the only true one. AP rises from 1/2 to 1 where the two meet:

    >>> from maploss.layers import ap_steps
    >>> scores = torch.tensor([2.0, 1.0])
    >>> steps = ap_steps(scores, torch.tensor([-1, 0]), 1)
    >>> pseudo_gradient(steps, scores, "sde")
    tensor([-0.2500,  0.2500])
    >>> pseudo_gradient(steps, scores, "sde", pairing="paired")
    tensor([-0.5000,  0.5000])
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_choice("pairing", pairing, PAIRINGS)
    check_scores(scores, (len(steps.up_at),))
    if not min_delta > 0:
        raise ValueError(f"min_delta: expected more than 0, got {min_delta}")
    up, down = slopes(steps, scores.double(), estimator, min_delta)
    gradient = torch.nn.functional.pad(up + down, (0, 1))
    if pairing == "paired":
        _take_from_partners(gradient, up, steps.up_partner)
        _take_from_partners(gradient, down, steps.down_partner)
    return gradient[:-1].to(scores.dtype)


@torch.no_grad()
def ranked_pseudo_gradient(
    steps: RankedSteps,
    classes: torch.Tensor,
    scores: torch.Tensor,
    estimator: str,
    min_delta: float,
    pairing: str,
    is_moving: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    :func:`pseudo_gradient` of all classes, the mean over T overlaps; the input is not checked.

    Args:
        steps: of n windows by position.
        classes: (n,) int64.
        scores: (n,).
        estimator: "mee" or "sde".
        min_delta: in units of the scores, > 0.
        pairing: "none" or "paired".
        is_moving: (n,) bool, the windows whose steps count; None for all. With "paired" the windows
            that they pass get the opposite share, moving or not.

    Returns:
        (n,) of the scores' dtype.
    """
    num_overlaps, size = steps.up_value.shape
    x = scores.double()
    gradient = x.new_zeros(size + 1)
    rows = max(1, _CHUNK // max(1, size))
    for start in range(0, num_overlaps, rows):
        value, up_value, up_partner, down_value, down_partner = (
            column[start : start + rows] for column in steps
        )
        places = [
            torch.where(partner < 0, float("nan"), x[partner.clamp(min=0)])
            for partner in (up_partner, down_partner)
        ]
        some = Steps(
            value[:, classes], places[0], up_value, places[1], down_value, up_partner, down_partner
        )
        up, down = slopes(some, x, estimator, min_delta)
        if is_moving is not None:
            up.masked_fill_(~is_moving, 0.0)
            down.masked_fill_(~is_moving, 0.0)
        gradient[:-1] += (up + down).sum(0)
        if pairing == "paired":
            _take_from_partners(gradient, up, up_partner)
            _take_from_partners(gradient, down, down_partner)
    return (gradient[:-1] / num_overlaps).to(scores.dtype)


def slopes(
    steps: Steps, x: torch.Tensor, estimator: str, min_delta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the slope to the step above and to the step below each coordinate, 0 without one."""
    up_at, down_at = steps.up_at.double(), steps.down_at.double()
    up_width, down_width = (up_at - x).clamp_(min=min_delta), (x - down_at).clamp_(min=min_delta)
    if estimator == "mee":
        between = up_at - down_at
        # Both steps at the window's own score: its ties. There is no interval to take.
        has_both = between > 0
        between = between.clamp_(min=_LEAST_WIDTH)
        up_width = torch.where(has_both, between, up_width)
        down_width = torch.where(has_both, between, down_width)
    up = (0.5 * (steps.up_value - steps.value)).div_(up_width).nan_to_num_(nan=0.0)
    down = (0.5 * (steps.value - steps.down_value)).div_(down_width).nan_to_num_(nan=0.0)
    return up, down


def _take_from_partners(gradient: torch.Tensor, slope: torch.Tensor, partner: torch.Tensor) -> None:
    """Subtracts in place; the last place of `gradient` is for coordinates without a partner."""
    target = torch.where(partner < 0, len(gradient) - 1, partner)
    gradient.index_add_(0, target.flatten(), slope.flatten(), alpha=-1)


@torch.no_grad()
def exact_steps(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Steps:
    """
    The nearest steps of any f that depends on the order of its input only, by trying every place.

    Coordinate by coordinate, all others held, f is evaluated in every interval between two others:
    D^2 calls of f, for tests and for functions without a closed form. Ties keep their input
    order, as if an infinitesimal amount apart. f gets distinct float64 numbers in the order of x.

    Args:
        f: maps (D,) float64 to a 0-d tensor.
        x: (D,).

    Returns:
        Steps whose partner is the coordinate passed at the step.

    Raises:
        ValueError, TypeError, FloatingPointError: x of a wrong shape or dtype, or not finite.

    Example:
        f is 1 where the first coordinate is the larger one: the first has to rise to 3, the second
        to fall to 1.

        >>> steps = exact_steps(lambda x: (x[0] > x[1]).float(), torch.tensor([1.0, 3.0]))
        >>> steps.up_at, steps.down_at
        (tensor([3., nan]), tensor([nan, 1.]))
    """
    check_scores(x, ("D",))
    order = torch.argsort(x, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(x), device=x.device)
    places = -rank.double()
    value = f(places).double()
    steps = Steps.none(value, x)
    for i in range(len(x)):
        for is_up, step in ((True, -1), (False, 1)):
            passed = int(rank[i]) + step
            while 0 <= passed < len(x):
                moved = places.clone()
                moved[i] = -passed - 0.5 * step
                new = f(moved).double()
                if not torch.isclose(new, value, rtol=0.0, atol=VALUE_TOLERANCE):
                    who = torch.tensor([i], device=x.device)
                    steps.put(is_up, who, order[passed : passed + 1], new[None], x)
                    break
                passed += step
    return steps
