# SPDX-License-Identifier: Apache-2.0
"""
Features of images of different sizes, padded to one size, as a transformer takes them.

Shape letters: N images, L levels, D channels.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import nn

Level = tuple[torch.Tensor, torch.Tensor]


class FeatureLevels(nn.Module):
    """
    A convolution 1 x 1 to D channels and GroupNorm on each output of a backbone, and further levels
    by convolutions 3 x 3 of stride 2 (Zhu et al., ICLR 2021, appendix A.2).

    Images of the same size go through the backbone together, others apart, and only then are they
    padded. So what a model makes of an image does not depend on the others of the minibatch: a
    padded image would have other borders in convolutions and other statistics in GroupNorm.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], d_model: int, num: int
    ) -> None:
        """
        Args:
            channels: of the backbone's outputs that are used, the finest first.
            strides: theirs.
            d_model: D, a multiple of 8.
            num: L, at least that of the outputs.

        Raises:
            ValueError: fewer levels than outputs, or none.
        """
        super().__init__()
        if not 0 < len(channels) <= num:
            raise ValueError(
                "MODEL.DEFORMABLE_DETR.NUM_FEATURE_LEVELS: expected at least the number of "
                f"IN_FEATURES, {len(channels)} (1 or more), got {num}"
            )
        convs = [nn.Conv2d(x, d_model, kernel_size=1) for x in channels]
        last = channels[-1]
        for _ in range(num - len(channels)):
            convs.append(nn.Conv2d(last, d_model, kernel_size=3, stride=2, padding=1))
            last = d_model
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        # 8 channels to a group, as the paper's 256 in 32.
        self.projections = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(d_model // 8, d_model)) for conv in convs
        )
        self.strides = tuple(strides)

    def forward(
        self, backbone: Backbone, names: Sequence[str], images: Sequence[torch.Tensor]
    ) -> list[Level]:
        """
        Args:
            backbone: with the outputs that this was made for.
            names: of these outputs.
            images: N, each (3, H, W), as the backbone takes them.

        Returns:
            L pairs: (N, D, h, w), and (N, h, w) bool, False for padding.
        """
        inds_of: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            height, width = image.shape[1:]
            inds_of.setdefault((height, width), []).append(i)
        parts = []
        for size, inds in inds_of.items():
            same = [images[i] for i in inds]
            batch = ImageList.from_tensors(same, backbone.size_divisibility).tensor
            outputs = backbone(batch)
            parts.append((inds, self._project([outputs[name] for name in names], size)))
        return [
            _pad([(inds, levels[i]) for inds, levels in parts], len(images))
            for i in range(len(self.projections))
        ]

    def _project(
        self, features: Sequence[torch.Tensor], size: tuple[int, int]
    ) -> list[torch.Tensor]:
        """All levels of images of one size."""
        # Cells that the backbone's size_divisibility has added say nothing.
        features = [
            x[..., : -(-size[0] // stride), : -(-size[1] // stride)]
            for x, stride in zip(features, self.strides, strict=True)
        ]
        levels: list[torch.Tensor] = []
        for i, projection in enumerate(self.projections):
            # The first of the further levels is made of the backbone's last output.
            is_further = i > len(features)
            source = levels[-1] if is_further else features[min(i, len(features) - 1)]
            levels.append(projection(source))
        return levels


def _pad(parts: Sequence[tuple[list[int], torch.Tensor]], num_images: int) -> Level:
    """One level of all images, of parts: which images, and theirs (n, D, h, w)."""
    first = parts[0][1]
    height = max(x.shape[2] for _, x in parts)
    width = max(x.shape[3] for _, x in parts)
    is_image = first.new_zeros((num_images, height, width), dtype=torch.bool)
    padded = []
    for inds, x in parts:
        is_image[inds, : x.shape[2], : x.shape[3]] = True
        padded.append(nn.functional.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])))
    order = [i for inds, _ in parts for i in inds]
    back = sorted(range(num_images), key=order.__getitem__)
    return torch.cat(padded)[back], is_image
