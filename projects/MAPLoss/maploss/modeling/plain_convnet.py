# SPDX-License-Identifier: Apache-2.0
"""
The networks of Fast R-CNN's experiments (Girshick 2015, section 4.1) as backbones.

| name           | paper | network                                     | fc6, fc7   | pooler |
|----------------|-------|---------------------------------------------|------------|--------|
| alexnet        |       | torchvision's (Krizhevsky 2014)             | 4096, 4096 | 6 x 6  |
| caffenet       | S     | Krizhevsky et al. 2012, as Caffe has it     | 4096, 4096 | 6 x 6  |
| vgg_cnn_m_1024 | M     | Chatfield et al., BMVC 2014                 | 4096, 1024 | 6 x 6  |
| vgg16          | L     | Simonyan & Zisserman 2015                   | 4096, 4096 | 7 x 7  |

The last max pooling is left out, since RoI pooling takes its place; fc6 and fc7 are the box head
(:class:`maploss.modeling.FullyConnectedHead`). Layers have Caffe's names.

Shape letters: N images, H and W in pixels.
"""

from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

STRIDE = 16


def _conv(channels: int, kernel: int, stride: int = 1, groups: int = 1) -> dict:
    return {"channels": channels, "kernel": kernel, "stride": stride, "groups": groups}


def _pool(kernel: int = 3) -> nn.Module:
    return nn.MaxPool2d(kernel, stride=2, padding=(kernel - 1) // 2)


# Layer by layer; a convolution is followed by a ReLU.
_CAFFENET = (
    ("conv1", _conv(96, 11, 4)),
    ("pool1", _pool),
    ("norm1", lambda: nn.LocalResponseNorm(5)),
    ("conv2", _conv(256, 5, groups=2)),
    ("pool2", _pool),
    ("norm2", lambda: nn.LocalResponseNorm(5)),
    ("conv3", _conv(384, 3)),
    ("conv4", _conv(384, 3, groups=2)),
    ("conv5", _conv(256, 3, groups=2)),
)
_VGG_CNN_M = (
    ("conv1", _conv(96, 7, 2)),
    ("norm1", lambda: nn.LocalResponseNorm(5, alpha=5e-4, k=2.0)),
    ("pool1", _pool),
    ("conv2", _conv(256, 5, 2)),
    ("norm2", lambda: nn.LocalResponseNorm(5, alpha=5e-4, k=2.0)),
    ("pool2", _pool),
    ("conv3", _conv(512, 3)),
    ("conv4", _conv(512, 3)),
    ("conv5", _conv(512, 3)),
)
_ALEXNET = (
    ("conv1", _conv(64, 11, 4)),
    ("pool1", _pool),
    ("conv2", _conv(192, 5)),
    ("pool2", _pool),
    ("conv3", _conv(384, 3)),
    ("conv4", _conv(256, 3)),
    ("conv5", _conv(256, 3)),
)


def _vgg16() -> tuple:
    layers: list[tuple] = []
    for block, (depth, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        layers += [(f"conv{block}_{i}", _conv(channels, 3)) for i in range(1, depth + 1)]
        layers.append((f"pool{block}", lambda: _pool(2)))
    return tuple(layers[:-1])


NETWORKS = {
    "alexnet": _ALEXNET,
    "caffenet": _CAFFENET,
    "vgg_cnn_m_1024": _VGG_CNN_M,
    "vgg16": _vgg16(),
}


class PlainConvNet(Backbone):
    """
    Convolutions, ReLUs and max pooling in a row; the output "conv5" has stride 16.

    All layers are padded by half their kernel, so that output cell i looks at pixels around 16 i,
    where RoI pooling takes it to be. torchvision's AlexNet and Caffe's networks pad less; they see
    the same image a few pixels further on, with the same weights.
    """

    def __init__(self, network: str, freeze_at: int = 0) -> None:
        """
        Args:
            network: a key of NETWORKS.
            freeze_at: 0 freezes nothing, n all of conv1 to conv<n>. In the paper 1 for S and M
                (training starts at conv2), 2 for L (at conv3_1; section 4.5).

        Raises:
            ValueError: an unknown network, or no number of a convolution.
        """
        super().__init__()
        if network not in NETWORKS:
            raise ValueError(f"network: expected one of {sorted(NETWORKS)}, got {network!r}")
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"freeze_at: expected 0 to 5, got {freeze_at}")
        self.network = network
        self._out_features = ["conv5"]
        channels = 3
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name, spec in NETWORKS[network]:
            if not isinstance(spec, dict):
                layers[name] = spec()
                continue
            layers[name] = conv = nn.Conv2d(
                channels,
                spec["channels"],
                spec["kernel"],
                stride=spec["stride"],
                padding=spec["kernel"] // 2,
                groups=spec["groups"],
            )
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            conv.requires_grad_(int(name[len("conv")]) > freeze_at)
            layers[name.replace("conv", "relu")] = nn.ReLU(inplace=True)
            channels = spec["channels"]
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._out_feature_channels = {"conv5": channels}
        self._out_feature_strides = {"conv5": STRIDE}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) to {"conv5": (N, channels, about H / 16, about W / 16)}."""
        for layer in self.children():
            x = layer(x)
        return {"conv5": x}

    def pretrained_names(self, keys: list[str]) -> dict[str, str]:
        """
        Names here, and those of fc6 and fc7, for the keys of a classifier's state dict.

        Args:
            keys: torchvision's ("features.0.weight", .., "classifier.1.weight", ..), which stand
                for the layers in their order, or Caffe's ("conv1_1.weight", .., "fc6.weight", ..).
        """
        convs = [name for name, layer in self.named_children() if isinstance(layer, nn.Conv2d)]
        names = {}
        for prefix, layer_names in (("features", convs), ("classifier", ["fc6", "fc7", "fc8"])):
            parts = [key.split(".") for key in keys if key.startswith(prefix + ".")]
            inds = sorted({int(part[1]) for part in parts if part[1].isdigit()})
            layer_at = dict(zip(inds, layer_names, strict=False))
            for part in parts:
                if part[1].isdigit() and int(part[1]) in layer_at:
                    names[".".join(part)] = ".".join([layer_at[int(part[1])], *part[2:]])
        return {key: names.get(key, key) for key in keys}


@BACKBONE_REGISTRY.register()
def build_plain_convnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PlainConvNet:
    """PlainConvNet with MODEL.PLAIN_CONVNET.NETWORK and MODEL.BACKBONE.FREEZE_AT."""
    if input_shape.channels != 3:
        raise ValueError(f"PlainConvNet: expected images of 3 channels, got {input_shape.channels}")
    return PlainConvNet(cfg.MODEL.PLAIN_CONVNET.NETWORK, cfg.MODEL.BACKBONE.FREEZE_AT)
