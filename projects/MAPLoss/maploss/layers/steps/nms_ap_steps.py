# SPDX-License-Identifier: Apache-2.0
"""
Nearest steps of AP after NMS in the score of each window.

Shape letters: R windows of one class, all images together; B of them looked at.
Inside, windows go by their rank (0 for the best score).
"""

from typing import NamedTuple

import torch

from ..average_precision import AP_TYPES, check_detections
from ..checks import check_choice
from ..nms import NMSRecord, Overlaps, find_overlaps, nms_record
from .ap_steps import VALUE_TOLERANCE, Steps
from .counterfactual_ap import DetectionList
from .incremental_nms import Edits, IncrementalNMS, swap

TRANSITIVITIES = ("exact", "label_aware", "paper", "none")


class _Ranked(NamedTuple):
    """The windows by rank: suppressor (R,) is a rank, -1 for kept windows."""

    kept: DetectionList
    suppressor: torch.Tensor
    by_rank: torch.Tensor

    @property
    def suppressed(self) -> torch.Tensor:
        return (self.suppressor >= 0).nonzero().squeeze(1)


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
        scores: (R,) of one class. boxes: (R, 4) XYXY in pixels. image_ids: (R,) int64. matched_gt:
            (R,) int64, see :func:`match_detections`; the windows matched to an object are of one
            image. num_gt: objects without the difficult ones.
        nms_thresh: IoU over which windows suppress each other. ap_type: "area", "voc07" or
            "coco101". overlaps: of these boxes, where several classes share them. record: of these
            windows, where it is known.

    Returns:
        Steps in the order of the input; all nan for num_gt = 0. Tied scores keep their input order.

    Raises:
        ValueError, TypeError: an unknown name, a wrong shape, dtype or threshold.
        FloatingPointError: a score that is not finite.
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
    by_rank = torch.empty_like(record.rank)
    by_rank[record.rank] = torch.arange(len(scores), device=scores.device)
    suppressor = record.suppressor[by_rank]
    suppressor = torch.where(suppressor >= 0, record.rank[suppressor.clamp(min=0)], -1)
    kept = DetectionList(suppressor < 0, matched_gt[by_rank], num_gt, ap_type)
    windows = _Ranked(kept, suppressor, by_rank)
    if transitivity == "exact":
        up, down = _exact(windows, record, overlaps, image_ids[by_rank])
    elif transitivity == "label_aware":
        up, down = _label_aware(windows)
    elif transitivity == "paper":
        up, down = _paper(windows)
    else:
        up, down = kept.up, kept.down
    steps = Steps.none(kept.value, scores)
    for is_up, (value, partner) in ((True, up), (False, down)):
        who = (partner >= 0).nonzero().squeeze(1)
        steps.put(is_up, by_rank[who], by_rank[partner[who]], value[who], scores)
    return steps


_OneSide = tuple[torch.Tensor, torch.Tensor]  # value and partner by rank, (R,) each


class _Crossings(NamedTuple):
    """
    Windows that meet another one at which NMS changes. All (B,).

    who: the window that moves. passed: the window met. is_alike: AP is known to stay as it is.
    """

    who: torch.Tensor
    passed: torch.Tensor
    is_alike: torch.Tensor


def _exact(
    windows: _Ranked, record: NMSRecord, overlaps: Overlaps, image_ids: torch.Tensor
) -> tuple[_OneSide, _OneSide]:
    kept, suppressor = windows.kept, windows.suppressor
    is_followed = _can_matter(kept, image_ids)
    rerun = IncrementalNMS(record, overlaps, is_followed)
    risers = windows.suppressed
    above = suppressor[risers]
    fallers = (rerun.heir < kept.size).nonzero().squeeze(1)
    edits = rerun.change(risers, fallers)
    # Most newcomers replace a window of the same label and change nothing else.
    num_entries = torch.bincount(edits.row, minlength=len(risers) + len(fallers))[: len(risers)]
    is_swap = num_entries == is_followed[above].long()
    rises = _Crossings(risers, above, is_swap & (kept.gt[risers] == kept.gt[above]))
    falls = _Crossings(fallers, rerun.heir[fallers], torch.zeros_like(fallers, dtype=torch.bool))
    rows = torch.arange(len(risers), device=risers.device)
    edits = Edits.join(edits, Edits.of(rows, risers, above, True))
    return _join(windows, rises, falls, edits, is_exact=True)


