# SPDX-License-Identifier: Apache-2.0
from .alrp_loss import alrp_loss
from .ap_loss import ap_loss
from .ap_steps import Steps, ap_steps
from .average_precision import average_precision, precision_recall
from .box_voting import box_voting
from .dcg_steps import dcg, dcg_steps
from .detection_memory import DetectionMemory
from .direct_ap_loss import direct_ap_loss
from .hard_examples import hard_examples
from .map_loss import MAPLoss, MAPLossStats, map_loss
from .match_detections import match_detections
from .nms_ap_steps import nms_ap_steps
from .nms_record import NMSRecord, nms_record
from .pair_gradient import pair_gradient
from .parameterized_ap_loss import ParameterizedAPLoss, parameterized_ap_loss
from .piecewise_linear import control_points, piecewise_linear
from .pseudo_gradient import exact_steps, pseudo_gradient
from .rank_sort_loss import rank_sort_loss
from .smooth_ap_loss import smooth_ap_loss
from .truncated_svd import ThinLinear, truncated_svd

__all__ = [
    "DetectionMemory",
    "MAPLoss",
    "MAPLossStats",
    "NMSRecord",
    "ParameterizedAPLoss",
    "Steps",
    "ThinLinear",
    "alrp_loss",
    "ap_loss",
    "ap_steps",
    "average_precision",
    "box_voting",
    "control_points",
    "dcg",
    "dcg_steps",
    "direct_ap_loss",
    "exact_steps",
    "hard_examples",
    "map_loss",
    "match_detections",
    "nms_ap_steps",
    "nms_record",
    "pair_gradient",
    "parameterized_ap_loss",
    "piecewise_linear",
    "precision_recall",
    "pseudo_gradient",
    "rank_sort_loss",
    "smooth_ap_loss",
    "truncated_svd",
]
