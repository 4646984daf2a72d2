# SPDX-License-Identifier: Apache-2.0
"""The detector. Importing it registers its parts with Detectron2."""

from .box_head import FullyConnectedHead, NormalizedConvFCHead
from .map_output_layers import MAPOutputLayers
from .map_roi_heads import MAPROIHeads
from .meta_arch import MAPRCNN
from .ohem_roi_heads import OHEMROIHeads
from .output_layers import SoftmaxOutputLayers
from .plain_convnet import PlainConvNet
from .proposal_generator import SelectiveSearchProposals
from .ranking_dense import IgnoringRPN, RankingRetinaNet, RankingRPN
from .ranking_detr import RankingDeformableDETR
from .ranking_loss import RankingLoss
from .ranking_roi_heads import RankingOutputLayers, RankingROIHeads
from .roi_heads import SoftmaxROIHeads
from .small_convnet import SmallConvNet
from .squeezenet import SqueezeNet
from .timm_backbone import TimmBackbone

__all__ = [
    "MAPRCNN",
    "FullyConnectedHead",
    "IgnoringRPN",
    "MAPOutputLayers",
    "MAPROIHeads",
    "NormalizedConvFCHead",
    "OHEMROIHeads",
    "PlainConvNet",
    "RankingDeformableDETR",
    "RankingLoss",
    "RankingOutputLayers",
    "RankingROIHeads",
    "RankingRPN",
    "RankingRetinaNet",
    "SelectiveSearchProposals",
    "SmallConvNet",
    "SoftmaxOutputLayers",
    "SoftmaxROIHeads",
    "SqueezeNet",
    "TimmBackbone",
]
