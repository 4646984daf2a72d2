# SPDX-License-Identifier: Apache-2.0
"""
The test on an image pyramid: each proposal at the scale that suits it (Girshick 2015, section 3).

Shape letters: R proposals of an image, S images of its pyramid.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from detectron2.modeling import GeneralizedRCNN, ROIHeads
from detectron2.structures import Boxes, Instances

from .output_layers import BoxPredictions


def choose_scales(
    boxes: torch.Tensor, scales: Sequence[float], best_side: float = 224.0
) -> torch.Tensor:
    """
    (R,) index of the scale at which the area of each box is closest to the best one.

    Args:
        boxes: (R, 4) XYXY in pixels of the image at scale 1.
        scales: S factors.
        best_side: of the square of the best area in pixels, 224: the images of the classifier's
            training.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    factors = torch.as_tensor(scales, dtype=areas.dtype, device=areas.device)
    return (areas[:, None] * factors**2 - best_side**2).abs().argmin(dim=1)


class ImagePyramid:
    """One scene at S sizes, in the place of features: those of a size are computed when needed."""

    def __init__(
        self, model: GeneralizedRCNN, images: Sequence[torch.Tensor], best_side: float = 224.0
    ) -> None:
        """
        Args:
            model: a GeneralizedRCNN.
            images: S images (3, H, W) of the same scene, as the mapper has them.
            best_side: see :func:`choose_scales`.
        """
        self.sizes = [tuple(image.shape[1:]) for image in images]
        self.best_side = best_side
        self._model, self._images = model, images
        self._features: dict[int, dict[str, torch.Tensor]] = {}

    def features(self, level: int) -> dict[str, torch.Tensor]:
        """The backbone's outputs of one of the S images."""
        if level not in self._features:
            image = self._model.preprocess_image([{"image": self._images[level]}])
            self._features[level] = self._model.backbone(image.tensor)
        return self._features[level]


# What ROI heads take: the backbone's outputs by name, of N images, or one scene at several sizes.
Features: TypeAlias = dict[str, torch.Tensor] | ImagePyramid


def score_on_pyramid(
    heads: ROIHeads, pyramid: ImagePyramid, proposals: Instances
) -> BoxPredictions:
    """
    What is said of each proposal, seen in one image of the pyramid.

    Args:
        heads: with `score_proposals`, which scores proposals in the pixels of an image.
        pyramid: of the scene.
        proposals: R, in pixels of `proposals.image_size`.
    """
    height, width = proposals.image_size
    boxes = proposals.proposal_boxes.tensor
    scales = [(h * w / (height * width)) ** 0.5 for h, w in pyramid.sizes]
    levels = choose_scales(boxes, scales, pyramid.best_side)
    by_level, order = [], []
    for level, size in enumerate(pyramid.sizes):
        inds = (levels == level).nonzero().squeeze(1)
        if len(inds) or (not len(boxes) and level == 0):
            of_level = Instances(size)
            of_level.proposal_boxes = Boxes(boxes[inds].clone())
            of_level.proposal_boxes.scale(size[1] / width, size[0] / height)
            by_level.append(heads.score_proposals(pyramid.features(level), [of_level]))
            order.append(inds)
    back = torch.argsort(torch.cat(order))
    scores = torch.cat([x.scores for x in by_level])[back]
    deltas = [x.deltas for x in by_level]
    return BoxPredictions(scores, None if deltas[0] is None else torch.cat(deltas)[back])
