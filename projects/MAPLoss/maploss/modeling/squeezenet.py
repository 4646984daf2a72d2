# SPDX-License-Identifier: Apache-2.0
"""
SqueezeNet 1.0 (Iandola et al., 2016, arXiv:1602.07360) as a backbone.

The parameters have torchvision's names (`features.0.weight`, `features.3.squeeze.weight`, ..), so
that its weights can be given as MODEL.WEIGHTS. The input is whatever the weights expect; for those
converted from Caffe it is BGR, 0 to 255, minus (104, 117, 123).
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

# torchvision's convolution has no padding, which would put the centre of output cell i of fire8 at
# pixel 8 i + 9 of the input. ROI pooling takes it to be at 8 i + 3.5: windows would be read 5.5
# pixels off (9.5 at fire9). With this padding it is .5 (and 4.5 at fire9).
CONV1_PADDING = 5

# name: (index in torchvision's `features`, input, squeeze and expand channels of a fire module)
_FIRES = {
    "fire2": (3, 96, 16, 64),
    "fire3": (4, 128, 16, 64),
    "fire4": (5, 128, 32, 128),
    "fire5": (7, 256, 32, 128),
    "fire6": (8, 256, 48, 192),
    "fire7": (9, 384, 48, 192),
    "fire8": (10, 384, 64, 256),
    "fire9": (12, 512, 64, 256),
}
_POOLS = (2, 6, 11)
# Index in `features` of the layer whose output bears the name.
_OUTPUT_INDEX = {"conv1": 1} | {name: spec[0] for name, spec in _FIRES.items()}


class Fire(nn.Module):
    """1 x 1 convolution to few channels, then 1 x 1 and 3 x 3 side by side; ReLU after each."""

    def __init__(self, in_channels: int, squeeze_channels: int, expand_channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze_channels, 1)
        self.expand1x1 = nn.Conv2d(squeeze_channels, expand_channels, 1)
        self.expand3x3 = nn.Conv2d(squeeze_channels, expand_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x).relu_()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1).relu_()


class SqueezeNet(Backbone):
    """Outputs: conv1 (stride 2), fire2 to fire4 (4), fire5 to fire8 (8), fire9 (16)."""

    def __init__(self, out_features: list[str], freeze_at: int = 0) -> None:
        """
        Args:
            out_features: names of the outputs; layers above the last of them are not built.
            freeze_at: 0 freezes nothing, 1 conv1, n all of conv1 to fire<n>.

        Raises:
            ValueError: a name that is not an output, or none; freeze_at not in [0, 9].
        """
        super().__init__()
        unknown = [name for name in out_features if name not in _OUTPUT_INDEX]
        if unknown or not out_features:
            raise ValueError(
                f"out_features: expected some of {list(_OUTPUT_INDEX)}, got {list(out_features)}"
            )
        if not 0 <= freeze_at <= 9:
            raise ValueError(f"freeze_at: expected a number from 0 to 9, got {freeze_at}")
        self._out_features = list(out_features)
        self._out_feature_channels = {
            name: 2 * _FIRES[name][3] if name in _FIRES else 96 for name in out_features
        }
        self._out_feature_strides = {
            name: 2 ** (1 + sum(pool < _OUTPUT_INDEX[name] for pool in _POOLS))
            for name in out_features
        }
        last = max(_OUTPUT_INDEX[name] for name in out_features)
        self.features = nn.Sequential(*_layers()[: last + 1])
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        names = ["conv1", *_FIRES][:freeze_at]
        num_frozen = max((_OUTPUT_INDEX[name] for name in names), default=-1) + 1
        for param in self.features[:num_frozen].parameters():
            param.requires_grad = False

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) to a dict of (N, channels, about H / stride, about W / stride)."""
        outputs = {}
        name_of = {_OUTPUT_INDEX[name]: name for name in self._out_features}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in name_of:
                outputs[name_of[i]] = x
        return outputs


def _layers() -> list[nn.Module]:
    """torchvision's `features`, with conv1 padded."""
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 7, stride=2, padding=CONV1_PADDING), nn.ReLU(True)]
    fires = {spec[0]: Fire(*spec[1:]) for spec in _FIRES.values()}
    for i in range(2, 13):
        layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True) if i in _POOLS else fires[i])
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return layers


@BACKBONE_REGISTRY.register()
def build_squeezenet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SqueezeNet:
    """SqueezeNet with MODEL.SQUEEZENET.OUT_FEATURES and MODEL.BACKBONE.FREEZE_AT."""
    if input_shape.channels != 3:
        raise ValueError(f"SqueezeNet: expected images of 3 channels, got {input_shape.channels}")
    return SqueezeNet(cfg.MODEL.SQUEEZENET.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT)
