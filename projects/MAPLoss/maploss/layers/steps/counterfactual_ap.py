# SPDX-License-Identifier: Apache-2.0
"""
AP of the kept list after edits, and the next step of the window that moves in it.

Windows go by their rank. Shape letters: R windows, D detections (kept, not ignored), G objects that
some window is matched to, M true positives, B edited lists ("rows"), C entries of all edits.
"""

from typing import NamedTuple

import torch

from ..average_precision import recall_weights
from ..ragged import RaggedIndex, isin_sorted
from .ap_steps import VALUE_TOLERANCE, first_steps
from .incremental_nms import Edits
from .precision_envelope import PrecisionEnvelope

# Numbers in the largest temporary matrix.
_CHUNK = 1 << 21


class Outcome(NamedTuple):
    """
    AP of each edited list, and the first step of its mover on the way up from its place. All (B,).

    value: float64. up_value: float64, nan for no step. up_partner: int64, the window passed, or -1.
    """

    value: torch.Tensor
    up_value: torch.Tensor
    up_partner: torch.Tensor


class DetectionList:
    """
    The kept windows of one class as a list of detections that can be edited.

    Args:
        is_kept: (R,) bool by rank. gt: (R,) int64 by rank, the object of each window, -1 for none,
            -2 for a difficult one. num_gt: objects without the difficult ones. ap_type: kind of AP.
    """

    def __init__(self, is_kept: torch.Tensor, gt: torch.Tensor, num_gt: int, ap_type: str) -> None:
        self.size = len(gt)
        objects, self.gt = _compact(gt)
        self.num_objects = len(objects)
        self.weights = recall_weights(num_gt, self.num_objects, ap_type, gt.device)
        counts = is_kept & (gt != -2)
        self.windows = counts.nonzero().squeeze(1)
        self.detections_above = torch.nn.functional.pad(counts.long().cumsum(0), (1, 0))
        listed = self.gt[self.windows]
        matched = listed >= 0
        # Where each object's true positive stands; R if no kept window is matched to it.
        self.tp_of = torch.full((self.num_objects,), self.size, device=gt.device)
        self.tp_of.scatter_reduce_(0, listed[matched], self.windows[matched], "amin")
        self._listed_for = RaggedIndex(listed[matched], self.windows[matched], self.num_objects)
        is_tp = matched.clone()
        is_tp[matched] = self.tp_of[listed[matched]] == self.windows[matched]
        self.tps, self.fps = self.windows[is_tp], self.windows[~is_tp]
        self.num_tp = len(self.tps)
        numbers = torch.arange(self.num_tp, device=gt.device)
        self._fps_above = self.detections_above[self.tps] - numbers
        steps = first_steps(listed, is_tp, self.weights[: self.num_tp])
        self.value = steps.value
        self.up = self._by_window(steps.up_value, steps.up_partner)
        self.down = self._by_window(steps.down_value, steps.down_partner)
        gaps = torch.arange(self.num_tp + 1, device=gt.device)
        fps = self._fps_above.expand(len(gaps), -1)
        self._gap_up = self._rise(fps, self.tps.expand(len(gaps), -1), gaps, torch.zeros_like(gaps))

    def _by_window(
        self, value: torch.Tensor, partner: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the list's steps, by rank (R,): value and the rank of the window passed."""
        values = torch.full((self.size,), float("nan"), dtype=torch.float64, device=value.device)
        values[self.windows] = value
        partners = torch.full((self.size,), -1, device=value.device)
        has_partner = partner >= 0
        partners[self.windows[has_partner]] = self.windows[partner[has_partner]]
        return values, partners

    def apply(self, edits: Edits, movers: torch.Tensor, places: torch.Tensor) -> Outcome:
        """
        Each row's edits on their own.

        Args:
            edits: rows 0..B-1. movers: (B,) int64, the window whose way up from its place is asked
                for; it is among the added ones. places: (B,) int64.
        """
        num_rows = len(movers)
        outcome = Outcome(
            self.value.expand(num_rows).clone(),
            torch.full((num_rows,), float("nan"), dtype=torch.float64, device=movers.device),
            torch.full_like(movers, -1),
        )
        by_row = torch.argsort(edits.row, stable=True)
        edits = Edits(*(part[by_row] for part in edits))
        is_general = torch.zeros(num_rows, dtype=torch.bool, device=movers.device)
        is_general[edits.row[self.gt[edits.window] >= 0]] = True
        for is_chosen, work in ((is_general, self._apply_any), (~is_general, self._apply_plain)):
            chosen = is_chosen.nonzero().squeeze(1)
            some = edits.of_rows(chosen, num_rows)
            size = max(1, _CHUNK // (self.num_objects + 1))
            for start in range(0, len(chosen), size):
                rows = chosen[start : start + size]
                ends = torch.tensor([start, start + len(rows)], device=movers.device)
                first, last = torch.searchsorted(some.row, ends).tolist()
                part = Edits(*(column[first:last] for column in some))
                part = part._replace(row=part.row - start)
                for to, result in zip(outcome, work(part, movers[rows], places[rows]), strict=True):
                    to[rows] = result
        return outcome

    def _apply_plain(self, edits: Edits, movers: torch.Tensor, places: torch.Tensor) -> Outcome:
        """Edits of windows that are matched to no object: true positives stay where they are."""
        gaps = torch.searchsorted(self.tps, edits.place)
        change = torch.zeros(
            len(movers) * (self.num_tp + 1), dtype=torch.int64, device=places.device
        )
        change.index_add_(0, edits.row * (self.num_tp + 1) + gaps, self._counts(edits))
        change = change.view(len(movers), -1).cumsum(1)[:, :-1]
        gap = torch.searchsorted(self.tps, places)
        value, (up_value, up_partner) = self.value.expand(len(movers)), self._gap_up
        is_false = self.gt[movers] == -1
        outcome = Outcome(
            value.clone(),
            torch.where(is_false, up_value[gap], float("nan")),
            torch.where(is_false, up_partner[gap], -1),
        )
        changed = (change != 0).any(1).nonzero().squeeze(1)
        if len(changed):
            fps = self._fps_above + change[changed]
            tps = self.tps.expand(len(changed), -1)
            new = self._outcome(fps, tps, movers[changed], gap[changed], None)
            for to, result in zip(outcome, new, strict=True):
                to[changed] = result
        return outcome

    def _apply_any(self, edits: Edits, movers: torch.Tensor, places: torch.Tensor) -> Outcome:
        """Edits that may change which window is an object's true positive."""
        tp_of = self._edited_tps(edits, len(movers))
        above = self.detections_above[tp_of]
        count = self._counts(edits)[:, None] * (edits.place[:, None] < tp_of[edits.row])
        above = above.index_add(0, edits.row, count)
        tps, order = tp_of.sort(dim=1)
        fps = above.gather(1, order) - torch.arange(self.num_objects, device=tps.device)
        fps = torch.where(tps < self.size, fps, 0)
        gap = (tps < places[:, None]).sum(1)
        gt = self.gt[movers]
        own = tp_of.gather(1, gt.clamp(min=0)[:, None])
        own_index = torch.where(gt >= 0, (tps <= own).sum(1), 0)
        return self._outcome(fps, tps, movers, gap, own_index)

    def _edited_tps(self, edits: Edits, num_rows: int) -> torch.Tensor:
        """(B, G) where each object's true positive stands then, R if there is none."""
        tp_of = self.tp_of.repeat(num_rows)
        gt = self.gt[edits.window]
        removed = ~edits.is_added
        loses = removed & (gt >= 0)
        loses[loses.clone()] = self.tp_of[gt[loses]] == edits.window[loses]
        cells = edits.row[loses] * self.num_objects + gt[loses]
        tp_of[cells] = self.size
        # The next kept match of the object takes over, unless it is removed too.
        source, heir = self._listed_for.expand(gt[loses])
        keys = edits.row[loses][source] * self.size + heir
        gone = (edits.row * self.size + edits.window)[removed].sort().values
        stays = ~isin_sorted(keys, gone)
        tp_of.scatter_reduce_(0, cells[source[stays]], heir[stays], "amin")
        gains = edits.is_added & (gt >= 0)
        cells = edits.row[gains] * self.num_objects + gt[gains]
        tp_of.scatter_reduce_(0, cells, edits.place[gains], "amin")
        return tp_of.view(num_rows, self.num_objects)

    def _counts(self, edits: Edits) -> torch.Tensor:
        """(C,) what each entry adds to the number of detections: 1, -1, or 0 if it is ignored."""
        sign = edits.is_added.long() * 2 - 1
        return torch.where(self.gt[edits.window] == -2, 0, sign)

    def _outcome(
        self,
        fps: torch.Tensor,
        tps: torch.Tensor,
        movers: torch.Tensor,
        gap: torch.Tensor,
        own_index: torch.Tensor | None,
    ) -> Outcome:
        """
        Args:
            fps, tps: (B, M) false positives above each true positive, and its place, by place; the
                place is R in the padding. gap: (B,) true positives above the mover. own_index: (B,)
                true positive of the mover's object, from 1, or 0 for none.
        """
        own_index = torch.zeros_like(gap) if own_index is None else own_index
        num_tp = (tps < self.size).sum(1)
        value = PrecisionEnvelope(fps, num_tp, self.weights[: fps.shape[1]]).ap
        up_value = torch.full_like(value, float("nan"))
        up_partner = torch.full_like(gap, -1)
        # Where AP has changed already the step is at the place itself.
        asks = ((value - self.value).abs() <= VALUE_TOLERANCE) & (self.gt[movers] != -2)
        rows = asks.nonzero().squeeze(1)
        if len(rows):
            up_value[rows], up_partner[rows] = self._rise(
                fps[rows], tps[rows], gap[rows], own_index[rows]
            )
        return Outcome(value, up_value, up_partner)

    def _rise(
        self, fps: torch.Tensor, tps: torch.Tensor, gap: torch.Tensor, own_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and window passed at the first step of the mover on its way up."""
        if not fps.shape[1]:
            nan = torch.full(gap.shape, float("nan"), dtype=torch.float64, device=gap.device)
            return nan, torch.full_like(gap, -1)
        curves = PrecisionEnvelope(fps, (tps < self.size).sum(1), self.weights[: fps.shape[1]])
        as_fp = curves.raise_fp(gap)
        as_tp = curves.raise_tp(own_index)
        # A match below its object's true positive rises as a false one until it passes that.
        is_tp = (own_index > gap) | ((own_index > 0) & (as_fp.passed <= own_index))
        fp_partner = tps.gather(1, (as_fp.passed - 1).clamp(min=0)[:, None]).squeeze(1)
        tp_partner = as_tp.passed.clamp(0, max(len(self.fps) - 1, 0))
        if len(self.fps):
            tp_partner = self.fps[tp_partner]
        found = torch.where(is_tp, as_tp.found, as_fp.found)
        value = torch.where(is_tp, as_tp.value, as_fp.value)
        partner = torch.where(is_tp, tp_partner, fp_partner)
        return torch.where(found, value, float("nan")), torch.where(found, partner, -1)


def _compact(gt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The objects named (G,), and gt with these numbered from 0."""
    objects, inverse = gt[gt >= 0].unique(return_inverse=True)
    compact = gt.clone()
    compact[gt >= 0] = inverse
    return objects, compact
