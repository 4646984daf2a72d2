# SPDX-License-Identifier: Apache-2.0
"""Results of detectors: AP per class and of all in one list, the loss over all windows."""

from .ap_evaluator import APEvaluator, Evaluation
from .average_loss import average_loss
from .detection_ap import Detections, Objects, evaluate_detections, mean_ap
from .pooled_ap import pooled_ap

__all__ = [
    "APEvaluator",
    "Detections",
    "Evaluation",
    "Objects",
    "average_loss",
    "evaluate_detections",
    "mean_ap",
    "pooled_ap",
]
