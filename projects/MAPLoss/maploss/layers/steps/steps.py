# SPDX-License-Identifier: Apache-2.0
"""The nearest steps of a piecewise-constant function. Shape letter: D coordinates."""

from typing import NamedTuple

import torch

# Values that differ by less are equal: sums of the same terms in another order.
VALUE_TOLERANCE = 1e-12


class Steps(NamedTuple):
    """
    The nearest steps of a piecewise-constant f above and below each coordinate, all else held.

    Values are float64, because their differences are small; places have the scores' dtype.

    Args:
        value: 0-d, f now.
        up_at, down_at: (D,) where the coordinate meets the step: the score of the detection that it
            passes there; nan where there is no step.
        up_value, down_value: (D,) f just beyond; nan where there is no step.
        up_partner, down_partner: (D,) int64, the detection that is passed, -1 for none.

    Example:
        >>> Steps.none(torch.tensor(0.5), torch.zeros(2)).up_partner
        tensor([-1, -1])
    """

    value: torch.Tensor
    up_at: torch.Tensor
    up_value: torch.Tensor
    down_at: torch.Tensor
    down_value: torch.Tensor
    up_partner: torch.Tensor
    down_partner: torch.Tensor

    @classmethod
    def none(cls, value: torch.Tensor, like: torch.Tensor) -> "Steps":
        """No step anywhere; shape, device and the places' dtype from `like` (D,)."""

        def filled(fill: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full_like(like, fill, dtype=dtype)

        nan = float("nan")
        places = [filled(nan, like.dtype) for _ in range(2)]
        values = [filled(nan, torch.float64) for _ in range(2)]
        partners = [filled(-1, torch.int64) for _ in range(2)]
        return cls(value.double(), places[0], values[0], places[1], values[1], *partners)

    def only(self, is_moving: torch.Tensor) -> "Steps":
        """Without the steps of the others: is_moving is (D,) bool."""
        nan = float("nan")
        is_fixed = ~is_moving
        columns = [x.masked_fill(is_fixed, nan if x.is_floating_point() else -1) for x in self[1:]]
        return Steps(self.value, *columns)

    def put(
        self,
        is_up: bool,
        who: torch.Tensor,
        partner: torch.Tensor,
        value: torch.Tensor,
        scores: torch.Tensor,
    ) -> None:
        """Writes in place: detections `who` (B,) have their step where they pass `partner` (B,)."""
        at = self.up_at if is_up else self.down_at
        at[who] = scores[partner]
        (self.up_value if is_up else self.down_value)[who] = value
        (self.up_partner if is_up else self.down_partner)[who] = partner
