# SPDX-License-Identifier: Apache-2.0
"""
AP of the kept list after edits, and the next step of the window that moves in it.

Four windows of one class by falling score: 0 1 2 3; one object, which 1 and 3 match. NMS keeps 0, 2
and 3, and drops 1, which 0 suppresses. The list is 0 2 3: false, false, true; AP = 1/3.

- 1 rises past 0 and takes its place, and 2 goes (1 overlaps it): the list is 1 3. 1 is the true
  positive now, 3 a duplicate: AP = 1, a step.
- 2 is gone from the list: 0 3. AP = 1/2, a step.
- 0 falls below 1 and goes, and 1, which is free then, stands at its own place and displaces 2: 1 3.
  AP = 1, a step.

>>> from maploss.layers.steps.first_steps import first_steps
>>> from maploss.layers.steps.ranked_windows import RankedWindows
>>> def of(*numbers): return torch.tensor(numbers)
>>> windows = RankedWindows(
...     classes=of(0, 0, 0, 0), image_ids=of(0, 0, 0, 0), boxes=torch.zeros(4, 4),
...     is_kept=of(True, False, True, True), suppressor=of(-1, 0, -1, -1),
...     higher=of(0, 1), lower=of(1, 2), limit=0.3,
...     gt=of(-1, 0, -1, 0)[None], num_gt=of(1))
>>> lists = DetectionLists(windows, "area")
>>> own = first_steps(lists)
>>> edits = Edits(
...     row=of(0, 0, 0, 1, 2, 2, 2), window=of(0, 2, 1, 2, 0, 2, 1), place=of(0, 2, 0, 2, 0, 2, 1),
...     is_added=of(False, False, True, False, False, False, True))
>>> moves = Moves(lists=of(0, 0, 0), edits=of(0, 1, 2), perturbed=of(1, 3, 1), places=of(0, 3, 1))
>>> outcome = CounterfactualAP(lists, own.value).apply(edits, moves, asks_for_next=False)
>>> [round(x, 3) for x in [*own.value.tolist(), *outcome.value.tolist()]]
[0.333, 1.0, 0.5, 1.0]

Shape letters: n windows of all classes, B edited lists ("rows"), C entries of all edits, M true
positives of a list (padded), G objects of its class that some window is matched to (padded).
"""

from typing import NamedTuple

import torch

from ..match_detections import DIFFICULT
from ..ragged import RaggedIndex, isin_sorted
from .detection_lists import DetectionLists
from .incremental_nms import Edits
from .precision_envelope import PrecisionEnvelope
from .size_chunks import size_chunks
from .steps import VALUE_TOLERANCE

# Numbers in the largest temporary matrix.
_CHUNK = 1 << 19
_NOTHING = torch.iinfo(torch.int64).max


class Moves(NamedTuple):
    """
    Which list a row edits, and which window moves in it. All (B,) int64.

    lists: overlap times P plus class. edits: row of the edits. perturbed: the window whose way up
    from its place is asked for; it is among the added ones. places: where it stands.
    """

    lists: torch.Tensor
    edits: torch.Tensor
    perturbed: torch.Tensor
    places: torch.Tensor

    def select(self, rows: torch.Tensor) -> "Moves":
        return Moves(*(column[rows] for column in self))


class Outcome(NamedTuple):
    """
    AP of each edited list, and the first step of its perturbed window on the way up. All (B,).

    is_step: bool, whether AP is another than that of the list as it is. value: float64. up_value:
    float64, nan for no step. up_partner: int64, the window passed, or -1.
    """

    is_step: torch.Tensor
    value: torch.Tensor
    up_value: torch.Tensor
    up_partner: torch.Tensor


class _EditedLists(NamedTuple):
    """
    fps, tps: (B, M) false positives above each true positive, and its place, by place; the place is
    n in the padding. gap: (B,) true positives above the perturbed window. own_index: (B,) true
    positive of its object, from 1, or 0 for none. is_ignored: (B,) bool, whether it counts for
    nothing.
    """

    fps: torch.Tensor
    tps: torch.Tensor
    gap: torch.Tensor
    own_index: torch.Tensor
    is_ignored: torch.Tensor


