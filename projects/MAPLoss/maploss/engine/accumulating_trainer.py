# SPDX-License-Identifier: Apache-2.0
"""Updates from several forward and backward passes: larger minibatches in the same memory."""

import contextlib
import time
from collections.abc import Iterable

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..modeling.gradient_cache import LossInputs
from ..modeling.map_output_layers import map_output_layers_of
from ..modeling.meta_arch import MAPRCNN


class AccumulatingTrainer(SimpleTrainer):
    """
    Detectron2's SimpleTrainer, or its AMPTrainer, with the mean gradient of several minibatches in
    each iteration (Shrivastava et al. 2016, section 4.2, does so with minibatches of one image).

    The losses that are logged are means over the passes; what the heads log beside them is that of
    the last pass. The mAP loss is one mAP of the images of all passes, by gradient caching (Gao et
    al. 2021): each pass is scored once more before, without a graph. Other losses that are made of
    a whole minibatch, and the choice of hard windows, see one pass at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        num_passes: int,
        is_amp: bool = False,
    ) -> None:
        """
        Args:
            model: as SimpleTrainer.
            data_loader: as there.
            optimizer: as there.
            num_passes: for each update.
            is_amp: autocast, on CUDA with a gradient scaler.

        Raises:
            ValueError: a number of passes below 1, or above 1 with the mAP loss in another
                meta-architecture than MAPRCNN.
        """
        if num_passes < 1:
            raise ValueError(f"num_passes: expected at least 1, got {num_passes}")
        module = getattr(model, "module", model)
        if num_passes > 1 and map_output_layers_of(model) and not isinstance(module, MAPRCNN):
            raise ValueError(
                "MODEL.META_ARCHITECTURE: expected MAPRCNN for the mAP loss of several passes, "
                f"got {type(module).__name__}"
            )
        super().__init__(model, data_loader, optimizer)
        self.num_passes = num_passes
        self.is_amp = is_amp
        # On a CPU autocast takes bfloat16, whose range is that of single precision.
        self._device_type = next(iter(model.parameters())).device.type
        is_scaled = is_amp and self._device_type == "cuda"
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=is_scaled)

    def run_step(self) -> None:
        """All passes, then one update."""
        self.optimizer.zero_grad()
        start = time.perf_counter()
        minibatches = [next(self._data_loader_iter) for _ in range(self.num_passes)]
        data_time = time.perf_counter() - start
        means: dict[str, torch.Tensor] = {}
        for i, arguments in enumerate(self._arguments(minibatches)):
            is_last = i == self.num_passes - 1
            with self._no_exchange(is_last):
                with self._autocast():
                    losses = self.model(*arguments)
                losses = {name: loss / self.num_passes for name, loss in losses.items()}
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + loss.detach()
        # Stops where a loss is not finite, before the update.
        self._write_metrics(means, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _arguments(self, minibatches: list) -> list[tuple]:
        """Of each pass: its minibatch, and with the mAP loss what the ranking of all says of it."""
        predictor = map_output_layers_of(self.model)
        if self.num_passes == 1 or predictor is None:
            return [(data,) for data in minibatches]
        parts = self._loss_inputs(minibatches)
        joined = LossInputs.join(parts, [len(data) for data in minibatches])
        caches = predictor.rank(joined).split([len(x.scores) for x in parts])
        return list(zip(minibatches, caches, strict=True))

    def _loss_inputs(self, minibatches: list) -> list[LossInputs]:
        """What the mAP loss ranks; keeps no graph, and draws what the passes will draw again."""
        is_parallel = isinstance(self.model, DistributedDataParallel)
        model = self.model.module if is_parallel else self.model
        buffers = [(x, x.clone()) for x in model.buffers()]
        devices = [x.device for x in model.parameters() if x.is_cuda][:1]
        with torch.random.fork_rng(devices), torch.no_grad(), self._autocast():
            parts = [model.loss_inputs(data) for data in minibatches]
        # Those of normalisation layers have seen the images, and will see them again.
        for buffer, value in buffers:
            buffer.copy_(value)
        return parts

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self._device_type, enabled=self.is_amp)

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
