# SPDX-License-Identifier: Apache-2.0
"""The progress of training as one readable line."""

import datetime
import logging

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

logger = logging.getLogger(__name__)

# What the line shows: name in the event storage, name in the line, format.
_MEDIANS = (
    ("total_loss", "loss", ".4f"),
    ("map/minibatch_map", "minibatch mAP", ".3f"),
    ("loss_score_reg", "regulariser", ".4f"),
)


class ProgressWriter(EventWriter):
    """
    Logs iteration, ETA, loss, minibatch mAP, regulariser, learning rate, time and GPU memory.

    Iterations count from 0, as in metrics.json and the names of checkpoints. Loss, mAP and
    regulariser are medians, the time is a mean, of the last `window_size` iterations;
    what the event storage does not have is left out.
    """

    def __init__(self, max_iter: int, window_size: int = 20) -> None:
        """
        Args:
            max_iter: number of iterations in all.
            window_size: number of iterations summed up.
        """
        self._max_iter = max_iter
        self._window_size = window_size

    def write(self) -> None:
        storage = get_event_storage()
        # Detectron2 writes once more after the last iteration, when there is nothing new.
        if storage.iter < self._max_iter:
            logger.info(self._line(storage))

    def _line(self, storage: EventStorage) -> str:
        parts = [f"iteration {storage.iter}/{self._max_iter}"]
        histories = storage.histories()
        if "time" in histories:
            left = histories["time"].median(1000) * (self._max_iter - storage.iter - 1)
            parts.append(f"ETA {datetime.timedelta(seconds=round(left))}")
        for name, label, number_format in _MEDIANS:
            if name in histories:
                value = histories[name].median(self._window_size)
                parts.append(f"{label} {value:{number_format}}")
        if "lr" in histories:
            parts.append(f"lr {histories['lr'].latest():.3g}")
        if "time" in histories:
            parts.append(f"{histories['time'].avg(self._window_size):.3f} s/iteration")
        if torch.cuda.is_available():
            parts.append(f"GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
        return "  ".join(parts)
