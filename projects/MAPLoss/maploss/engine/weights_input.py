# SPDX-License-Identifier: Apache-2.0
"""
The input that pretrained weights expect, where it can be known, against that of the config.

Names of parameters tell the network, not the input: a SqueezeNet with torchvision's names may be
torchvision's own (RGB, mean and standard deviation of ImageNet) or one converted from Caffe (BGR,
0 to 255, minus the mean), and their first layers are of the same size. So torchvision's files are
known by their addresses and by their SHA-256, whose first digits torchvision writes into the file
names. Networks of timm are known by MODEL.TIMM.NAME, VGG and CaffeNet of Caffe by names that only
these have. Of other weights nothing is known, and a line says what they will be fed with.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..modeling.timm_backbone import import_timm

logger = logging.getLogger(__name__)

_TORCHVISION = "torchvision://"
# Files of Detectron2's model zoo by a part of their path.
_DETECTRON2 = {
    "ImageNetPretrained/MSRA/": ("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    "ImageNetPretrained/torchvision/": (
        "RGB",
        (123.675, 116.28, 103.53),
        (58.395, 57.12, 57.375),
    ),
}
# Caffe's mean of ImageNet differs from network to network by a unit or two.
_CAFFE = ("BGR", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0))
_CAFFE_TOLERANCE = 3.0


class WeightsInput(NamedTuple):
    """
    image_format: "RGB" or "BGR". mean, std: of each channel in that order, for values from 0 to
    255. source: whose weights these are. tolerance: by how much a mean may differ.
    """

    image_format: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    tolerance: float = 0.5

    def fits(self, cfg: CfgNode) -> bool:
        """Whether a config feeds a model so."""
        pairs = [
            *zip(cfg.MODEL.PIXEL_MEAN, self.mean, strict=True),
            *zip(cfg.MODEL.PIXEL_STD, self.std, strict=True),
        ]
        limits = [self.tolerance] * 3 + [max(0.01 * x, 1e-6) for x in self.std]
        is_close = all(abs(a - b) <= x for (a, b), x in zip(pairs, limits, strict=True))
        return is_close and self.image_format == cfg.INPUT.FORMAT

    def keys(self) -> str:
        """As overrides on the command line."""
        mean, std = ([round(x, 3) for x in values] for values in (self.mean, self.std))
        return f'INPUT.FORMAT {self.image_format} MODEL.PIXEL_MEAN "{mean}" MODEL.PIXEL_STD "{std}"'


def check_weights_input(cfg: CfgNode) -> None:
    """
    Compares INPUT.FORMAT, MODEL.PIXEL_MEAN and PIXEL_STD with what MODEL.WEIGHTS expect.

    Raises:
        ValueError: they differ; the message has the right values.
        OSError: no such file, or it cannot be downloaded.
    """
    weights = cfg.MODEL.WEIGHTS
    # A run that goes on from a checkpoint does not read them.
    is_needed = not os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if is_needed and weights.startswith(_TORCHVISION):
        PathManager.get_local_path(weights)  # a name that is wrong, or no network, is told now
    elif (
        is_needed
        and weights
        and "://" not in weights
        and not os.path.exists(weights.partition("?")[0])
    ):
        raise FileNotFoundError(f"Checkpoint not found: {weights}. {how_to_get(cfg)}")
    expected = known_inputs(weights, _timm_name(cfg))
    if expected and not any(x.fits(cfg) for x in expected):
        is_own = (cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD))
        got = "{} {} {}".format(*is_own)
        raise ValueError(
            f"MODEL.WEIGHTS {weights}: {expected[0].source} expect {expected[0].keys()}, got {got}"
        )
    if not expected and _has_torchvision_names(weights):
        logger.info(
            f"MODEL.WEIGHTS {weights} have torchvision's names, but are not torchvision's file: "
            f"what input they were trained with is not known. They get {cfg.INPUT.FORMAT}, minus "
            f"{list(cfg.MODEL.PIXEL_MEAN)}, divided by {list(cfg.MODEL.PIXEL_STD)}"
        )


def known_inputs(weights: str, timm_name: str = "") -> list[WeightsInput]:
    """
    What weights expect, each of the list as good as the others; [] where it is not known.

    Args:
        weights: a path, or a name such as torchvision://VGG16_Weights.IMAGENET1K_V1.
        timm_name: name of the network, where it is one of timm's.
    """
    for part, values in _DETECTRON2.items():
        if part in weights:
            return [WeightsInput(*values, source=f"weights of {part}")]
    if weights.startswith(_TORCHVISION):
        with contextlib.suppress(KeyError, ValueError):  # told where it is loaded
            return [_of_torchvision(torchvision.models.get_weight(weights[len(_TORCHVISION) :]))]
    if not os.path.isfile(weights) or not weights.endswith((".pth", ".pt")):
        return []
    entry = torchvision_entry(weights)
    if entry is not None:
        return [_of_torchvision(entry)]
    keys = parameter_names(weights)
    if any(x.startswith(("backbone.", "roi_heads.")) for x in keys):
        return []  # a detector, trained with whatever its config says
    if timm_name and keys:
        return _of_timm(timm_name)
    if "conv1_1.weight" in keys or {"conv1.weight", "fc6.weight"} <= set(keys):
        return [WeightsInput(*_CAFFE, "weights with Caffe's names", _CAFFE_TOLERANCE)]
    return []


def torchvision_entry(path: str) -> "torchvision.models.WeightsEnum | None":
    """The name in torchvision of a file that is one of its, byte by byte; None for others."""
    by_digits = {}
    for model in torchvision.models.list_models(torchvision.models):
        for entry in torchvision.models.get_model_weights(model):
            found = re.search(r"-([0-9a-f]{8})\.pth$", entry.url)
            if found:
                by_digits[found[1]] = entry
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**22):
            digest.update(block)
    return by_digits.get(digest.hexdigest()[:8])


def _of_torchvision(entry: "torchvision.models.WeightsEnum") -> WeightsInput:
    transforms = entry.transforms()
    mean, std = (tuple(255 * x for x in values) for values in (transforms.mean, transforms.std))
    return WeightsInput("RGB", mean, std, f"torchvision's {entry}")


def _of_timm(name: str) -> list[WeightsInput]:
    """Of all weights that timm has for a network; its default first."""
    timm = import_timm(name)
    base = name.partition(".")[0]
    tagged = timm.list_models(f"{base}.*", pretrained=True)
    found = []
    for one in [name, *(x for x in tagged if x.partition(".")[0] == base)]:
        config = timm.get_pretrained_cfg(one)
        if config is not None:
            mean, std = (tuple(255 * x for x in y) for y in (config.mean, config.std))
            found.append(WeightsInput("RGB", mean, std, f"timm's weights of {base}"))
    return found


def _timm_name(cfg: CfgNode) -> str:
    return cfg.MODEL.TIMM.NAME if cfg.MODEL.BACKBONE.NAME.startswith("build_timm_") else ""


def _has_torchvision_names(weights: str) -> bool:
    return os.path.isfile(weights) and "features.0.weight" in parameter_names(weights)


def parameter_names(path: str) -> Sequence[str]:
    """Those of a file of tensors; none of a file that cannot be read, which loading tells of."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # as in SafeCheckpointer
        return []
    content = content.get("model", content) if isinstance(content, dict) else {}
    return [x for x in content if isinstance(x, str)] if isinstance(content, dict) else []