class CounterfactualAP:
    """
    Edits lists of detections, each row on its own.

    Args:
        lists: as they are.
        value: (L,) AP of each.
    """

    def __init__(self, lists: DetectionLists, value: torch.Tensor) -> None:
        self._lists, self._value = lists, value
        self._size = lists.size

    def apply(self, edits: Edits, moves: Moves, asks_for_next: bool) -> Outcome:
        """
        Args:
            edits: shared by all overlaps, with rows below max(n, B).
            moves: the rows.
            asks_for_next: whether the next step of the perturbed window is wanted where AP has not
                changed yet.
        """
        num_rows, device = len(moves.lists), moves.lists.device
        value = torch.zeros(num_rows, dtype=torch.float64, device=device)
        outcome = Outcome(
            torch.zeros(num_rows, dtype=torch.bool, device=device),
            value,
            torch.full_like(value, float("nan")),
            torch.full_like(moves.perturbed, -1),
        )
        entry = torch.arange(len(edits.row), device=device)
        entries = RaggedIndex(edits.row, entry, max(self._size, num_rows))
        widths = self._lists.num_objects[moves.lists % self._lists.num_classes]
        extra = entries.counts[moves.edits]
        for rows, width in size_chunks(widths, extra, _CHUNK):
            some = moves.select(rows)
            source, entry = entries.expand(some.edits)
            edited = self._edit(source, edits.select(entry), some, width)
            result = self._outcome(some.lists, edited, asks_for_next)
            for to, part in zip(outcome, result, strict=True):
                to[rows] = part
        return outcome

    def _edit(self, source: torch.Tensor, edits: Edits, moves: Moves, width: int) -> _EditedLists:
        """
        Args:
            source: (C,) row of each entry, not falling.
            edits: (C,) the entries.
            moves: B, one for each row.
            width: M, true positives of a row at most.
        """
        lists, size = self._lists, self._size
        num_rows, device = len(moves.lists), source.device
        overlap = lists.overlap_of(moves.lists)
        label = lists.label(overlap[source], edits.window)
        tp_of = self._edited_tps(source, edits, label, moves, width)
        tps = tp_of.sort(1).values
        row = torch.arange(num_rows, device=device)
        # Place and row in one number, so that one search serves all rows.
        keys = (row[:, None] * (size + 1) + tps).flatten()
        first = row * width

        gap = torch.searchsorted(keys, source * (size + 1) + edits.place, right=True)
        change = torch.zeros(num_rows * (width + 1), dtype=torch.int64, device=device)
        count = torch.where(label == DIFFICULT, 0, edits.is_added.long() * 2 - 1)
        change.index_add_(0, gap + source, count)
        change = change.view(num_rows, width + 1).cumsum(1)[:, :-1]
        above = lists.detections_above(moves.lists[:, None], tps) + change
        column = torch.arange(width, device=device)
        fps = torch.where(tps < size, above - column, 0)

        label = lists.label(overlap, moves.perturbed)
        column = (label - self._first_object(moves.lists)).clamp(0, width - 1)
        own = tp_of.gather(1, column[:, None]).squeeze(1)
        own_index = torch.searchsorted(keys, row * (size + 1) + own, right=True) - first
        return _EditedLists(
            fps,
            tps,
            torch.searchsorted(keys, row * (size + 1) + moves.places) - first,
            torch.where(label >= 0, own_index, 0),
            label == DIFFICULT,
        )

    def _first_object(self, lists: torch.Tensor) -> torch.Tensor:
        return self._lists.object_start[lists % self._lists.num_classes]

    def _edited_tps(
        self,
        source: torch.Tensor,
        edits: Edits,
        label: torch.Tensor,
        moves: Moves,
        width: int,
    ) -> torch.Tensor:
        """(B, G) where each object's true positive stands then, n if there is none."""
        lists, size = self._lists, self._size
        overlap, first = lists.overlap_of(moves.lists), self._first_object(moves.lists)
        column = torch.arange(width, device=source.device)
        is_real = column < (lists.num_objects[moves.lists % lists.num_classes])[:, None]
        objects = torch.where(is_real, first[:, None] + column, lists.tp_of.shape[1] - 1)
        table = lists.tp_of[overlap[:, None], objects].flatten()
        table = torch.nn.functional.pad(table, (0, 1))  # and a place for what is of no use

        labelled = (label >= 0).nonzero().squeeze(1)
        source, label, edits = source[labelled], label[labelled], edits.select(labelled)
        cells = source * width + label - first[source]
        overlap = overlap[source]
        is_tp = lists.tp_of[overlap, label] == edits.window
        is_lost = ~edits.is_added & is_tp
        table[torch.where(is_lost, cells, len(table) - 1)] = size
        # The next kept match of the object takes over, unless it is removed too.
        entry, next_match = lists.listed_for.expand(label, is_lost)
        removed = torch.where(edits.is_added, _NOTHING, source * size + edits.window).sort().values
        stays = ~isin_sorted(source[entry] * size + next_match, removed)
        stays &= lists.label(overlap[entry], next_match) >= 0
        table.scatter_reduce_(0, cells[entry], torch.where(stays, next_match, size), "amin")
        table.scatter_reduce_(0, cells, torch.where(edits.is_added, edits.place, size), "amin")
        return table[:-1].view(-1, width)

    def _outcome(self, of_list: torch.Tensor, edited: _EditedLists, asks_for_next: bool) -> Outcome:
        num_tp = (edited.tps < self._size).sum(1)
        weights = self._lists.weights_of(of_list, edited.fps.shape[1])
        value = PrecisionEnvelope(edited.fps, num_tp, weights).ap
        is_step = (value - self._value[of_list]).abs() > VALUE_TOLERANCE
        up_value = torch.full_like(value, float("nan"))
        up_partner = torch.full_like(num_tp, -1)
        if asks_for_next:
            # Where AP has changed already the step is at the place itself.
            rows = (~is_step & ~edited.is_ignored).nonzero().squeeze(1)
            some = _EditedLists(*(column[rows] for column in edited))
            envelope = PrecisionEnvelope(some.fps, num_tp[rows], weights[rows])
            up_value[rows], up_partner[rows] = self._rise(of_list[rows], some, envelope)
        return Outcome(is_step, value, up_value, up_partner)

    def _rise(
        self, of_list: torch.Tensor, edited: _EditedLists, envelope: PrecisionEnvelope
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and window passed at the first step of the perturbed window on its way up."""
        own_index, gap = edited.own_index, edited.gap
        as_fp, as_tp = envelope.raise_fp(gap), envelope.raise_tp(own_index)
        # A match below its object's true positive rises as a false one until it passes that.
        is_tp = (own_index > gap) | ((own_index > 0) & (as_fp.passed <= own_index))
        fp_partner = edited.tps.gather(1, (as_fp.passed - 1).clamp(min=0)[:, None]).squeeze(1)
        # Above the perturbed window's place the list is what it was.
        tp_partner = self._lists.false_positive(of_list, as_tp.passed)
        found = torch.where(is_tp, as_tp.found, as_fp.found)
        value = torch.where(is_tp, as_tp.value, as_fp.value)
        partner = torch.where(is_tp, tp_partner, fp_partner)
        return torch.where(found, value, float("nan")), torch.where(found, partner, -1)
