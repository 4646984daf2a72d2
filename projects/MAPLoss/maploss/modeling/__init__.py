# SPDX-License-Identifier: Apache-2.0
"""The detector. Importing it registers its parts with Detectron2."""

from .box_head import NormalizedConvFCHead
from .meta_arch import MAPRCNN
from .output_layers import MAPOutputLayers, SoftmaxOutputLayers
from .roi_heads import MAPROIHeads, SoftmaxROIHeads
from .small_convnet import SmallConvNet
from .squeezenet import SqueezeNet

__all__ = [
    "MAPRCNN",
    "MAPOutputLayers",
    "MAPROIHeads",
    "NormalizedConvFCHead",
    "SmallConvNet",
    "SoftmaxOutputLayers",
    "SoftmaxROIHeads",
    "SqueezeNet",
]
