# SPDX-License-Identifier: Apache-2.0
"""
Nearest steps of AP after NMS in the score of each window, for all classes and overlaps at once.

Every window has one crossing at which NMS may change: a suppressed one meets its suppressor on its
way up, a kept one the best window that it suppresses on its way down. What NMS then does is the
same at all overlaps; what AP becomes is asked for the crossings that may change it only.

Shape letters: T overlaps, P classes, n windows of all classes by position (see RankedWindows), D of
them kept, B crossings looked at.
"""

import torch

from ..average_precision import AP_TYPES, check_detections
from ..checks import check_choice
from ..nms import NMSRecord, Overlaps, find_overlaps, nms_record
from .counterfactual_ap import CounterfactualAP, Outcome
from .crossings import Crossings, exact_crossings, label_aware_crossings, paper_crossings
from .detection_lists import DetectionLists
from .first_steps import ListSteps, first_steps
from .ranked_windows import RankedSteps, RankedWindows
from .steps import Steps

TRANSITIVITIES = ("exact", "label_aware", "paper", "none")
_CROSSINGS = {
    "exact": exact_crossings,
    "label_aware": label_aware_crossings,
    "paper": paper_crossings,
}


@torch.no_grad()
def nms_ap_steps(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    image_ids: torch.Tensor,
    matched_gt: torch.Tensor,
    num_gt: int,
    *,
    nms_thresh: float = 0.3,
    ap_type: str = "area",
    transitivity: str = "exact",
    overlaps: Overlaps | None = None,
    record: NMSRecord | None = None,
) -> Steps:
    """
    The nearest steps of AP after NMS above and below the score of each window, the others held.

    Kept windows have the steps of the list of detections. `transitivity` says what more is seen:

    - "exact": every step, with all that NMS then keeps and drops. A suppressed window that rises to
      its suppressor takes its place and displaces all that it overlaps; a kept one that falls
      below a window that it alone suppresses goes; what is set free comes back.
    - "label_aware": the window takes its suppressor's place with its own label, and nothing else
      changes.
    - "paper": Henderson & Ferrari 2016, section 4.4: suppressed windows take their suppressor's
      step up; those over an object that no detection covers gain it at their suppressor's score,
      and their suppressors have a step down at the best of them.
    - "none": suppressed windows have no step.

    Args:
        scores: (R,) of one class.
        boxes: (R, 4) XYXY in pixels.
        image_ids: (R,) int64.
        matched_gt: (R,) int64, see :func:`match_detections`; the windows matched to an object are
            of one image.
        num_gt: objects without the difficult ones.
        nms_thresh: IoU over which windows suppress each other.
        ap_type: "area", "voc07" or "coco101".
        transitivity: see above.
        overlaps: of these boxes, where several classes share them.
        record: of these windows, where it is known.

    Returns:
        Steps in the order of the input; all nan for num_gt = 0. Tied scores keep their input order.

    Raises:
        ValueError, TypeError: an unknown name, a wrong shape, dtype or threshold.
        FloatingPointError: a score that is not finite.

    A window over nothing suppresses the only match of the only object. AP is 0. It becomes 1 where
    the match rises past it, or where it falls below the match:

    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
    >>> steps = nms_ap_steps(
    ...     torch.tensor([2.0, 1.0]), boxes, torch.tensor([0, 0]), torch.tensor([-1, 0]), 1)
    >>> steps.up_at.tolist(), steps.up_value.tolist(), steps.up_partner.tolist()
    ([nan, 2.0], [nan, 1.0], [-1, 0])
    >>> steps.down_at.tolist(), steps.down_value.tolist(), steps.down_partner.tolist()
    ([1.0, nan], [1.0, nan], [1, -1])
    """
    check_choice("ap_type", ap_type, AP_TYPES)
    check_choice("transitivity", transitivity, TRANSITIVITIES)
    check_detections(scores, matched_gt, num_gt)
    if overlaps is None:
        overlaps = find_overlaps(boxes, image_ids, nms_thresh)
    if num_gt == 0 or not len(scores):
        return Steps.none(scores.new_tensor(float("nan") if num_gt == 0 else 0.0), scores)
    if record is None:
        record = nms_record(boxes, scores, image_ids, nms_thresh, overlaps)
    order = torch.empty_like(record.rank)
    order[record.rank] = torch.arange(len(scores), device=scores.device)
    suppressor = record.suppressor[order]
    windows = RankedWindows(
        classes=torch.zeros_like(order),
        image_ids=image_ids[order],
        boxes=overlaps.boxes[order],
        is_kept=record.is_kept[order],
        suppressor=torch.where(suppressor >= 0, record.rank[suppressor.clamp(min=0)], -1),
        higher=record.rank[record.higher],
        lower=record.rank[record.lower],
        limit=overlaps.limit,
        gt=matched_gt[order][None],
        num_gt=torch.tensor([num_gt], device=scores.device),
    )
    ranked = ranked_nms_ap_steps(windows, ap_type, transitivity)
    return ranked.of_input(order, scores)