def _label_aware(windows: _Ranked) -> tuple[_OneSide, _OneSide]:
    gt, risers = windows.kept.gt, windows.suppressed
    above = windows.suppressor[risers]
    rises = _Crossings(risers, above, gt[risers] == gt[above])
    fallers, heir = _heirs(windows, risers)
    falls = _Crossings(fallers, heir, gt[fallers] == gt[heir])
    return _join(windows, rises, falls, _swaps(rises, falls), is_exact=False)


def _paper(windows: _Ranked) -> tuple[_OneSide, _OneSide]:
    kept, risers = windows.kept, windows.suppressed
    gt = kept.gt[risers]
    is_hidden = gt >= 0
    is_hidden[is_hidden.clone()] = kept.tp_of[gt[is_hidden]] == kept.size
    rises = _Crossings(risers, windows.suppressor[risers], ~is_hidden)
    fallers, heir = _heirs(windows, risers[is_hidden])
    falls = _Crossings(fallers, heir, torch.zeros_like(fallers, dtype=torch.bool))
    return _join(windows, rises, falls, _swaps(rises, falls), is_exact=False)


def _can_matter(kept: DetectionList, image_ids: torch.Tensor) -> torch.Tensor:
    """
    (R,) bool by rank: may this window, kept or not, still change AP?

    Not below the last true positive, unless a window of the same image at or below it could be one.
    """
    ranks = torch.arange(kept.size, device=image_ids.device)
    _, image = image_ids.unique(return_inverse=True)
    last = torch.full((int(image.max()) + 1,), -1, device=image.device)
    last.scatter_reduce_(0, image, torch.where(kept.gt >= 0, ranks, -1), "amax")
    last_tp = int(kept.tps[-1]) if kept.num_tp else -1
    return ranks <= last.clamp(min=last_tp)[image]


def _heirs(windows: _Ranked, suppressed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The suppressors (B,) of `suppressed`, and the best of them that each suppresses (B,)."""
    best = torch.full_like(windows.suppressor, windows.kept.size)
    best.scatter_reduce_(0, windows.suppressor[suppressed], suppressed, "amin")
    suppressors = (best < windows.kept.size).nonzero().squeeze(1)
    return suppressors, best[suppressors]


def _swaps(rises: _Crossings, falls: _Crossings) -> Edits:
    """A riser takes the place of the window it passes; a faller's heir keeps its own."""
    return swap(
        torch.cat([rises.passed, falls.who]),
        torch.cat([rises.who, falls.passed]),
        torch.cat([rises.passed, falls.passed]),
    )


def _join(
    windows: _Ranked, rises: _Crossings, falls: _Crossings, edits: Edits, is_exact: bool
) -> tuple[_OneSide, _OneSide]:
    """
    The steps of the list, and those that NMS makes.

    A riser has its step where it passes its suppressor. Where that leaves AP as it is, it has the
    next on its way up: if `is_exact` and not alike that of its own in the edited list, else its
    suppressor's. A faller that meets its heir before its own step is gone from there: a step if
    that changes AP, else none at all.

    Args:
        edits: of the list, rows for `rises` first, then for `falls`.
    """
    kept = windows.kept
    (up, up_partner), (down, down_partner) = (
        [x.clone() for x in side] for side in (kept.up, kept.down)
    )
    up[rises.who], up_partner[rises.who] = up[rises.passed], up_partner[rises.passed]
    own = torch.where(down_partner[falls.who] < 0, kept.size, down_partner[falls.who])
    gives_way = falls.passed < own
    down[falls.who[gives_way]] = float("nan")
    down_partner[falls.who[gives_way]] = -1

    rising = (~rises.is_alike).nonzero().squeeze(1)
    falling = (gives_way & ~falls.is_alike).nonzero().squeeze(1)
    rows = torch.cat([rising, falling + len(rises.who)])
    places = torch.cat([rises.passed[rising], falls.passed[falling]])
    movers = torch.cat([rises.who[rising], falls.passed[falling]])
    edits = edits.of_rows(rows, len(rises.who) + len(falls.who))
    outcome = kept.apply(edits, movers, places)
    is_step = (outcome.value - kept.value).abs() > VALUE_TOLERANCE
    count = len(rising)
    if is_exact:
        up[movers[:count]] = outcome.up_value[:count]
        up_partner[movers[:count]] = outcome.up_partner[:count]
    rise = is_step.nonzero().squeeze(1)
    rise, fall = rise[rise < count], rise[rise >= count]
    up[movers[rise]], up_partner[movers[rise]] = outcome.value[rise], places[rise]
    fallers = falls.who[falling[fall - count]]
    down[fallers], down_partner[fallers] = outcome.value[fall], places[fall]
    return (up, up_partner), (down, down_partner)
