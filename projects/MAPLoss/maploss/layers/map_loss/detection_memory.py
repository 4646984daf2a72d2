# SPDX-License-Identifier: Apache-2.0
"""Detections of the last minibatches, which stay in the ranking as constants."""

from collections import deque
from typing import NamedTuple

import torch

from .detections import Detections


class RememberedMinibatch(NamedTuple):
    """
    Detections of a minibatch, and its objects.

    Args:
        detections: n, of any of K classes.
        num_gt: (K,) int64, objects of each class without difficult ones.
        num_objects: objects are counted up to it.
        iou_threshs: overlaps, of which the levels of the detections are.
    """

    detections: Detections
    num_gt: torch.Tensor
    num_objects: int
    iou_threshs: tuple[float, ...]


class DetectionMemory:
    """
    The detections of the last `size` minibatches, with their numbers of objects.

    What it holds is bounded by `size` x windows x classes detections of 17 bytes. Scores are those
    of the parameters at their time.

    Args:
        size: number of minibatches, 1 or more.

    Raises:
        ValueError: another number.

    Example:
        >>> len(DetectionMemory(2))
        0
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size: expected at least 1 minibatch, got {size}")
        self.size = size
        self._minibatches: deque[RememberedMinibatch] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._minibatches)

    def remember(self, minibatch: RememberedMinibatch) -> None:
        """Takes in a minibatch; the oldest one goes if there is no more room."""
        detections = minibatch.detections
        small = {name: getattr(detections, name).int() for name in ("classes", "objects", "levels")}
        self._minibatches.append(minibatch._replace(detections=detections._replace(**small)))

    def recall(
        self, scores: torch.Tensor, iou_threshs: tuple[float, ...]
    ) -> RememberedMinibatch | None:
        """
        All of them as one, on the device and with the dtype of `scores`; None if empty.

        Raises:
            ValueError: they were matched at other overlaps.
        """
        if not self._minibatches:
            return None
        parts, first = [], 0
        for minibatch in self._minibatches:
            if tuple(minibatch.iou_threshs) != iou_threshs:
                raise ValueError(
                    f"memory: expected detections at the overlaps {iou_threshs}, got some at "
                    f"{tuple(minibatch.iou_threshs)}"
                )
            # Each by itself: those of a checkpoint are on the CPU.
            found, *inds, is_kept = (x.to(scores.device) for x in minibatch.detections)
            moved = Detections._make([found.to(scores), *(x.long() for x in inds), is_kept])
            parts.append(moved.shift_objects(first))
            first += minibatch.num_objects
        num_gt = torch.stack([x.num_gt.to(scores.device) for x in self._minibatches]).sum(0)
        return RememberedMinibatch(Detections.cat(parts), num_gt, first, iou_threshs)

    def state_dict(self) -> dict:
        """Tensors, numbers and lists only."""
        return {"minibatches": [(*x.detections, *x[1:]) for x in self._minibatches]}

    def load_state_dict(self, state: dict) -> None:
        """Takes the last `size` of the minibatches of a state of any size."""
        num = len(Detections._fields)
        self._minibatches.clear()
        self._minibatches.extend(
            RememberedMinibatch(Detections._make(x[:num]), *x[num:]) for x in state["minibatches"]
        )
