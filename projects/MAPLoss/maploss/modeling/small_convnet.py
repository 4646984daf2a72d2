# SPDX-License-Identifier: Apache-2.0
"""A few convolutions trained from scratch: the backbone of the embedded data set."""

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F


class SmallConvNet(Backbone):
    """
    Stages of one convolution 3 x 3, normalisation and ReLU; the output is that of the last.

    With stages 1 to n the output is named "conv<n>"; its stride is the product of their strides.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (32, 64, 64, 64),
        strides: Sequence[int] = (2, 2, 1, 1),
        norm: str = "GN",
    ) -> None:
        """
        Args:
            in_channels: of the image.
            channels: of each stage.
            strides: of each stage.
            norm: as Detectron2's get_norm takes it; "" means none.

        Raises:
            ValueError: not as many strides as channels, or none.
        """
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ValueError(
                f"strides: expected one for each of the {len(channels)} stages (at least 1), "
                f"got {list(strides)}"
            )
        stages = []
        for out_channels, stride in zip(channels, strides, strict=True):
            conv = Conv2d(
                in_channels,
                out_channels,
                kernel_size=3,
                stride=stride,
                padding=1,
                bias=not norm,
                norm=get_norm(norm, out_channels),
                activation=F.relu_,
            )
            weight_init.c2_msra_fill(conv)
            stages.append(conv)
            in_channels = out_channels
        self.stages = nn.Sequential(*stages)
        name = f"conv{len(stages)}"
        self._out_features = [name]
        self._out_feature_channels = {name: in_channels}
        self._out_feature_strides = {name: math.prod(strides)}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, C, H, W) to {"conv<n>": (N, channels, H / stride, W / stride, rounded up)}."""
        return {self._out_features[0]: self.stages(x)}


@BACKBONE_REGISTRY.register()
def build_small_convnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SmallConvNet:
    """SmallConvNet with the settings in MODEL.SMALL_CONVNET."""
    return SmallConvNet(
        input_shape.channels,
        cfg.MODEL.SMALL_CONVNET.CHANNELS,
        cfg.MODEL.SMALL_CONVNET.STRIDES,
        cfg.MODEL.SMALL_CONVNET.NORM,
    )
