# SPDX-License-Identifier: Apache-2.0
"""Results of detectors: AP per class and of all in one list, duplicates, loss of all windows."""

from .ap_evaluator import APEvaluator, Evaluation
from .average_loss import average_loss
from .detection_ap import Detections, Objects, evaluate_detections, mean_ap
from .duplicates import count_duplicates
from .pooled_ap import pooled_ap

__all__ = [
    "APEvaluator",
    "Detections",
    "Evaluation",
    "Objects",
    "average_loss",
    "count_duplicates",
    "evaluate_detections",
    "mean_ap",
    "pooled_ap",
]
