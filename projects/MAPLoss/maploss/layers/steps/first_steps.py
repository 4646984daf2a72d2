# SPDX-License-Identifier: Apache-2.0
"""
Nearest steps of AP of the detections that NMS keeps, all lists at once.

Shape letters: T overlaps, L lists (one for each overlap and class), D kept windows, W windows
matched to an object, M true positives of a list.
"""

from typing import NamedTuple

import torch

from .detection_lists import DetectionLists
from .precision_envelope import FirstChange, PrecisionEnvelope
from .size_chunks import size_chunks

# Numbers in the largest temporary matrix.
_CHUNK = 1 << 19
_RAISE_TP, _LOWER_TP, _RAISE_FP, _LOWER_FP = range(4)


class ListSteps(NamedTuple):
    """
    AP of each list (L,), and the steps of its detections, (T, D) each.

    *_value: float64, nan for no step. *_partner: int64, position of the window passed, or -1.
    """

    value: torch.Tensor
    up_value: torch.Tensor
    up_partner: torch.Tensor
    down_value: torch.Tensor
    down_partner: torch.Tensor


class _MoveTable(NamedTuple):
    """
    The moves of each list: M + 1 rows, one for each true positive and gap between them.

    first_row: (L,) int64. ap: (rows,). value, partner: (4, rows), of a true positive (counted from
    1) that rises and falls, and of a false one below so many true ones that rises and falls.
    """

    first_row: torch.Tensor
    ap: torch.Tensor
    value: torch.Tensor
    partner: torch.Tensor


def first_steps(lists: DetectionLists) -> ListSteps:
    """
    Nearest steps of AP of all detections.

    What a detection meets depends only on its index among the true positives, if it is one, or on
    how many are above it: 2 M + 1 moves answer for a whole list. A duplicate (a lower match of an
    object that has a true positive) becomes that true positive when it rises past it, and the true
    positive becomes the duplicate when it falls past; neither crossing changes AP.
    """
    table = _make_table(lists)
    of_list, num_overlaps = lists.kept_lists, lists.num_overlaps
    gap = lists.tps_before[:-1] - lists.tps_before[lists.list_start[of_list]]
    row = table.first_row[of_list] + gap
    columns = [
        torch.nn.functional.pad(x[move][row], (0, 1))  # and a place for what is of no use
        for move in (_RAISE_FP, _LOWER_FP)
        for x in (table.value, table.partner)
    ]
    _put_matched(lists, table, columns)
    is_ignored = ~lists.counts
    for column in columns:
        fill = float("nan") if column.is_floating_point() else -1
        column[:-1].masked_fill_(is_ignored, fill)
    up_value, up_partner, down_value, down_partner = (
        column[:-1].view(num_overlaps, -1) for column in columns
    )
    return ListSteps(table.ap[table.first_row], up_value, up_partner, down_value, down_partner)


def _make_table(lists: DetectionLists) -> _MoveTable:
    counts = lists.num_tp + 1
    of_list = torch.repeat_interleave(counts)
    first_row = counts.cumsum(0) - counts
    index = torch.arange(len(of_list), device=counts.device) - first_row[of_list]
    ap = torch.zeros(len(of_list), dtype=torch.float64, device=counts.device)
    value = ap.new_zeros(4, len(of_list))
    partner = torch.zeros_like(value, dtype=torch.int64)
    widths = lists.num_tp[of_list]
    for rows, width in size_chunks(widths, torch.zeros_like(widths), _CHUNK):
        some, at = of_list[rows], index[rows]
        tps, fps = lists.true_positives(some, width)
        envelope = PrecisionEnvelope(fps, lists.num_tp[some], lists.weights_of(some, width))
        moves = (
            envelope.raise_tp(at),
            envelope.lower_tp(at, lists.num_fp[some]),
            envelope.raise_fp(at),
            envelope.lower_fp(at),
        )
        passed = torch.stack([move.passed for move in moves])
        partners = torch.cat(
            [
                lists.false_positive(some, passed[:2]),
                tps.gather(1, (passed[2:] - 1).clamp(0, width - 1).t()).t(),
            ]
        )
        ap[rows] = envelope.ap
        value[:, rows], partner[:, rows] = _where_found(moves, partners)
    return _MoveTable(first_row, ap, value, partner)


def _where_found(
    moves: tuple[FirstChange, ...], partners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and partners (4, B), nan and -1 where AP never changes."""
    found = torch.stack([move.found for move in moves])
    values = torch.stack([move.value for move in moves])
    return torch.where(found, values, float("nan")), torch.where(found, partners, -1)


def _put_matched(lists: DetectionLists, table: _MoveTable, columns: list[torch.Tensor]) -> None:
    """Writes the steps of true positives and duplicates, in place."""
    windows, label, of_list = lists.matched, lists.matched_labels, lists.matched_lists
    is_listed = lists.is_matched_kept
    flat = lists.flat(windows)
    start = lists.tps_before[lists.list_start[of_list]]
    first_row = table.first_row[of_list]
    tp = lists.tp_of.gather(1, label)
    tp_row = first_row + lists.tp_index.gather(1, label)
    is_tp = tp == windows
    gap = lists.tps_before[flat] - start
    # An FP step counts for a duplicate only if it comes before its own true positive.
    gap_row = first_row + gap
    rises_as_tp = is_tp | (table.partner[_RAISE_FP][gap_row] <= tp)

    duplicate = torch.where(is_listed & ~is_tp, windows, lists.size)
    best = torch.full_like(lists.tp_of, lists.size).scatter_reduce_(1, label, duplicate, "amin")
    best = best.gather(1, label)
    has_duplicate = is_tp & (best < lists.size)
    step = table.partner[_LOWER_TP][tp_row]
    falls_as_tp = is_tp & (~has_duplicate | ((step >= 0) & (step < best)))
    gap_of_duplicate = lists.tps_before[lists.flat(best)] - start
    fall_row = first_row + torch.where(has_duplicate, gap_of_duplicate, gap)

    cells = torch.where(is_listed, flat, len(columns[0]) - 1)
    for as_tp, other_row, as_tp_move, as_fp_move, pair in (
        (rises_as_tp, gap_row, _RAISE_TP, _RAISE_FP, columns[:2]),
        (falls_as_tp, fall_row, _LOWER_TP, _LOWER_FP, columns[2:]),
    ):
        for column, x in zip(pair, (table.value, table.partner), strict=True):
            column[cells] = torch.where(as_tp, x[as_tp_move][tp_row], x[as_fp_move][other_row])
