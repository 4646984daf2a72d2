# SPDX-License-Identifier: Apache-2.0
"""
Where a window meets another one at which NMS changes, and AP may change with it.

A suppressed window rises past its suppressor; a kept one falls below the best window that it
suppresses. Letters: T overlaps, n windows, D kept ones, W windows matched at the lowest overlap, B
crossings, C entries of all edits.
"""

from typing import NamedTuple

import torch

from ..match_detections import UNMATCHED
from .counterfactual_ap import Moves
from .detection_lists import DetectionLists
from .first_steps import ListSteps
from .incremental_nms import Edits, IncrementalNMS

# Numbers in the largest temporary matrix.
_CHUNK = 1 << 19


class Crossings(NamedTuple):
    """
    The crossings at which AP may change, and what they make of the kept list.

    gives_way: (T, D) bool, the kept windows that are gone from the list before their own step down.
    moves: (B,) the lists to look at. who: (B,) int64, the window that moves. is_promoted: (B,)
    bool.
    """

    gives_way: torch.Tensor
    moves: Moves
    who: torch.Tensor
    is_promoted: torch.Tensor


def label_aware_crossings(lists: DetectionLists, own: ListSteps) -> tuple[Crossings, Edits]:
    """The two windows that meet swap places, where their labels differ."""
    windows, size = lists.windows, lists.size
    suppressor = torch.where(windows.is_kept, size, windows.suppressor)
    index = torch.arange(size, device=suppressor.device)
    next_best = torch.full((size + 1,), size, device=suppressor.device)
    next_best = next_best.scatter_reduce_(0, suppressor, index, "amin")[:size]
    passed = torch.where(windows.is_kept, next_best, suppressor)
    gives_way = _gives_way(lists, own, next_best[lists.kept])
    is_labelled = _is_labelled(lists)
    who = (is_labelled[:size] | is_labelled[passed]).nonzero().squeeze(1)
    may_change = ~_is_alike(lists, who, passed[who]) & _is_possible(lists, who, gives_way)
    overlap, chosen = may_change.nonzero().unbind(1)
    who = who[chosen]
    return _swaps(lists, gives_way, overlap, who, passed[who])


def paper_crossings(lists: DetectionLists, own: ListSteps) -> tuple[Crossings, Edits]:
    """As `label_aware_crossings`, for windows over objects that no kept window is matched to."""
    windows, size, matched = lists.windows, lists.size, lists.matched
    is_missed = lists.tp_of.gather(1, lists.matched_labels) == size
    is_hidden = lists.is_matched & ~windows.is_kept[matched] & is_missed
    num_kept = len(lists.kept)
    suppressor = lists.kept_before[windows.suppressor[matched].clamp(min=0)]
    next_best = torch.full((lists.num_overlaps, num_kept + 1), size, device=matched.device)
    next_best = next_best.scatter_reduce_(
        1,
        torch.where(is_hidden, suppressor, num_kept),
        matched.expand_as(is_hidden),
        "amin",
    )[:, :num_kept]
    gives_way = _gives_way(lists, own, next_best)
    rise_overlap, promoted = is_hidden.nonzero().unbind(1)
    fall_overlap, demoted = gives_way.nonzero().unbind(1)
    who = torch.cat([matched[promoted], lists.kept[demoted]])
    passed = torch.cat([windows.suppressor[matched[promoted]], next_best[fall_overlap, demoted]])
    return _swaps(lists, gives_way, torch.cat([rise_overlap, fall_overlap]), who, passed)


def exact_crossings(lists: DetectionLists, own: ListSteps) -> tuple[Crossings, Edits]:
    """With all that NMS then keeps and drops. Where AP is known to stay as it is, left out."""
    windows, size = lists.windows, lists.size
    is_followed = can_matter(lists)
    rerun = IncrementalNMS(windows, is_followed)
    passed = torch.where(windows.is_kept, rerun.next_best, windows.suppressor)
    gives_way = _gives_way(lists, own, rerun.next_best[lists.kept])
    edits = rerun.change()
    num_entries = torch.zeros_like(passed).index_add_(0, edits.row, torch.ones_like(edits.row))
    # Most newcomers replace a window of the same label and change nothing else.
    is_swap = ~windows.is_kept & (num_entries == is_followed[passed.clamp(max=size - 1)].long())
    promoted = (~windows.is_kept).nonzero().squeeze(1)
    newcomers = Edits.of(promoted, promoted, windows.suppressor[promoted], True)
    order = torch.argsort(torch.cat([x.row * size + x.place for x in (edits, newcomers)]))
    # Column by column: all of them at once would be most of the memory that is taken here.
    columns = zip(edits, newcomers, strict=True)
    edits = Edits(*(torch.cat(parts)[order] for parts in columns))
    del newcomers, order

    is_labelled = _is_labelled(lists)
    touches_label = is_labelled.clone()
    touches_label[:size] |= is_labelled[passed]
    touches_label[torch.where(is_labelled[edits.window], edits.row, size)] = True
    may_change = _changes_counts(lists, edits, touches_label)
    rows = touches_label[:size].nonzero().squeeze(1)
    is_alike = is_swap[rows] & _is_alike(lists, rows, passed[rows])
    may_change[:, rows] = ~is_alike
    kept = lists.kept
    may_change[:, kept] = may_change[:, kept] & gives_way
    overlap, who = may_change.nonzero().unbind(1)
    is_promoted = ~windows.is_kept[who]
    moves = Moves(
        overlap * lists.num_classes + windows.classes[who],
        who,
        torch.where(is_promoted, who, passed[who]),
        passed[who],
    )
    return Crossings(gives_way, moves, who, is_promoted), edits


