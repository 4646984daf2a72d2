# SPDX-License-Identifier: Apache-2.0
"""Updates from several forward and backward passes: larger minibatches in the same memory."""

import contextlib
import time
from collections.abc import Iterable

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class AccumulatingTrainer(SimpleTrainer):
    """
    Detectron2's SimpleTrainer, or its AMPTrainer, with the mean gradient of several minibatches in
    each iteration (Shrivastava et al. 2016, section 4.2, does so with minibatches of one image).

    The losses that are logged are means over the passes; what the heads log beside them is that of
    the last pass. A loss that is made of a whole minibatch,
    as the mAP loss and the choice of hard windows are, sees one pass at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        num_passes: int,
        is_amp: bool = False,
    ):
        """
        Args:
            model, data_loader, optimizer: as SimpleTrainer. num_passes: for each update. is_amp:
                autocast and a gradient scaler, on CUDA.

        Raises:
            ValueError: a number of passes below 1, or is_amp without CUDA.
        """
        if is_amp and not torch.cuda.is_available():
            raise ValueError("is_amp: expected a machine with CUDA, got one without")
        if num_passes < 1:
            raise ValueError(f"num_passes: expected at least 1, got {num_passes}")
        super().__init__(model, data_loader, optimizer)
        self.num_passes = num_passes
        self.is_amp = is_amp
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=is_amp)

    def run_step(self) -> None:
        """All passes, then one update."""
        self.optimizer.zero_grad()
        means: dict[str, torch.Tensor] = {}
        data_time = 0.0
        for i in range(self.num_passes):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            is_last = i == self.num_passes - 1
            with self._no_exchange(is_last), torch.autocast("cuda", enabled=self.is_amp):
                losses = self.model(data)
            losses = {name: loss / self.num_passes for name, loss in losses.items()}
            with self._no_exchange(is_last):
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + loss.detach()
        # Stops where a loss is not finite, before the update.
        self._write_metrics(means, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _no_exchange(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Gradients of several processes are averaged once, in the last pass."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def state_dict(self) -> dict:
        state = super().state_dict()
        return {**state, "grad_scaler": self.grad_scaler.state_dict()} if self.is_amp else state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if self.is_amp and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
