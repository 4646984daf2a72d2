# SPDX-License-Identifier: Apache-2.0
"""
AP as a function of how far boxes overlap their objects, and its derivative by that overlap.

AP steps where the IoU of a box with its object passes one of the overlaps: the box is matched
above, not below. All that holds of steps in scores holds of these (Henderson & Ferrari 2016,
sections 4.3 and 4.4), except that the order of the list stays, and NMS as well while boxes move
little.

Three windows of one class with scores 3, 2, 1, overlaps .5 and .75, one object. NMS keeps all. The
first overlaps nothing, the second has IoU .6 and the third .9. At .5 the second is the true
positive: AP = 1/2. At .75 it is a false positive, the third the true positive: AP = 1/3. Were the
IoU of the second above .75, AP would be 1/2 at .75 too: its step up is at .75, from a mean of 5/12
to 1/2. Below .5 the third would be the true positive there as well: its step down is at .5, to 1/3.
The third can fall below .75 (AP 0 there), and has no step above.

Shape letters: n detections, q of them over an object, P classes, R windows, T overlaps.
"""

import torch

from ..match_detections import UNMATCHED
from ..steps.counterfactual_ap import CounterfactualAP, Moves
from ..steps.detection_lists import DetectionLists
from ..steps.incremental_nms import Edits
from ..steps.pseudo_gradient import slopes
from ..steps.ranked_windows import RankedWindows
from ..steps.steps import VALUE_TOLERANCE, Steps
from .error_driven_gradient import Errors
from .rankings import Ranking, average_precisions
from .settings import MAPLossSettings

# Least distance to a step, in units of IoU: that from one overlap of COCO's to the next.
_MIN_DELTA = 0.05


def overlap_gradient_of_errors(ranking: Ranking, errors: Errors) -> torch.Tensor:
    """
    (n,) float64 by place, what AP would gain, the mean over overlaps, if a window over an object
    were the object's true positive where it is: its precision there by the number of objects,

        (1 + true positives of others above) / ((1 + these + sum of H over false positives) G).

    Windows that NMS suppresses count as if they were kept; what is not over an object, or over a
    difficult one, has 0. A window that is a false positive at an overlap counts itself with
    H(0) = 1/2 there. This project's own.

    Args:
        ranking: of all classes.
        errors: of it, see :func:`find_errors`.
    """
    matched = ranking.matched
    rank = 1 + errors.tps_above
    precision = rank / (rank + errors.fps_above)
    gain = precision.mean(0) / ranking.num_gt[matched.classes].clamp(min=1)
    by_place = gain.new_zeros(len(ranking.order))
    return by_place.index_copy_(0, matched.places, gain * (matched.objects >= 0))


def overlap_step_gradient(
    ranking: Ranking,
    movers: torch.Tensor,
    objects: torch.Tensor,
    ious: torch.Tensor,
    settings: MAPLossSettings,
) -> torch.Tensor:
    """
    (m,) float64, pseudo partial derivatives of AP, the mean over overlaps, by the IoU of some
    detections with the object that each overlaps most, from the nearest steps: 0 or more. One over
    a difficult object has steps too: from there on it is no false positive.

    Args:
        ranking: of all classes.
        movers: (m,) int64 places of detections that NMS keeps.
        objects: (m,) int64 that object, or DIFFICULT.
        ious: (m,) float64.
        settings: `box_gradient` is the estimator.
    """
    if not len(movers):
        return ious.new_zeros(0)
    gain = _gain_of_a_match(ranking, movers, objects, settings.ap_type) / ranking.num_overlaps
    threshs = torch.tensor(settings.iou_threshs, dtype=torch.float64, device=ious.device)
    overlaps = torch.arange(len(threshs), device=ious.device)[:, None]
    is_matched = ranking.detections.levels[movers] > overlaps
    is_step = gain > VALUE_TOLERANCE
    # The first overlap above and the last below, T and -1 for none.
    up = torch.where(is_step & ~is_matched, overlaps, len(threshs)).amin(0)
    down = torch.where(is_step & is_matched, overlaps, -1).amax(0)
    threshs = torch.nn.functional.pad(threshs, (0, 1), value=float("nan"))
    gain = torch.nn.functional.pad(gain, (0, 0, 0, 1), value=float("nan"))
    each = torch.arange(len(movers), device=ious.device)
    steps = Steps(
        ious.new_zeros(()), threshs[up], gain[up, each], threshs[down], -gain[down, each], up, down
    )
    return torch.stack(slopes(steps, ious, settings.box_gradient, _MIN_DELTA)).sum(0)


def _gain_of_a_match(
    ranking: Ranking, movers: torch.Tensor, objects: torch.Tensor, ap_type: str
) -> torch.Tensor:
    """
    (T, m) float64, AP of the class with the mover matched to its object at an overlap, less that
    with it unmatched; 0 or more.

    Each mover has two doubles beside it that are on no list, one matched at all overlaps and one
    at none: trying a label is an exchange of the mover for a double.
    """
    detections, size, num = ranking.detections, len(ranking.order), len(movers)
    places = torch.arange(size, device=movers.device) * 3
    keys = torch.cat([places, places[movers] + 1, places[movers] + 2])
    order = torch.argsort(keys)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    overlaps = torch.arange(ranking.num_overlaps, device=movers.device)[:, None]
    labels = torch.where(detections.levels > overlaps, detections.objects, UNMATCHED)
    shape = (ranking.num_overlaps, num)
    labels = torch.cat([labels, objects.expand(shape), objects.new_full(shape, UNMATCHED)], dim=1)
    classes = torch.cat([detections.classes, detections.classes[movers].repeat(2)])[order]
    is_kept = torch.nn.functional.pad(detections.is_kept, (0, 2 * num))[order]
    windows = RankedWindows.without_pairs(classes, is_kept, labels[:, order], ranking.num_gt)
    lists = DetectionLists(windows, ap_type)
    mover, *doubles = position.split([size, num, num])
    mover, put = mover[movers], torch.stack(doubles, dim=1).flatten()
    rows, taken = torch.arange(2 * num, device=order.device), mover.repeat_interleave(2)
    edits = Edits.join(Edits.of(rows, taken, taken, False), Edits.of(rows, put, taken, True))
    is_matched = (detections.levels[movers] > overlaps).flatten()
    row = (rows[::2] + is_matched.view(shape)).flatten()
    of_list = (overlaps * len(ranking.num_gt) + detections.classes[movers]).flatten()
    moves = Moves(of_list, row, put[row], mover.expand(shape).flatten())
    ap = average_precisions(ranking, ap_type).flatten()
    tried = CounterfactualAP(lists, ap).apply(edits, moves, asks_for_next=False).value
    return torch.where(is_matched, ap[of_list] - tried, tried - ap[of_list]).view(shape)
