# SPDX-License-Identifier: Apache-2.0
"""
The error-driven gradient of AP after NMS: all pairs in the wrong order, not the nearest steps.

Shape letters: R windows of one class, P of them over an object, F false positives that NMS keeps.
"""

import torch

from ..average_precision import check_detections, rank_detections
from ..checks import check_choice, check_mask
from ..ranking_losses.pair_sums import ramp_pairs

# Rows of the matrix of pushed windows and true positives computed at once.
_BLOCK = 4096

ERROR_DRIVEN_TRANSITIVITIES = ("label_aware", "none")
# Beyond these float32 scores underflow or overflow.
_LEAST_MARGIN, _LARGEST_MARGIN = 1e-6, 1e6


def check_margin(margin: float) -> None:
    """Raises ValueError for a margin out of range."""
    if not _LEAST_MARGIN <= margin <= _LARGEST_MARGIN:
        raise ValueError(f"margin: expected {_LEAST_MARGIN:g} to {_LARGEST_MARGIN:g}, got {margin}")


@torch.no_grad()
def error_driven_gradient(
    scores: torch.Tensor,
    matched_gt: torch.Tensor,
    num_gt: int,
    is_kept: torch.Tensor | None = None,
    *,
    margin: float = 1.0,
    transitivity: str = "label_aware",
    is_moving: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What raises AP after NMS, as one push apart for each pair of a true and a false positive that
    are in the wrong order or closer than the margin.

    Without interpolation, 1 - AP is a sum over such pairs: the precision at true positive i lacks
    1 / rank_i for each false positive above it. With H(x) = clamp(x / (2 margin) + 1/2, 0, 1)
    for "above" and rank_i = 1 + true positives above i + sum_j H(s_j - s_i),

        w_ij = H(s_j - s_i) / (G rank_i),        g_i += w_ij,  g_j -= w_ij,

    the error-driven update of AP Loss (Chen et al., "Towards Accurate One-Stage Object Detection
    with AP-Loss", CVPR 2019), here of one class and of what NMS keeps. It sums to zero.

    NMS keeps one window of an object and hides the others, whichever they are. With
    `transitivity` "label_aware" (this project's own) each window over an object that NMS suppresses
    is pushed as well, at its own score, as the true positive that it would be if it were kept: i
    runs over these too, and rank_i counts the true positives of the other objects. Hidden
    windows over no object still get nothing: they cannot lower AP from where they are. Tied true
    positives count in input order.

    Args:
        scores: (R,) float. matched_gt: (R,) int64, index of the object matched, -1 for none, -2 for
            a difficult object. num_gt: objects without the difficult ones. is_kept: (R,) bool, what
            NMS keeps; None means all. margin: in units of the scores, 1e-6 to 1e6; a true positive
            is safe from false positives so far below it. transitivity: "label_aware" or "none".
            is_moving: (R,) bool, the windows i whose pairs count; None means all.

    Returns:
        (R,) of the scores' dtype: the direction in which AP rises.

    Raises:
        ValueError, TypeError: a wrong shape or dtype, more objects than num_gt, a margin out of
            range, an unknown name.
        FloatingPointError: a score that is not finite.
    """
    check_detections(scores, matched_gt, num_gt)
    check_choice("transitivity", transitivity, ERROR_DRIVEN_TRANSITIVITIES)
    check_margin(margin)
    if is_kept is None:
        is_kept = torch.ones_like(matched_gt, dtype=torch.bool)
    for name, mask in (("is_kept", is_kept), ("is_moving", is_moving)):
        if mask is not None:
            check_mask(name, mask, len(scores))
    num_found = len(matched_gt[matched_gt >= 0].unique())
    if num_found > num_gt:
        raise ValueError(f"num_gt: expected at least the {num_found} objects found, got {num_gt}")
    gradient = torch.zeros_like(scores)
    kept = is_kept.nonzero().squeeze(1)
    ranked = rank_detections(scores[kept], matched_gt[kept])
    tps, fps = kept[ranked.order[ranked.is_tp]], kept[ranked.order[~ranked.is_tp]]
    pushed = tps
    if transitivity == "label_aware":
        pushed = torch.cat([tps, (~is_kept & (matched_gt >= 0)).nonzero().squeeze(1)])
    if is_moving is not None:
        pushed = pushed[is_moving[pushed]]
    pairs = ramp_pairs(scores[pushed], scores[fps], margin)
    above = pairs.over_items(torch.ones_like(fps))[0]
    rank = 1 + _others_above(tps, pushed, scores, matched_gt) + above
    gradient[pushed] = (above / (num_gt * rank)).to(scores.dtype)
    gradient[fps] -= pairs.over_queries(1 / (num_gt * rank))[0].to(scores.dtype)
    return gradient


def _others_above(
    tps: torch.Tensor, pushed: torch.Tensor, scores: torch.Tensor, matched_gt: torch.Tensor
) -> torch.Tensor:
    """(P,) for each pushed window, how many true positives of other objects are above it."""
    above = scores.new_zeros(len(pushed), dtype=torch.int64)
    for rows in torch.arange(len(pushed), device=scores.device).split(_BLOCK):
        some = pushed[rows][:, None]
        is_better = (scores[tps] > scores[some]) | ((scores[tps] == scores[some]) & (tps < some))
        above[rows] = (is_better & (matched_gt[tps] != matched_gt[some])).sum(1)
    return above
