# SPDX-License-Identifier: Apache-2.0
"""Evaluation of detections: AP per class, PR curves, pictures."""

from .ap_evaluator import APEvaluator
from .detection_ap import Detections, Objects, evaluate_detections, mean_ap
from .pooled_ap import pooled_ap

__all__ = ["APEvaluator", "Detections", "Objects", "evaluate_detections", "mean_ap", "pooled_ap"]
