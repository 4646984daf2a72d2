# SPDX-License-Identifier: Apache-2.0
"""
Gradient-like quantities of piecewise-constant functions: nothing here knows of boxes or AP.

Shape letter: D coordinates.
"""

from collections.abc import Callable

import torch

from ..checks import check_choice, check_scores
from .steps import VALUE_TOLERANCE, Steps

ESTIMATORS = ("mee", "sde")
PAIRINGS = ("none", "paired")
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
        steps: of the same D coordinates. scores: (D,). min_delta: in units of the scores, > 0.
        estimator: "mee" or "sde". pairing: "none" or "paired".

    Returns:
        (D,) of the scores' dtype: the direction in which f rises.

    Raises:
        ValueError: an unknown estimator or pairing, min_delta not above 0.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_choice("pairing", pairing, PAIRINGS)
    check_scores(scores, (len(steps.up_at),))
    if not min_delta > 0:
        raise ValueError(f"min_delta: expected more than 0, got {min_delta}")
    x = scores.double()
    up_at, down_at = steps.up_at.double(), steps.down_at.double()
    rise, fall = up_at - x, x - down_at
    up_width, down_width = rise.clamp(min=min_delta), fall.clamp(min=min_delta)
    if estimator == "mee":
        between = up_at - down_at
        # Both steps at the window's own score: its ties. There is no interval to take.
        has_both = between > 0
        between = between.clamp(min=_LEAST_WIDTH)
        up_width = torch.where(has_both, between, up_width)
        down_width = torch.where(has_both, between, down_width)
    up = (0.5 * (steps.up_value - steps.value) / up_width).nan_to_num(nan=0.0)
    down = (0.5 * (steps.value - steps.down_value) / down_width).nan_to_num(nan=0.0)
    gradient = up + down
    if pairing == "paired":
        for slope, partner in ((up, steps.up_partner), (down, steps.down_partner)):
            has_partner = partner >= 0
            gradient.index_add_(0, partner[has_partner], slope[has_partner], alpha=-1)
    return gradient.to(scores.dtype)


@torch.no_grad()
def exact_steps(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Steps:
    """
    The nearest steps of any f that depends on the order of its input only, by trying every place.

    Coordinate by coordinate, all others held, f is evaluated in every interval between two others:
    D^2 calls of f, for tests and for functions without a closed form. Ties keep their input
    order, as if an infinitesimal amount apart. f gets distinct float64 numbers in the order of x.

    Args:
        f: maps (D,) float64 to a 0-d tensor. x: (D,).

    Returns:
        Steps whose partner is the coordinate passed at the step.
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