@torch.no_grad()
def ranked_nms_ap_steps(windows: RankedWindows, ap_type: str, transitivity: str) -> RankedSteps:
    """
    :func:`nms_ap_steps` of all classes at all overlaps; the input is not checked.

    Args:
        windows: of all classes, and what NMS did to them.
        ap_type: "area", "voc07" or "coco101".
        transitivity: of `TRANSITIVITIES`.

    Returns:
        Steps by position. A class without objects has none; its value is nan.
    """
    if not len(windows.classes):
        return RankedSteps.none(windows)
    lists = DetectionLists(windows, ap_type)
    own = first_steps(lists)
    if transitivity == "none":
        steps = _of_list(lists, own)
        steps.up_value.masked_fill_(~windows.is_kept, float("nan"))
        steps.up_partner.masked_fill_(~windows.is_kept, -1)
        return steps
    is_exact = transitivity == "exact"
    crossings, edits = _CROSSINGS[transitivity](lists, own)
    outcome = CounterfactualAP(lists, own.value).apply(edits, crossings.moves, is_exact)
    del edits  # the largest of all
    own.down_value.masked_fill_(crossings.gives_way, float("nan"))
    own.down_partner.masked_fill_(crossings.gives_way, -1)
    steps = _of_list(lists, own)
    _put_crossings(steps, crossings, outcome, is_exact)
    return steps


def _of_list(lists: DetectionLists, own: ListSteps) -> RankedSteps:
    """Those of kept windows are known; suppressed ones have the step up of their suppressor."""
    windows, shape = lists.windows, (lists.num_overlaps, lists.size)
    position = torch.arange(lists.size, device=windows.classes.device)
    source = lists.kept_before[torch.where(windows.is_kept, position, windows.suppressor)]
    value = own.value.view(lists.num_overlaps, -1)
    return RankedSteps(
        value.masked_fill(windows.num_gt == 0, float("nan")),
        own.up_value.index_select(1, source),
        own.up_partner.index_select(1, source),
        own.down_value.new_full(shape, float("nan")).index_copy_(1, lists.kept, own.down_value),
        own.down_partner.new_full(shape, -1).index_copy_(1, lists.kept, own.down_partner),
    )


def _put_crossings(
    steps: RankedSteps, crossings: Crossings, outcome: Outcome, is_exact: bool
) -> None:
    """
    Writes in place the steps that NMS makes.

    A promoted window has its step where it passes its suppressor. Where that leaves AP as it is, it
    has the next on its way up: that of its own in the edited list if `is_exact`, else its
    suppressor's. A demoted one that meets its next best before its own step is gone from there: a
    step if that changes AP, else none at all.
    """
    moves, is_promoted = crossings.moves, crossings.is_promoted
    num_classes, size = steps.value.shape[1], steps.up_value.shape[1]
    cells = moves.lists.div(num_classes, rounding_mode="floor") * size + crossings.who
    for up, down, value, otherwise in (
        (steps.up_value, steps.down_value, outcome.value, outcome.up_value),
        (steps.up_partner, steps.down_partner, moves.places, outcome.up_partner),
    ):
        before = up.view(-1)[cells]
        after = torch.where(outcome.is_step, value, otherwise if is_exact else before)
        up.view(-1)[cells] = torch.where(is_promoted, after, before)
        before = down.view(-1)[cells]
        down.view(-1)[cells] = torch.where(~is_promoted & outcome.is_step, value, before)
