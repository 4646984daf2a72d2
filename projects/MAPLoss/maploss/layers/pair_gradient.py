# SPDX-License-Identifier: Apache-2.0
"""
The error-driven gradient of AP: all pairs in the wrong order instead of the nearest steps.

Shape letters: D detections of one class, M true positives, F false positives.
"""

import torch

from .average_precision import check_detections, rank_detections


@torch.no_grad()
def pair_gradient(
    scores: torch.Tensor, matched_gt: torch.Tensor, num_gt: int, margin: float = 1.0
) -> torch.Tensor:
    """
    What raises AP, as one push apart for each pair of a true and a false positive.

    Without interpolation, 1 - AP is a sum over such pairs: the precision at true positive i lacks
    1 / rank_i for each false positive above it. With H(x) = clamp(x / (2 margin) + 1/2, 0, 1)
    for "above" and rank_i = 1 + true positives above i + sum_j H(s_j - s_i),

        w_ij = H(s_j - s_i) / (G rank_i),        g_i += w_ij,  g_j -= w_ij,

    the error-driven update of AP Loss (Chen et al., "Towards Accurate One-Stage Object Detection
    with AP-Loss", CVPR 2019), here of one class and of what NMS keeps. It sums to zero.

    Args:
        scores: (D,) float. matched_gt: (D,) int64, index of the object matched, -1 for none, -2 for
            a difficult object. num_gt: objects without the difficult ones. margin: in units of the
            scores, above 0; a true positive is safe from false positives so far below it.

    Returns:
        (D,) of the scores' dtype: the direction in which AP rises.

    Raises:
        ValueError, TypeError: a wrong shape or dtype, a margin not above 0.
        FloatingPointError: a score that is not finite.
    """
    check_detections(scores, matched_gt, num_gt)
    if not margin > 0:
        raise ValueError(f"margin: expected more than 0, got {margin}")
    gradient = torch.zeros_like(scores)
    ranked = rank_detections(scores, matched_gt)
    tps, fps = ranked.order[ranked.is_tp], ranked.order[~ranked.is_tp]
    if len(tps) > num_gt:
        raise ValueError(f"num_gt: expected at least the {len(tps)} objects detected, got {num_gt}")
    if not len(tps) or not len(fps):
        return gradient
    above = (scores[fps] - scores[tps][:, None]).div_(2 * margin).add_(0.5).clamp_(0, 1)
    rank = torch.arange(1, len(tps) + 1, device=scores.device) + above.sum(1)
    weights = above.div_(num_gt * rank[:, None])
    gradient[tps] = weights.sum(1)
    gradient[fps] = -weights.sum(0)
    return gradient
