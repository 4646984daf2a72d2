# SPDX-License-Identifier: Apache-2.0
"""The pictures of an evaluation."""

import logging
import os

from ..evaluation import Evaluation
from ..utils.atomic_files import new_file
from .detection_grid import draw_detection_grid
from .pr_curves import draw_pr_curves

logger = logging.getLogger(__name__)


def draw_evaluation(evaluation: Evaluation, folder: str) -> None:
    """
    Writes pr_curves.png and detections.png.

    Args:
        evaluation: of :class:`maploss.evaluation.APEvaluator`.
        folder: where they are written, each in one step.

    Raises:
        OSError: a file cannot be written, or an image of the data set not be read.
    """
    name, class_names, records, detections, objects, results = evaluation
    with new_file(os.path.join(folder, "pr_curves.png")) as path:
        draw_pr_curves(path, class_names, results, title=name)
    with new_file(os.path.join(folder, "detections.png")) as path:
        draw_detection_grid(path, records, class_names, detections, objects, results)
    logger.info(f"Wrote pr_curves.png, detections.png to {folder}")
