# SPDX-License-Identifier: Apache-2.0
"""
The detections of a minibatch, class by class, for rankings that go beyond it.

Shape letters: D detections of all classes, K classes, E entries of the ranking of one class.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

# scores, matched_gt and is_kept of the detections of one class.
ClassDetections = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class DetectionLists(NamedTuple):
    """
    What a minibatch adds to the rankings of its classes, sorted by class.

    scores: (D,) float. matched_gt: (D,) int64, the index of the object matched among the
    `num_objects` of the minibatch, -1 for none, -2 for a difficult one. is_kept: (D,) bool, False
    for windows over an object that NMS hides, where these take part. counts: K numbers of
    detections. num_gt: (K,) int64, objects of each class without difficult ones.
    """

    scores: torch.Tensor
    matched_gt: torch.Tensor
    is_kept: torch.Tensor
    counts: list[int]
    num_gt: torch.Tensor
    num_objects: int

    def by_class(self, first_object: int = 0) -> list[ClassDetections]:
        """Of each of the K classes, objects counted from `first_object`."""
        matched_gt = self.matched_gt
        if first_object:
            matched_gt = torch.where(matched_gt >= 0, matched_gt + first_object, matched_gt)
        columns = (x.split(self.counts) for x in (self.scores, matched_gt, self.is_kept))
        return list(zip(*columns, strict=True))

    @classmethod
    def of(
        cls,
        classes: Sequence[ClassDetections],
        num_gt: torch.Tensor,
        num_objects: int,
    ) -> "DetectionLists":
        """Of K triples (scores, matched_gt, is_kept), K at least 1."""
        scores, matched_gt, is_kept = (torch.cat(column) for column in zip(*classes, strict=True))
        return cls(scores, matched_gt, is_kept, [len(x[0]) for x in classes], num_gt, num_objects)

    @classmethod
    def join(cls, lists: Sequence["DetectionLists"]) -> "DetectionLists":
        """One of several minibatches, at least one; their objects are different ones."""
        offsets = [sum(x.num_objects for x in lists[:i]) for i in range(len(lists))]
        split = [x.by_class(offset) for x, offset in zip(lists, offsets, strict=True)]
        joined = [
            tuple(torch.cat(column) for column in zip(*parts, strict=True))
            for parts in zip(*split, strict=True)
        ]
        num_gt = torch.stack([x.num_gt for x in lists]).sum(0)
        return cls.of(joined, num_gt, sum(x.num_objects for x in lists))  # type: ignore[arg-type]
