# SPDX-License-Identifier: Apache-2.0
from .average_precision import average_precision, precision_recall
from .box_voting import box_voting
from .focal_losses import focal_loss, quality_focal_loss, varifocal_loss
from .hard_examples import hard_examples
from .map_loss.detection_memory import DetectionMemory
from .map_loss.error_driven_gradient import error_driven_gradient
from .map_loss.map_loss import ClassDetections, MAPLoss, MAPLossStats, map_loss
from .map_loss.settings import MAPLossSettings
from .match_detections import match_detections
from .nms import NMSRecord, nms_record
from .ranking_losses.alrp_loss import alrp_loss
from .ranking_losses.ap_loss import ap_loss
from .ranking_losses.direct_ap_loss import direct_ap_loss
from .ranking_losses.parameterized_ap_loss import ParameterizedAPLoss, parameterized_ap_loss
from .ranking_losses.piecewise_linear import control_points, piecewise_linear
from .ranking_losses.rank_sort_loss import rank_sort_loss
from .ranking_losses.smooth_ap_loss import smooth_ap_loss
from .steps.ap_steps import ap_steps
from .steps.dcg_steps import dcg, dcg_steps
from .steps.nms_ap_steps import nms_ap_steps
from .steps.pseudo_gradient import exact_steps, pseudo_gradient
from .steps.steps import Steps
from .truncated_svd import LowRankLinear, truncated_svd

__all__ = [
    "ClassDetections",
    "DetectionMemory",
    "LowRankLinear",
    "MAPLoss",
    "MAPLossSettings",
    "MAPLossStats",
    "NMSRecord",
    "ParameterizedAPLoss",
    "Steps",
    "alrp_loss",
    "ap_loss",
    "ap_steps",
    "average_precision",
    "box_voting",
    "control_points",
    "dcg",
    "dcg_steps",
    "direct_ap_loss",
    "error_driven_gradient",
    "exact_steps",
    "focal_loss",
    "hard_examples",
    "map_loss",
    "match_detections",
    "nms_ap_steps",
    "nms_record",
    "parameterized_ap_loss",
    "piecewise_linear",
    "precision_recall",
    "pseudo_gradient",
    "quality_focal_loss",
    "rank_sort_loss",
    "smooth_ap_loss",
    "truncated_svd",
    "varifocal_loss",
]
