# SPDX-License-Identifier: Apache-2.0
"""Pictures of what the mAP loss makes of a minibatch, for TensorBoard."""

import torch
from detectron2.engine import HookBase
from torch import nn

from ..layers import MAPLossStats, precision_recall
from ..modeling.joint_ranking import LossInputs
from ..modeling.map_output_layers import map_output_layers_of
from ..visualization import gradient_picture, minibatch_pr_picture


class LossPictures(HookBase):
    """
    Every `period` iterations: the minibatch's PR curves, and the image whose windows are pushed
    most, with the pseudo-gradient of the class of which they are.

    Nothing is drawn for other losses, nor without a period.
    """

    def __init__(self, model: nn.Module, period: int, image_format: str) -> None:
        """
        Args:
            model: a detector with an `roi_heads.box_predictor`, perhaps parallel. period: 0 for
            never. image_format: of the inputs' images, "BGR" or "RGB".
        """
        self._predictor = map_output_layers_of(model)
        self._model, self._period = getattr(model, "module", model), period
        self._is_bgr = image_format == "BGR"
        self._images: list[torch.Tensor] = []
        self._handle = None

    def before_step(self) -> None:
        if self._predictor is not None and self._period and not self.trainer.iter % self._period:
            self._predictor.is_watched = True
            self._handle = self._model.register_forward_pre_hook(self._take_images)

    def after_step(self) -> None:
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        images, self._images = self._images, []
        watched, self._predictor.watched = self._predictor.watched, None
        self._predictor.is_watched = False
        if watched is not None:
            for name, picture in self._draw(*watched, images).items():
                self.trainer.storage.put_image(name, picture)

    def _take_images(self, model: nn.Module, args: tuple) -> None:
        self._images += [inputs["image"] for inputs in args[0]]

    def _draw(
        self, inputs: LossInputs, stats: MAPLossStats, images: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Pictures (3, H, W) uint8 by name."""
        names = self._predictor.class_names
        curves = {
            names[c]: (
                *(x.cpu() for x in precision_recall(curve.scores, curve.matched_gt, curve.num_gt)),
                float(stats.ap_per_class[c]),
            )
            for c, curve in stats.curves.items()
        }
        pictures = {"minibatch PR curves": minibatch_pr_picture(curves, float(stats.map))}
        pushes = stats.gradient.abs()
        if pushes.any():
            num_images = int(inputs.image_ids.max()) + 1
            by_image = pushes.new_zeros(num_images, pushes.shape[1])
            by_image.index_add_(0, inputs.image_ids, pushes)
            image, c = divmod(int(by_image.argmax()), pushes.shape[1])
            windows = inputs.image_ids == image
            objects = (inputs.gt_image_ids == image) & (inputs.gt_classes == c)
            boxes = inputs.boxes[windows]
            pictures[f"pseudo-gradient of {names[c]}"] = gradient_picture(
                images[image].flip(0) if self._is_bgr else images[image],
                boxes if boxes.dim() == 2 else boxes[:, c],
                stats.gradient[windows, c],
                inputs.gt_boxes[objects],
            )
        return {k: torch.from_numpy(v).permute(2, 0, 1) for k, v in pictures.items()}
