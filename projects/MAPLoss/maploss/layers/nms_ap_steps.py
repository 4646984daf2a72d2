# SPDX-License-Identifier: Apache-2.0
"""
Nearest steps of AP after NMS in the score of each window.

Shape letters: R windows of one class, all images together; B of them looked at.
Inside, windows go by their rank (0 for the best score).
"""

from typing import NamedTuple

import torch

from .ap_steps import VALUE_TOLERANCE, Steps
from .average_precision import AP_TYPES, check_detections
from .checks import check_choice
from .edited_ap import KeptList
from .nms_edits import Edits, NMSRerun, swap
from .nms_record import NMSRecord, Overlaps, find_overlaps, nms_record

TRANSITIVITIES = ("exact", "label_aware", "paper", "none")


class _Ranked(NamedTuple):
    """The windows by rank: suppressor (R,) is a rank, -1 for kept windows."""

    kept: KeptList
    suppressor: torch.Tensor
    by_rank: torch.Tensor

    @property
    def suppressed(self) -> torch.Tensor:
        return (self.suppressor >= 0).nonzero().squeeze(1)

    def differs(self, value: torch.Tensor) -> torch.Tensor:
        return (value - self.kept.value).abs() > VALUE_TOLERANCE


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
            (R,) int64, see :func:`match_detections`. num_gt: objects without the difficult ones.
        nms_thresh: IoU over which windows suppress each other. ap_type: "area", "voc07" or
            "coco101". overlaps: of these boxes, where several classes share them.

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
    record = nms_record(boxes, scores, image_ids, nms_thresh, overlaps)
    by_rank = torch.empty_like(record.rank)
    by_rank[record.rank] = torch.arange(len(scores), device=scores.device)
    suppressor = record.suppressor[by_rank]
    suppressor = torch.where(suppressor >= 0, record.rank[suppressor.clamp(min=0)], -1)
    kept = KeptList(suppressor < 0, matched_gt[by_rank], num_gt, ap_type)
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


def _exact(
    windows: _Ranked, record: NMSRecord, overlaps: Overlaps, image_ids: torch.Tensor
) -> tuple[_OneSide, _OneSide]:
    kept, suppressor = windows.kept, windows.suppressor
    is_followed = _can_matter(kept, image_ids)
    rerun = NMSRerun(record, overlaps, is_followed)

    risers = windows.suppressed
    above = suppressor[risers]
    rows = torch.arange(len(risers), device=risers.device)
    edits = rerun.raise_windows(risers)
    # Most newcomers replace a window of the same label and change nothing else.
    num_others = torch.bincount(edits.row, minlength=len(risers)) - is_followed[above].long()
    is_alike = (num_others == 0) & (kept.gt[risers] == kept.gt[above])
    edits = Edits.join(edits, Edits.of(rows, risers, above, True))
    up = _take_over(windows, risers, above, is_alike, edits)

    fallers = (suppressor < 0).nonzero().squeeze(1)
    edits = rerun.remove_windows(fallers)
    is_alike = torch.zeros_like(fallers, dtype=torch.bool)
    return up, _give_way(windows, fallers, rerun.heir[fallers], is_alike, edits)


def _label_aware(windows: _Ranked) -> tuple[_OneSide, _OneSide]:
    gt, suppressor = windows.kept.gt, windows.suppressor
    risers = windows.suppressed
    above = suppressor[risers]
    is_alike = gt[risers] == gt[above]
    up = _take_over(windows, risers, above, is_alike, swap(above, risers, above), follow=False)
    heir = _best_suppressed(windows, risers)
    fallers = (heir < windows.kept.size).nonzero().squeeze(1)
    heir = heir[fallers]
    is_alike = gt[fallers] == gt[heir]
    return up, _give_way(windows, fallers, heir, is_alike, swap(fallers, heir, heir))


def _paper(windows: _Ranked) -> tuple[_OneSide, _OneSide]:
    kept, suppressor = windows.kept, windows.suppressor
    risers = windows.suppressed
    above = suppressor[risers]
    gt = kept.gt[risers]
    is_hidden = gt >= 0
    is_hidden[is_hidden.clone()] = kept.tp_of[gt[is_hidden]] == kept.size
    up = _take_over(windows, risers, above, ~is_hidden, swap(above, risers, above), follow=False)
    heir = _best_suppressed(windows, risers[is_hidden])
    fallers = (heir < kept.size).nonzero().squeeze(1)
    heir = heir[fallers]
    is_alike = torch.zeros_like(fallers, dtype=torch.bool)
    return up, _give_way(windows, fallers, heir, is_alike, swap(fallers, heir, heir))


def _can_matter(kept: KeptList, image_ids: torch.Tensor) -> torch.Tensor:
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


def _best_suppressed(windows: _Ranked, suppressed: torch.Tensor) -> torch.Tensor:
    """(R,) the best of `suppressed` (B,) that each window suppresses, R for none."""
    best = torch.full_like(windows.suppressor, windows.kept.size)
    return best.scatter_reduce_(0, windows.suppressor[suppressed], suppressed, "amin")


def _take_over(
    windows: _Ranked,
    risers: torch.Tensor,
    above: torch.Tensor,
    is_alike: torch.Tensor,
    edits: Edits,
    follow: bool = True,
) -> _OneSide:
    """
    Steps up: of kept windows those of the list, of `risers` (B,) where they pass `above` (B,).

    Where that leaves AP as it is, the step is the next on the way up: that of the window passed if
    `is_alike` (B,), or if the edited list is not to be followed, else of the riser in that list.
    """
    value, partner = windows.kept.up[0].clone(), windows.kept.up[1].clone()
    value[risers], partner[risers] = value[above], partner[above]
    other = (~is_alike).nonzero().squeeze(1)
    who, passed = risers[other], above[other]
    outcome = windows.kept.apply(edits.of_rows(other, len(risers)), who, passed)
    differs = windows.differs(outcome.value)
    if follow:
        value[who], partner[who] = outcome.up_value, outcome.up_partner
    value[who[differs]], partner[who[differs]] = outcome.value[differs], passed[differs]
    return value, partner


def _give_way(
    windows: _Ranked,
    fallers: torch.Tensor,
    heir: torch.Tensor,
    is_alike: torch.Tensor,
    edits: Edits,
) -> _OneSide:
    """
    Steps down: those of the list, unless a kept window of `fallers` (B,) meets its `heir` first.

    The heir (B,), R for none, takes over there, and that is the end of the faller's way: a step if
    AP changes, which is not asked if `is_alike` (B,), else none at all.
    """
    value, partner = windows.kept.down[0].clone(), windows.kept.down[1].clone()
    own = torch.where(partner[fallers] < 0, windows.kept.size, partner[fallers])
    gives_way = heir < own
    value[fallers[gives_way]] = float("nan")
    partner[fallers[gives_way]] = -1
    asked = (gives_way & ~is_alike).nonzero().squeeze(1)
    who, taker = fallers[asked], heir[asked]
    outcome = windows.kept.apply(edits.of_rows(asked, len(fallers)), taker, taker)
    differs = windows.differs(outcome.value)
    value[who[differs]], partner[who[differs]] = outcome.value[differs], taker[differs]
    return value, partner
