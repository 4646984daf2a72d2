# SPDX-License-Identifier: Apache-2.0
"""Pictures of training and evaluation, drawn with matplotlib without a display."""

from .detection_grid import draw_detection_grid
from .evaluation_pictures import draw_evaluation
from .gradient_picture import gradient_picture
from .metric_curves import draw_metric_curves, group_runs
from .minibatch_pr_picture import minibatch_pr_picture
from .pr_curves import draw_pr_curves
from .ranking_picture import draw_ranking

__all__ = [
    "draw_detection_grid",
    "draw_evaluation",
    "draw_metric_curves",
    "draw_pr_curves",
    "draw_ranking",
    "gradient_picture",
    "group_runs",
    "minibatch_pr_picture",
]