def how_to_get(cfg: CfgNode) -> str:
    """Where the weights of a config's backbone are, in one line."""
    if name := _timm_name(cfg):
        return (
            'On a machine with network: python -c "import timm, torch; torch.save('
            f"timm.create_model('{name}', pretrained=True).state_dict(), '{name}.pth')\"; then "
            f"MODEL.WEIGHTS {name}.pth"
        )
    entry = _torchvision_name(cfg)
    if not entry:
        return "Detectron2's model zoo has some (detectron2://ImageNetPretrained/MSRA/R-50.pkl)"
    known = _of_torchvision(torchvision.models.get_weight(entry))
    url = torchvision.models.get_weight(entry).url
    return (
        f"MODEL.WEIGHTS {_TORCHVISION}{entry} downloads them; without network, copy {url} from "
        f"another machine and give its path. Both with {known.keys()}"
    )


def _torchvision_name(cfg: CfgNode) -> str:
    backbone, network = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.PLAIN_CONVNET.NETWORK
    if "squeezenet" in backbone:
        return "SqueezeNet1_0_Weights.IMAGENET1K_V1"
    names = {"vgg16": "VGG16_Weights.IMAGENET1K_V1", "alexnet": "AlexNet_Weights.IMAGENET1K_V1"}
    return names.get(network, "") if "plain_convnet" in backbone else ""
