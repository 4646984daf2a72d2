# SPDX-License-Identifier: Apache-2.0
"""Which config a user's own data stands on, by the weights of its backbone."""

import os
from typing import NamedTuple

from .weights_input import WeightsInput, known_inputs, parameter_names

_CAFFE = WeightsInput("BGR", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "weights from Caffe")
_TIMM_NAME = "tf_efficientnet_lite0"


class OwnDataBase(NamedTuple):
    """file: name of the config in configs/Own-Data. keys: for the weights. notes: for the user."""

    file: str
    keys: dict[str, object]
    notes: list[str]


def choose_base(weights: str, proposals: str, *, is_caffe: bool = False) -> OwnDataBase:
    """
    The config, and the keys of MODEL.WEIGHTS and of the input that these expect.

    Args:
        weights: path of a file of SqueezeNet 1.0 with torchvision's names or EfficientNet-Lite0
            with timm's; "" for torchvision's SqueezeNet, which the first run downloads.
        proposals: "selective_search" or "rpn".
        is_caffe: the weights were converted from Caffe, which their names need not tell.

    Raises:
        FileNotFoundError, ValueError: no such file, or weights of another network.
    """
    ending = "-RPN.yaml" if proposals == "rpn" else ".yaml"
    if not weights:
        note = (
            "the first run downloads torchvision's SqueezeNet; --weights FILE for one that you have"
        )
        return OwnDataBase(f"Base-SqueezeNet{ending}", {}, [note])
    if not os.path.isfile(weights):
        raise FileNotFoundError(f"--weights: no such file: {weights}")
    names = parameter_names(weights)
    if "features.3.squeeze.weight" in names:
        network, timm_name = "SqueezeNet", ""
    elif "conv_stem.weight" in names:
        network, timm_name = "EfficientNet-Lite0", _TIMM_NAME
    else:
        raise ValueError(
            f"--weights {weights}: expected a state dict of SqueezeNet 1.0 with torchvision's "
            f"names or of {_TIMM_NAME} with timm's, got {', '.join(names[:3]) or 'none'}; for "
            "other networks edit the config (docs/own_data.md)"
        )
    keys: dict[str, object] = {"MODEL.WEIGHTS": os.path.abspath(weights)}
    notes = []
    known = [_CAFFE] if is_caffe else []
    if not known and not timm_name:
        known = known_inputs(weights)
        if not known:
            notes.append(
                f"{weights} is not torchvision's own file: what input it was trained with is not "
                "known, RGB with ImageNet's mean and deviation is taken; --caffe if it was "
                "converted from Caffe (BGR minus the mean)"
            )
    for one in known[:1]:
        keys["MODEL.PIXEL_MEAN"] = [round(x, 3) for x in one.mean]
        keys["MODEL.PIXEL_STD"] = [round(x, 3) for x in one.std]
        keys["INPUT.FORMAT"] = one.image_format
    return OwnDataBase(f"Base-{network}{ending}", keys, notes)
