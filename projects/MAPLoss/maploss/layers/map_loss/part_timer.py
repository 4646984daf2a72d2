# SPDX-License-Identifier: Apache-2.0
"""Wall time of the parts of a computation that take turns, on the CPU or on CUDA."""

import itertools
import time

import torch


class PartTimer:
    """
    One part runs at a time: starting one ends the one before, :meth:`stop` ends the last.

    On CUDA the times are the device's, between events, and asking for them waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self, part: str) -> None:
        """The time from now on is that of `part`."""
        self._marks.append((part, self._now()))

    def stop(self) -> None:
        """The time from now on is that of none."""
        self._marks.append(("", self._now()))

    def seconds(self) -> dict[str, float]:
        """The time of each part that has ended, in seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        total: dict[str, float] = {}
        for (part, begin), (_, end) in itertools.pairwise(self._marks):
            if part:
                total[part] = total.get(part, 0.0) + _between(begin, end)
        return total

    def _now(self) -> "float | torch.cuda.Event":
        if self._device.type != "cuda":
            return time.perf_counter()
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event


def _between(begin: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin)  # type: ignore[arg-type]
    return begin.elapsed_time(end) / 1e3
