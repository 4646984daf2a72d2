# SPDX-License-Identifier: Apache-2.0
"""Detections of the last minibatches, which stay in the ranking as constants."""

from collections import deque

import torch

from .detection_lists import DetectionLists


class DetectionMemory:
    """
    The detections of the last `size` minibatches, with their numbers of objects.

    What it holds is bounded by `size` x windows x classes detections of 13 bytes. Scores are those
    of the parameters at their time.
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: number of minibatches, 1 or more.

        Raises:
            ValueError: another number.
        """
        if size < 1:
            raise ValueError(f"size: expected at least 1 minibatch, got {size}")
        self.size = size
        self._minibatches: deque[DetectionLists] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._minibatches)

    def remember(self, minibatch: DetectionLists) -> None:
        """Takes in a minibatch; the oldest one goes if there is no more room."""
        lists = minibatch._replace(matched_gt=minibatch.matched_gt.int())
        self._minibatches.append(lists)

    def recall(self, scores: torch.Tensor) -> DetectionLists | None:
        """All of them as one, on the device and with the dtype of `scores`; None if empty."""
        if not self._minibatches:
            return None
        # Each by itself: those of a checkpoint are on the CPU.
        return DetectionLists.join([_at(x, scores) for x in self._minibatches])

    def state_dict(self) -> dict:
        """Tensors, numbers and lists only."""
        return {"minibatches": [tuple(x) for x in self._minibatches]}

    def load_state_dict(self, state: dict) -> None:
        """Takes the last `size` of the minibatches of a state of any size."""
        self._minibatches.clear()
        self._minibatches.extend(DetectionLists(*x) for x in state["minibatches"])


def _at(lists: DetectionLists, scores: torch.Tensor) -> DetectionLists:
    """On the device and with the dtype of `scores`."""
    return lists._replace(
        scores=lists.scores.to(scores),
        matched_gt=lists.matched_gt.to(scores.device, torch.int64),
        is_kept=lists.is_kept.to(scores.device),
        num_gt=lists.num_gt.to(scores.device),
    )
