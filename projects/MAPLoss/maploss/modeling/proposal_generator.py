# SPDX-License-Identifier: Apache-2.0
"""Proposals for images that come without: selective search inside the model, at test."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ..layers.selective_search import reduced_search

# Selective search sees images at about the size that those of the data sets have.
_LONGER_SIDE = 500


@PROPOSAL_GENERATOR_REGISTRY.register()
class SelectiveSearchProposals(nn.Module):
    """
    MODEL.PROPOSAL_GENERATOR.NAME "SelectiveSearchProposals": selective search in fast mode on the
    image that the backbone sees, so that an exported model needs nothing but images.

    The proposals are not those of a file made by tools/proposals.py from images of another size.
    """

    @configurable
    def __init__(
        self,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
        image_format: str,
        max_proposals: int,
    ) -> None:
        """
        Args:
            pixel_mean: that the model's input was normalised with.
            pixel_std: as `pixel_mean`.
            image_format: "BGR" or "RGB".
            max_proposals: at most so many of an image, the best.

        Raises:
            ValueError: another format.
        """
        super().__init__()
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT: expected BGR or RGB, got {image_format!r}")
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.image_format = image_format
        self.max_proposals = max_proposals

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict:
        return {
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "image_format": cfg.INPUT.FORMAT,
            "max_proposals": cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST,
        }

    def forward(
        self, images: ImageList, features: dict, gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict]:
        """
        Of each image Instances with proposal_boxes and objectness_logits, and no losses.

        Raises:
            RuntimeError: in training, which takes proposals from files.
        """
        if self.training:
            raise RuntimeError(
                "SelectiveSearchProposals: expected a test; train with MODEL.LOAD_PROPOSALS True "
                "and MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals"
            )
        all_proposals = []
        for image in images:
            pixels = (image * self.pixel_std + self.pixel_mean).round().clamp(0, 255)
            pixels = pixels.byte().permute(1, 2, 0).cpu().numpy()
            boxes = self._proposals(pixels if self.image_format == "BGR" else pixels[:, :, ::-1])
            proposals = Instances(tuple(image.shape[1:]))
            proposals.proposal_boxes = Boxes(torch.from_numpy(boxes).to(image.device))
            proposals.objectness_logits = -torch.arange(len(boxes), device=image.device).float()
            all_proposals.append(proposals)
        return all_proposals, {}

    def _proposals(self, image: np.ndarray) -> np.ndarray:
        return reduced_search(image, _LONGER_SIDE)[: self.max_proposals]
