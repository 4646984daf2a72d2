# SPDX-License-Identifier: Apache-2.0
from .ap_steps import Steps, ap_steps
from .average_precision import average_precision, precision_recall
from .box_voting import box_voting
from .hard_examples import hard_examples
from .map_loss import MAPLoss, MAPLossStats, map_loss
from .match_detections import match_detections
from .nms_ap_steps import nms_ap_steps
from .nms_record import NMSRecord, nms_record
from .pair_gradient import pair_gradient
from .pseudo_gradient import exact_steps, pseudo_gradient
from .truncated_svd import ThinLinear, truncated_svd

__all__ = [
    "MAPLoss",
    "MAPLossStats",
    "NMSRecord",
    "Steps",
    "ThinLinear",
    "ap_steps",
    "average_precision",
    "box_voting",
    "exact_steps",
    "hard_examples",
    "map_loss",
    "match_detections",
    "nms_ap_steps",
    "nms_record",
    "pair_gradient",
    "precision_recall",
    "pseudo_gradient",
    "truncated_svd",
]
