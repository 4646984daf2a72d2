# SPDX-License-Identifier: Apache-2.0
"""
Nearest steps of average precision in the score of each detection.

Shape letter: D detections of one class.
"""

import torch

from ..average_precision import AP_TYPES, check_detections
from ..checks import check_choice
from .nms_ap_steps import ranked_nms_ap_steps
from .ranked_windows import RankedWindows
from .steps import Steps


@torch.no_grad()
def ap_steps(
    scores: torch.Tensor, matched_gt: torch.Tensor, num_gt: int, ap_type: str = "area"
) -> Steps:
    """
    The nearest steps of AP above and below each detection's score, the other scores held.

    Exact, in O(M^2 + D log D) with M true positives, after Henderson & Ferrari 2016, section 4.4,
    with duplicates and ignored detections. Tied scores keep their input order, as if an
    infinitesimal amount apart.

    Args:
        scores: (D,) float.
        matched_gt: (D,) int64, index of the object matched, -1 for none, -2 for a difficult object.
        num_gt: number of objects without the difficult ones.
        ap_type: "area", "voc07" or "coco101".

    Returns:
        Steps in the order of the input. Without objects or without a true positive there is no
        step; value is nan without objects.

    Raises:
        ValueError, TypeError: as :func:`~maploss.layers.average_precision`.
        FloatingPointError: a score that is not finite.

    False, true, false, true: AP = (1/2 + 2/4) / 2. It rises where the better true positive passes
    the false one above it:

    >>> steps = ap_steps(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([-1, 0, -1, 1]), 2)
    >>> float(steps.value), float(steps.up_at[1]), float(steps.up_value[1])
    (0.5, 4.0, 0.75)
    """
    check_choice("ap_type", ap_type, AP_TYPES)
    check_detections(scores, matched_gt, num_gt)
    order = torch.argsort(scores, descending=True, stable=True)
    windows = RankedWindows.without_pairs(
        classes=torch.zeros_like(order),
        is_kept=torch.ones_like(order, dtype=torch.bool),
        gt=matched_gt[order][None],
        num_gt=torch.tensor([num_gt], device=order.device),
    )
    return ranked_nms_ap_steps(windows, ap_type, "none").of_input(order, scores)
