# SPDX-License-Identifier: Apache-2.0
"""
Networks of timm as backbones, alone or below an FPN; timm is an optional package.

Their parameters have timm's names (`conv_stem.weight`, `blocks.0.0.conv_dw.weight`, ..), so that
MODEL.WEIGHTS can be a state dict of timm's. The input is what the weights expect: for
tf_efficientnet_lite0 RGB, (x - 127.5) / 127.5.
"""

import difflib
import importlib
import math
from collections.abc import Iterable, Sequence
from types import ModuleType

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import nn
from torch.nn import functional as F


def import_timm(name: str) -> ModuleType:
    """
    The package, if it has a network of this name.

    Raises:
        ValueError: it has not, or there is no package.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ValueError(
            f"MODEL.TIMM.NAME {name}: expected the package timm (pip install -e '.[timm]'), got "
            f"none ({error})"
        ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1) or ["tf_efficientnet_lite0"]
        raise ValueError(
            f"MODEL.TIMM.NAME: expected a network of timm such as {near[0]}, got {name!r}"
        )
    return timm


class TimmBackbone(Backbone):
    """
    A network of timm without its classifier; outputs "stride2", "stride4", .., by their strides.

    All BatchNorm is frozen. What TensorFlow calls "same" padding moves the cells of an output: they
    lie (stride - 1) / 2 pixels to the right of where ROI pooling takes them to be, if the sides of
    the image are multiples of the strides, and to the left if not. So the image is padded to such
    multiples, and on the left too, by as much as suits all outputs best.
    """

    def __init__(
        self, name: str, out_features: Sequence[str], freeze_at: int = 0, in_channels: int = 3
    ) -> None:
        """
        Args:
            name: of a network in timm.
            out_features: names of the outputs; layers above the last of them are not kept.
            freeze_at: 0 freezes nothing, n all up to the n-th output of the network.
            in_channels: of the image.

        Raises:
            ValueError: no timm, or no such network in it; a network without features; a name that
                is not an output, or none; freeze_at out of range.
        """
        super().__init__()
        timm = import_timm(name)
        try:
            network = timm.create_model(name, features_only=True, in_chans=in_channels)
        except (AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"MODEL.TIMM.NAME {name}: expected features ({reason})") from error
        levels = network.feature_info.get_dicts()
        index = {f"stride{level['reduction']}": i for i, level in enumerate(levels)}
        unknown = [x for x in out_features if x not in index]
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.TIMM.OUT_FEATURES: expected some of {list(index)}, got {list(out_features)}"
            )
        if not 0 <= freeze_at <= len(levels):
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT: expected a number from 0 to {len(levels)}, the outputs "
                f"of {name}, got {freeze_at}"
            )
        # timm gives the outputs in this order.
        self._out_features = sorted(out_features, key=index.__getitem__)
        chosen = [levels[index[x]] for x in self._out_features]
        shapes = list(zip(self._out_features, chosen, strict=True))
        self._out_feature_channels = {x: level["num_chs"] for x, level in shapes}
        self._out_feature_strides = {x: level["reduction"] for x, level in shapes}
        network = timm.create_model(
            name,
            features_only=True,
            in_chans=in_channels,
            out_indices=[index[x] for x in self._out_features],
        )
        _cut(network, chosen[-1]["module"])
        self.network = timm.layers.freeze_batch_norm_2d(network)
        if freeze_at:
            _freeze(self.network, levels[freeze_at - 1]["module"])
        is_same = any(isinstance(x, timm.layers.Conv2dSame) for x in network.modules())
        self._before = best_shift(self._out_feature_strides.values()) if is_same else 0
        self._padding = self.size_divisibility if is_same else 0

    @property
    def size_divisibility(self) -> int:
        """Stride of the last output."""
        return max(self._out_feature_strides.values())

    def extra_repr(self) -> str:
        """What the modules do not say; DATALOADER.FEATURE_CACHE tells networks apart by it."""
        return f"padded by {self._before} of {self._padding} pixels before"

    def pretrained_names(self, keys: Iterable[str]) -> dict[str, str]:
        """What timm calls a parameter: what it is called here."""
        state = self.network.state_dict()
        # timm flattens some networks: stages.0 is stages_0.
        names = {key: key if key in state else key.replace(".", "_", 1) for key in keys}
        return {key: f"network.{name}" for key, name in names.items()}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, C, H, W) to a dict of (N, channels, about H / stride, about W / stride)."""
        before, after = self._before, self._padding - self._before
        outputs = self.network(F.pad(x, (before, after, before, after)))
        return dict(zip(self._out_features, outputs, strict=True))


def best_shift(strides: Iterable[int]) -> int:
    """
    By how many pixels to move an image to the right, so that cells of outputs at these strides lie
    where ROI pooling takes them to be, as nearly as can be in cells of the worst.
    """
    strides = list(strides)
    return min(
        range(max(strides)), key=lambda shift: max(abs((x - 1) / 2 - shift) / x for x in strides)
    )


def _cut(network: nn.Module, last: str) -> None:
    """Drops the blocks after the one named `last`, which networks of blocks keep and run."""
    parent, _, number = last.partition(".")
    blocks = getattr(network, "blocks", None)
    if parent == "blocks" and isinstance(blocks, nn.Sequential):
        network.blocks = blocks[: int(number) + 1]


def _freeze(network: nn.Module, last: str) -> None:
    """Freezes all modules up to the one named `last`; they are in the order of their use."""
    names = (last, last.replace(".", "_"))
    has_begun = False
    for name, module in network.named_modules():
        is_last = any(name == x or name.startswith(f"{x}.") for x in names)
        if has_begun and not is_last:
            return
        has_begun = has_begun or is_last
        for param in module.parameters(recurse=False):
            param.requires_grad = False


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """TimmBackbone with the settings in MODEL.TIMM and MODEL.BACKBONE.FREEZE_AT."""
    settings = cfg.MODEL.TIMM
    return TimmBackbone(
        settings.NAME, settings.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT, input_shape.channels
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's FPN (MODEL.FPN) on it, with one level more that halves the last."""
    bottom_up = build_timm_backbone(cfg, input_shape)
    in_features = cfg.MODEL.FPN.IN_FEATURES
    shapes = bottom_up.output_shape()
    unknown = [x for x in in_features if x not in shapes]
    if unknown or not in_features:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES: expected some of MODEL.TIMM.OUT_FEATURES, {list(shapes)}, "
            f"got {list(in_features)}"
        )
    top_block = LastLevelMaxPool()
    top_block.in_feature = f"p{int(math.log2(shapes[in_features[-1]].stride))}"
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
