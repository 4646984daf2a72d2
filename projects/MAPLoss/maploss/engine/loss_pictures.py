# SPDX-License-Identifier: Apache-2.0
"""Pictures of what the mAP loss makes of a minibatch, for TensorBoard."""

import math

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..data.images import read_image
from ..data.mapper import to_tensor
from ..layers import MAPLossStats, precision_recall
from ..modeling.gradient_cache import LossInputs
from ..modeling.map_output_layers import map_output_layers_of
from ..visualization import gradient_picture, minibatch_pr_picture


class LossPictures(HookBase):
    """
    Every `period` iterations: the minibatch's PR curves, and the image whose windows have the
    largest pseudo-gradient of one class, with that: by scores and, where boxes learn from the mAP,
    by boxes.

    What the loss ranks is taken by hooks of torch on the model and on its loss, which are there for
    these iterations only. Nothing is drawn for other losses, nor without a period.
    """

    def __init__(self, model: nn.Module, period: int, image_format: str) -> None:
        """
        Args:
            model: a detector with an `roi_heads.box_predictor`, perhaps parallel.
            period: 0 for never.
            image_format: of the inputs' images, "BGR" or "RGB".
        """
        self._predictor = map_output_layers_of(model)
        self._class_names = [] if self._predictor is None else self._predictor.class_names
        self._model, self._period = getattr(model, "module", model), period
        self._image_format = image_format
        self._inputs: list[dict] = []
        self._ranked: tuple[LossInputs, MAPLossStats] | None = None
        self._handles: list[RemovableHandle] = []

    def before_step(self) -> None:
        if self._predictor is not None and self._period and not self.trainer.iter % self._period:
            self._handles = [
                self._model.register_forward_pre_hook(self._take_inputs),
                self._predictor.map_loss.register_forward_hook(self._take_ranking),
            ]

    def after_step(self) -> None:
        for handle in self._handles:
            handle.remove()
        inputs, ranked = self._inputs, self._ranked
        self._handles, self._inputs, self._ranked = [], [], None
        if ranked is not None:
            for name, picture in self._draw(*ranked, inputs).items():
                self.trainer.storage.put_image(name, picture)

    def _take_inputs(self, model: nn.Module, args: tuple) -> None:
        self._inputs += args[0]

    def _image(self, inputs: dict) -> torch.Tensor:
        """(3, H, W) uint8, RGB; where the model had features instead, it is read now."""
        if "image" in inputs:
            image = inputs["image"]
        else:
            view = inputs["view"]
            image = to_tensor(view.render(read_image(view.file_name, self._image_format)))
        return image.flip(0) if self._image_format == "BGR" else image

    def _take_ranking(self, loss: nn.Module, args: tuple, output: tuple) -> None:
        """The last minibatch that the loss has ranked: of all passes, if there are several."""
        self._ranked = (LossInputs(*(x.detach() for x in args)), output[1])

    def _draw(
        self, ranked: LossInputs, stats: MAPLossStats, inputs: list[dict]
    ) -> dict[str, torch.Tensor]:
        """Pictures (3, H, W) uint8 by name."""
        names = self._class_names
        curves = {}
        for c, ap in enumerate(stats.ap_per_class.tolist()):
            detections = None if math.isnan(ap) else stats.class_detections(c)
            # Another process may have ranked the class.
            if detections is not None:
                precision, recall = precision_recall(*detections)
                curves[names[c]] = (precision.cpu(), recall.cpu(), ap)
        pictures = {"minibatch PR curves": minibatch_pr_picture(curves, float(stats.map))}
        sizes = stats.gradient.abs()
        if sizes.any():
            num_images = int(ranked.image_ids.max()) + 1
            by_image = sizes.new_zeros(num_images, sizes.shape[1])
            by_image.index_add_(0, ranked.image_ids, sizes)
            image, c = divmod(int(by_image.argmax()), sizes.shape[1])
            windows = ranked.image_ids == image
            objects = (ranked.gt_image_ids == image) & (ranked.gt_classes == c)
            boxes, of_boxes = ranked.boxes[windows], stats.box_gradient
            pictures[f"pseudo-gradient of {names[c]}"] = gradient_picture(
                self._image(inputs[image]),
                boxes if boxes.dim() == 2 else boxes[:, c],
                stats.gradient[windows, c],
                ranked.gt_boxes[objects],
                None if of_boxes is None else of_boxes.by_overlap[windows, c],
            )
        return {k: torch.from_numpy(v).permute(2, 0, 1) for k, v in pictures.items()}
