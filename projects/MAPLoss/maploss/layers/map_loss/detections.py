# SPDX-License-Identifier: Apache-2.0
"""
What takes part in the rankings of a minibatch.

Shape letter: n detections of all classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Detections(NamedTuple):
    """
    What NMS keeps and, where they are ranked too, windows over objects that it suppresses.

    Args:
        scores: (n,) float.
        classes: (n,) int64.
        objects: (n,) int64, the object of its class and image that each overlaps most, UNMATCHED or
            DIFFICULT; objects of different images or classes have different numbers.
        levels: (n,) int64, how many of the overlaps its IoU exceeds: it is matched at the first so
            many.
        is_kept: (n,) bool.
    """

    scores: torch.Tensor
    classes: torch.Tensor
    objects: torch.Tensor
    levels: torch.Tensor
    is_kept: torch.Tensor

    def take(self, inds: torch.Tensor | slice) -> "Detections":
        """Those at `inds` (B,), in their order."""
        return Detections(*(x[inds] for x in self))

    def shift_objects(self, first: int | torch.Tensor) -> "Detections":
        """With objects counted from `first`, of all or (n,) of each."""
        if isinstance(first, int) and not first:
            return self
        shifted = torch.where(self.objects >= 0, self.objects + first, self.objects)
        return self._replace(objects=shifted)

    @classmethod
    def cat(cls, parts: Sequence["Detections"]) -> "Detections":
        """All of several."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))