def can_matter(lists: DetectionLists) -> torch.Tensor:
    """
    (n,) bool: may this window, kept or not, still change AP at some overlap?

    Not below the last true positive, unless a window of the same image at or below it could be one.
    """
    windows = lists.windows
    # Class and image in one number.
    lowest, highest = windows.image_ids.aminmax()
    key = windows.classes * (highest - lowest + 1) + windows.image_ids - lowest
    keys, order = torch.nn.functional.pad(key[lists.matched], (1, 0), value=-1).sort(stable=True)
    matched = torch.nn.functional.pad(lists.matched, (1, 0), value=-1)[order]
    at = torch.searchsorted(keys, key, right=True) - 1
    last_matched = torch.where(keys[at] == key, matched[at], -1)
    last_tp = lists.last_tp().view(lists.num_overlaps, -1).amax(0)
    last = torch.maximum(last_matched, last_tp[windows.classes])
    return torch.arange(lists.size, device=last.device) <= last


def _changes_counts(
    lists: DetectionLists, edits: Edits, touches_label: torch.Tensor
) -> torch.Tensor:
    """
    (T, n) bool, the rows that change how many detections are above some true positive.

    Args:
        lists: of all classes and overlaps.
        edits: by row, then place.
        touches_label: (n + 1,) bool; only the other rows are asked for: all their entries are
            false positives, and true positives stay where they are.
    """
    size = lists.size
    rows, begin, end = _changed_ranges(lists, edits, touches_label)
    # An entry more for rows without a change.
    shape = (lists.num_overlaps, size + 1)
    changes = torch.zeros(shape, dtype=torch.bool, device=rows.device)
    first_place, first_cell = lists.overlaps * len(lists.kept), lists.overlaps * (size + 1)
    part_size = max(1, _CHUNK // lists.num_overlaps)
    for row, start, stop in zip(*(x.split(part_size) for x in (rows, begin, end)), strict=True):
        meets_tp = lists.tps_before[first_place + stop] > lists.tps_before[first_place + start]
        cells = torch.where(meets_tp, row, size) + first_cell
        changes.view(-1)[cells.flatten()] = True
    return changes[:, :size]


def _changed_ranges(
    lists: DetectionLists, edits: Edits, touches_label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Where the number of detections above a place is another than it was, with a true positive of
    some overlap among them. (B,) each: row, and the kept windows from and before which this holds.
    """
    change = _change_in_row(edits)
    # The change holds from below this entry to the next one of the row, or the last of the class.
    last = lists.class_start[lists.windows.classes[edits.row] + 1] - 1
    last[:-1] = torch.where(edits.row[1:] != edits.row[:-1], last[:-1], edits.place[1:])
    begin, end = lists.kept_before[edits.place + 1], lists.kept_before[last + 1]
    is_any_tp = lists.tps_before.diff().view(lists.num_overlaps, -1).any(0)
    any_before = torch.nn.functional.pad(is_any_tp.cumsum(0), (1, 0))
    holds = (change != 0) & (any_before[end] > any_before[begin]) & ~touches_label[edits.row]
    some = holds.nonzero().squeeze(1)
    return edits.row[some], begin[some], end[some]


def _change_in_row(edits: Edits) -> torch.Tensor:
    """(C,) what an entry and those before it in its row add to the list; entries row by row."""
    total = (edits.is_added.long() * 2 - 1).cumsum(0)
    is_first = torch.ones_like(edits.is_added)
    is_first[1:] = edits.row[1:] != edits.row[:-1]
    start = is_first.nonzero().squeeze(1)
    before = torch.nn.functional.pad(total, (1, 0))[start]
    return total - before[is_first.cumsum(0) - 1]


def _is_labelled(lists: DetectionLists) -> torch.Tensor:
    """(n + 1,) bool, the windows matched to an object, even a difficult one, at some overlap."""
    return torch.nn.functional.pad(lists.windows.gt[0] != UNMATCHED, (0, 1))


def _is_alike(lists: DetectionLists, who: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
    """(T, B) bool, whether two windows have the same label; `passed` may be n for none."""
    passed = passed.clamp(max=lists.size - 1)
    return lists.label(lists.overlaps, who) == lists.label(lists.overlaps, passed)


def _gives_way(lists: DetectionLists, own: ListSteps, next_best: torch.Tensor) -> torch.Tensor:
    """(T, D) bool, whether a kept window meets `next_best`, n for none, before its own step."""
    is_stepless = own.down_partner < 0
    return next_best < torch.where(is_stepless, lists.size, own.down_partner)


def _is_possible(lists: DetectionLists, who: torch.Tensor, gives_way: torch.Tensor) -> torch.Tensor:
    """(T, B) bool, False for kept windows that have their own step first."""
    is_kept = lists.windows.is_kept[who]
    return ~is_kept | gives_way[:, torch.where(is_kept, lists.kept_before[who], 0)]


def _swaps(
    lists: DetectionLists,
    gives_way: torch.Tensor,
    overlap: torch.Tensor,
    who: torch.Tensor,
    passed: torch.Tensor,
) -> tuple[Crossings, Edits]:
    """
    A promoted window takes the place of the one it passes; the next best of a demoted one keeps
    its own. overlap, who, passed: (B,).
    """
    is_promoted = ~lists.windows.is_kept[who]
    rows = torch.arange(len(who), device=who.device)
    taken, put = torch.where(is_promoted, passed, who), torch.where(is_promoted, who, passed)
    edits = Edits.join(Edits.of(rows, taken, taken, False), Edits.of(rows, put, passed, True))
    of_list = overlap * lists.num_classes + lists.windows.classes[who]
    return Crossings(gives_way, Moves(of_list, rows, put, passed), who, is_promoted), edits
