# SPDX-License-Identifier: Apache-2.0
"""
Search spaces: some keys of a config as numbers in [0, 1].

Shape letters: d numbers of all keys together, F functions of one key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..layers.ranking_losses.piecewise_linear import (
    NUM_POINTS,
    check_points,
    control_points,
    identity_points,
    theta_of_points,
)

SCALES = ("linear", "log")
# A start at the very end of [0, 1] has no finite logit.
_MARGIN = 0.01


@dataclass(frozen=True)
class Functions:
    """Control points of piecewise-linear functions: 8 numbers each, see :func:`control_points`."""

    key: str
    num_functions: int

    @property
    def num(self) -> int:
        """How many numbers stand for the key."""
        return 2 * NUM_POINTS * self.num_functions

    def value(self, theta: torch.Tensor) -> list[list[list[float]]]:
        """Nested lists F x 4 x [x, y] of (num,) numbers."""
        points = control_points(theta.unflatten(0, (self.num_functions, -1)))
        return [[[_short(number) for number in point] for point in f] for f in points.tolist()]

    def theta(self, value: Sequence) -> torch.Tensor:
        """The inverse of :meth:`value`; [] is the identity."""
        if len(value):
            points = torch.tensor(value, dtype=torch.float64)
            check_points(self.key, points, self.num_functions)
        else:
            points = identity_points().double().expand(self.num_functions, -1, -1)
        return theta_of_points(points).flatten()


@dataclass(frozen=True)
class Range:
    """A number from low to high, at equal steps of itself or of its logarithm."""

    key: str
    low: float
    high: float
    is_log: bool
    num = 1

    def value(self, theta: torch.Tensor) -> float:
        """The number in [low, high] of (1,)."""
        share = float(theta)
        if self.is_log:
            return _short(self.low * (self.high / self.low) ** share)
        return _short(self.low + (self.high - self.low) * share)

    def theta(self, value: float) -> torch.Tensor:
        """The inverse of :meth:`value`; what lies outside counts as the nearer end."""
        number = torch.tensor([value], dtype=torch.float64).clamp(self.low, self.high)
        if self.is_log:
            number, low, high = torch.tensor([float(number), self.low, self.high]).double().log()
        else:
            low, high = self.low, self.high
        return ((number - low) / (high - low)).reshape(1)


@dataclass(frozen=True)
class Choices:
    """One of some values: equal bins of [0, 1]."""

    key: str
    choices: tuple[Any, ...]
    num = 1

    def value(self, theta: torch.Tensor) -> Any:
        """The choice of (1,)."""
        return self.choices[min(int(float(theta) * len(self.choices)), len(self.choices) - 1)]

    def theta(self, value: Any) -> torch.Tensor:
        """The middle of its bin."""
        if value not in self.choices:
            raise ValueError(f"expected one of {list(self.choices)}, got {value!r}")
        middle = (self.choices.index(value) + 0.5) / len(self.choices)
        return torch.tensor([middle], dtype=torch.float64)


Entry = Functions | Range | Choices


class SearchSpace:
    """All entries of a search, one after the other in a vector theta of d numbers in [0, 1]."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """
        Args:
            entries: of different keys.

        Raises:
            ValueError: no entry, or two of one key.
        """
        keys = [entry.key for entry in entries]
        if not keys:
            raise ValueError("SPACE: expected entries, got none")
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"SPACE: expected one entry a key, got more of {min(twice)}")
        self.entries = tuple(entries)

    @property
    def num(self) -> int:
        """d."""
        return sum(entry.num for entry in self.entries)

    def values(self, theta: torch.Tensor) -> dict[str, Any]:
        """The value of each key, for theta (d,)."""
        parts = theta.split([entry.num for entry in self.entries])
        return {e.key: e.value(part) for e, part in zip(self.entries, parts, strict=True)}

    def theta(self, values: Mapping[str, Any]) -> torch.Tensor:
        """(d,) float64, the inverse of :meth:`values`, but at least .01 from 0 and from 1."""
        parts = [entry.theta(values[entry.key]) for entry in self.entries]
        return torch.cat(parts).clamp(_MARGIN, 1 - _MARGIN)

    def overrides(self, theta: torch.Tensor) -> list[str]:
        """KEY VALUE KEY VALUE .., as on the command line of train_net.py, for theta (d,)."""
        return [x for key, value in self.values(theta).items() for x in (key, repr(value))]

    def functions(self, theta: torch.Tensor) -> dict[str, list]:
        """The control points of the keys that have some, for theta (d,)."""
        keys = {entry.key for entry in self.entries if isinstance(entry, Functions)}
        return {key: value for key, value in self.values(theta).items() if key in keys}


def parse_entry(name: str, given: Any) -> Entry:
    """
    An entry of SPACE as the search file has it.

    One of {KEY, FUNCTIONS}, {KEY, LOW, HIGH, SCALE} or {KEY, CHOICES}; START is not looked at.

    Args:
        name: what messages call it.
        given: read from yaml.

    Raises:
        ValueError: other keys, an empty range, a logarithm of what is not above 0, no choice.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("KEY"), str):
        raise ValueError(f"{name}: expected a dictionary with KEY, got {given!r}")
    name, kind = f"{name} ({given['KEY']})", set(given) - {"KEY", "START"}
    if kind == {"FUNCTIONS"}:
        num = given["FUNCTIONS"]
        if not isinstance(num, int) or num < 1:
            raise ValueError(f"{name}: FUNCTIONS: expected a whole number above 0, got {num!r}")
        return Functions(given["KEY"], num)
    if kind == {"CHOICES"}:
        choices = given["CHOICES"]
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"{name}: CHOICES: expected a list of values, got {choices!r}")
        return Choices(given["KEY"], tuple(choices))
    if kind == {"LOW", "HIGH", "SCALE"}:
        return _parse_range(name, given)
    got = sorted(kind, key=str)
    raise ValueError(f"{name}: expected FUNCTIONS, or LOW, HIGH and SCALE, or CHOICES, got {got}")


def _parse_range(name: str, given: Mapping) -> Range:
    low, high, scale = given["LOW"], given["HIGH"], given["SCALE"]
    for end, number in (("LOW", low), ("HIGH", high)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            # To yaml 1e-3 is a word, 1.0e-3 a number.
            raise ValueError(f"{name}: {end}: expected a number such as 1.0e-3, got {number!r}")
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"{name}: expected LOW < HIGH, both finite, got LOW {low}, HIGH {high}")
    if scale not in SCALES:
        raise ValueError(f"{name}: SCALE: expected one of {', '.join(SCALES)}, got {scale!r}")
    if scale == "log" and low <= 0:
        raise ValueError(f"{name}: LOW: expected more than 0 for SCALE log, got {low}")
    return Range(given["KEY"], float(low), float(high), scale == "log")


def _short(number: float) -> float:
    """Six digits are as good, and a file of them can be read."""
    return float(f"{number:.6g}")
