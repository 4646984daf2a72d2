# SPDX-License-Identifier: Apache-2.0
"""
The error-driven gradient of AP after NMS: all pairs in the wrong order, not the nearest steps.

Four windows of one class with scores 3.0, 2.5, 2.0, 1.6 and one object, margin 1. The first is a
false positive, the third the object's true positive, the fourth a window over the same object that
NMS suppresses; the second lies over nothing and is suppressed: it takes no part. With
`transitivity` "label_aware":

H(d) = clamp(d / 2 + 1/2, 0, 1) says how far a score d higher is "above". For the third window
H(3.0 - 2.0) = 1, its rank is 1 + 1, its precision lacks 1/2: it is pushed up by 1/2, the first one
down by as much. The fourth, ranked as if it were kept, has H(1.4) = 1, too: another 1/2.
The gradient is (-1, 0, 1/2, 1/2). By default, "object_aware", the two windows over the object share
its weight: (-1/2, 0, 1/4, 1/4).

Shape letters: n detections, q of them over an object, P classes, T overlaps.
"""

from typing import NamedTuple

import torch

from ..average_precision import check_detections
from ..checks import check_choice, check_mask
from ..match_detections import UNMATCHED
from .detections import Detections
from .rankings import Matched, Ranking, running_sums

ERROR_DRIVEN_TRANSITIVITIES = ("label_aware", "object_aware", "none")
DEFAULT_TRANSITIVITY = "object_aware"
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
    transitivity: str = DEFAULT_TRANSITIVITY,
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

    NMS keeps one window of an object and suppresses the others, whichever they are. With
    `transitivity` "label_aware" (this project's own) each window over an object that NMS suppresses
    is pushed as well, at its own score, as the true positive that it would be if it were kept: i
    runs over these too, and rank_i counts the true positives of the other objects. Suppressed
    windows over no object still get nothing: they cannot lower AP from where they are. Tied true
    positives count in input order.

    With "object_aware" (this project's own) the windows of an object, kept or not, share its
    weight: w_ij is divided by their number. This is the gradient of the mean AP over which of them
    NMS might have kept, each as likely as the others. An object that many windows cover, as large
    ones are, weighs as much as any other, as it does in AP.

    Args:
        scores: (R,) float of one class.
        matched_gt: (R,) int64, index of the object matched, -1 for none, -2 for a difficult object.
        num_gt: objects without the difficult ones.
        is_kept: (R,) bool, what NMS keeps; None means all.
        margin: in units of the scores, 1e-6 to 1e6; a true positive is safe from false positives so
            far below it.
        transitivity: "object_aware", "label_aware" or "none".

    Returns:
        (R,) of the scores' dtype: the direction in which AP rises.

    Raises:
        ValueError, TypeError: a wrong shape or dtype, more objects than num_gt, a margin out of
            range, an unknown name.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores, matched_gt = torch.tensor([3.0, 2.5, 2.0, 1.6]), torch.tensor([-1, -1, 0, 0])
        >>> is_kept = torch.tensor([True, False, True, False])
        >>> error_driven_gradient(scores, matched_gt, 1, is_kept)
        tensor([-0.5000,  0.0000,  0.2500,  0.2500])
    """
    check_detections(scores, matched_gt, num_gt)
    check_choice("transitivity", transitivity, ERROR_DRIVEN_TRANSITIVITIES)
    check_margin(margin)
    if is_kept is None:
        is_kept = torch.ones_like(matched_gt, dtype=torch.bool)
    check_mask("is_kept", is_kept, len(scores))
    objects, numbers = matched_gt.unique(return_inverse=True)
    num_found = int((objects >= 0).sum())
    if num_found > num_gt:
        raise ValueError(f"num_gt: expected at least the {num_found} objects found, got {num_gt}")
    numbers = torch.where(matched_gt >= 0, numbers, matched_gt)
    levels = (matched_gt != UNMATCHED).long()
    detections = Detections(scores, torch.zeros_like(levels), numbers, levels, is_kept)
    ranking = Ranking.of(detections, matched_gt.new_tensor([num_gt]), len(objects), 1)
    gradient = gradient_of_errors(ranking, find_errors(ranking, margin), transitivity)
    return ranking.by_input(gradient).to(scores.dtype)


class Ramps(NamedTuple):
    """
    Where H falls from 1 to 0 below each of the q windows over an object: false positives before
    `near` count as 1, those from `far` on as 0.

    near, far: (q,) int64 places, rising. from_best: (n,) and own: (q,) float64, how far the score
    is below the best one of its class, in units of twice the margin.
    """

    near: torch.Tensor
    far: torch.Tensor
    from_best: torch.Tensor
    own: torch.Tensor


class Errors(NamedTuple):
    """
    What stands above each of the q windows over an object, at each overlap.

    Args:
        ramps: of the windows.
        fps_above: (T, q) float64, the sum of H over the false positives of the class.
        tps_above: (T, q) float64, true positives of the other objects of the class.
    """

    ramps: Ramps
    fps_above: torch.Tensor
    tps_above: torch.Tensor


def find_errors(ranking: Ranking, margin: float) -> Errors:
    """
    Of all classes and overlaps at once.

    Where the scores fall below s_i + margin and s_i - margin does not depend on the overlap: two
    searches. The sums over false positives between are differences of running sums.

    Args:
        ranking: of all classes.
        margin: see :func:`error_driven_gradient`.
    """
    matched = ranking.matched
    ramps = _find_ramps(ranking, margin)
    start = matched.starts[matched.classes]
    tps_before = running_sums(matched.is_tp)
    tps_above = tps_before[:, :-1] - tps_before[:, start]
    # Those above include the own object's true positive.
    own_tp = matched.tp_at[:, matched.objects.clamp(min=0)]
    tps_above -= (own_tp < torch.arange(len(start), device=start.device)).double()
    return Errors(ramps, _false_positives_above(ranking, ramps), tps_above)


def gradient_of_errors(ranking: Ranking, errors: Errors, transitivity: str) -> torch.Tensor:
    """
    :func:`error_driven_gradient` of all classes, the mean over overlaps: (n,) float64 by place.

    Args:
        ranking: of all classes.
        errors: of it.
        transitivity: see :func:`error_driven_gradient`.
    """
    matched, ramps = ranking.matched, errors.ramps
    is_pushed = matched.is_tp
    if transitivity != "none":
        is_object = matched.objects >= 0
        is_pushed = is_pushed | (matched.is_matched & is_object & ~matched.is_kept)
    ranks = 1 + errors.tps_above + errors.fps_above
    if transitivity == "object_aware":
        ranks = ranks * _windows_of_object(matched, is_pushed)
    # A class may have difficult objects only.
    weight = is_pushed / (ranking.num_gt.clamp(min=1)[matched.classes] * ranks)
    # What is over no object is a false positive at all overlaps: the sum of weights will do.
    places = torch.arange(len(ranking.order), device=weight.device)
    classes = ranking.detections.classes
    shares = _shares(matched, ramps, places, classes, ramps.from_best, weight.sum(0))
    gradient = 0 - ranking.is_background * shares
    shares = _shares(matched, ramps, matched.places, matched.classes, ramps.own, weight)
    pushes = weight * errors.fps_above - matched.is_fp * shares
    gradient.index_add_(0, matched.places, pushes.sum(0))
    return gradient / ranking.num_overlaps


def _windows_of_object(matched: Matched, is_pushed: torch.Tensor) -> torch.Tensor:
    """(T, q) float64, how many windows over the same object are pushed, at least 1."""
    # One object more, for the difficult ones.
    num_overlaps, num_objects = matched.tp_at.shape
    objects = torch.where(matched.objects >= 0, matched.objects, num_objects).expand_as(is_pushed)
    shape = (num_overlaps, num_objects + 1)
    counts = torch.zeros(shape, dtype=torch.float64, device=objects.device)
    counts.scatter_add_(1, objects, is_pushed.double())
    return counts.gather(1, objects).clamp_(min=1)


def _find_ramps(ranking: Ranking, margin: float) -> Ramps:
    places, classes = ranking.matched.places, ranking.detections.classes
    at = _score_axis(ranking, margin)
    near = torch.searchsorted(at, at[places] - 0.5)
    far = torch.searchsorted(at, at[places] + 0.5)
    # Counted from the class's best score: small numbers keep running sums exact.
    from_best = at - torch.nn.functional.pad(at, (0, 1))[ranking.starts][classes]
    return Ramps(near, far, from_best, from_best[places])


def _score_axis(ranking: Ranking, margin: float) -> torch.Tensor:
    """
    (n,) float64, where each detection stands on one rising axis of all classes, in units of twice
    the margin: differences within a class are those of the scores as far as H tells them apart.
    """
    scores, classes = ranking.detections.scores.double(), ranking.detections.classes
    steps = torch.ones_like(scores)
    falls = ((scores[:-1] - scores[1:]) / (2 * margin)).clamp_(max=1)
    steps[1:] = torch.where(classes[1:] == classes[:-1], falls, 1.0)
    return steps.cumsum(0)


def _false_positives_above(ranking: Ranking, ramps: Ramps) -> torch.Tensor:
    """(T, q) float64, the sum of H over the false positives of the class."""
    matched = ranking.matched
    ends = torch.stack([ranking.starts[matched.classes], ramps.near, ramps.far])
    among_matched = torch.searchsorted(matched.places, ends)
    sums = []
    for background, of_matched in (
        (ranking.is_background, matched.is_fp),
        (ranking.is_background * ramps.from_best, matched.is_fp * ramps.own),
    ):
        before = running_sums(background)[ends] + running_sums(of_matched)[:, among_matched]
        sums.append(before.diff(dim=1).unbind(1))
    (whole, on_ramp), (_, moments) = sums
    return whole + on_ramp * (ramps.own + 0.5) - moments


def _shares(
    matched: Matched,
    ramps: Ramps,
    places: torch.Tensor,
    classes: torch.Tensor,
    from_best: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """
    (..., B) float64, the sum of w_i H over the windows i over an object of the class, for
    detections at some places.

    Windows whose ramp is still to come give w_i, those on whose ramp the place is w_i H: both are
    neighbours among the q, so that their sums are differences of running sums.

    Args:
        matched: the windows i.
        ramps: theirs.
        places: (B,) of the detections.
        classes: (B,) of the detections.
        from_best: (B,) of the detections.
        weight: (..., q), w_i.
    """
    last = matched.starts[classes + 1]
    near = torch.searchsorted(ramps.near, places, right=True)
    far = torch.searchsorted(ramps.far, places, right=True)
    weights, moments = running_sums(weight), running_sums(weight * (ramps.own + 0.5))
    on_ramp = moments[..., near] - moments[..., far]
    on_ramp -= from_best * (weights[..., near] - weights[..., far])
    # Rounding may leave less than nothing.
    return (weights[..., last] - weights[..., near] + on_ramp).clamp_(min=0)
