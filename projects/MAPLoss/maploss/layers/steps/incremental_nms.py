# SPDX-License-Identifier: Apache-2.0
"""
How the kept set of NMS changes when one window is raised to the top or taken out.

Four windows of one image in a row, each overlapping its neighbours, by falling score: 0 1 2 3. NMS
keeps 0, drops 1, keeps 2, drops 3. Each window is moved on its own ("row" b moves window b):

- 0 falls below 1, the best window that it alone suppresses: 0 goes and 1 comes. 1 displaces 2,
  which it overlaps. That sets 3 free, which 2 alone suppressed. NMS keeps 1 3.
- 1 rises past 0: it displaces 0 and 2. 3 comes back. NMS keeps 1 3.
- 2 falls below 3: NMS keeps 0 3.
- 3 rises past 2: it displaces 2. 1 still has its suppressor 0. NMS keeps 0 3.

>>> from maploss.layers.steps.ranked_windows import RankedWindows
>>> def of(*numbers): return torch.tensor(numbers)
>>> left = torch.tensor([0.0, 5.0, 10.0, 15.0])
>>> zero = torch.zeros_like(left)
>>> windows = RankedWindows(
...     classes=of(0, 0, 0, 0), image_ids=of(0, 0, 0, 0),
...     boxes=torch.stack([left, zero, left + 10, zero + 10], 1),
...     is_kept=of(True, False, True, False), suppressor=of(-1, 0, -1, 2),
...     higher=of(0, 1, 2), lower=of(1, 2, 3), limit=0.3,
...     gt=of(-1, -1, -1, -1)[None], num_gt=of(1))
>>> nms = IncrementalNMS(windows, torch.ones(4, dtype=torch.bool))
>>> nms.next_best.tolist()  # 4: none
[1, 4, 3, 4]
>>> edits = nms.change()
>>> for row, window, is_added in zip(edits.row, edits.window, edits.is_added):
...     print(f"row {row}:", "add" if is_added else "remove", int(window))
row 0: remove 0
row 0: add 1
row 0: remove 2
row 0: add 3
row 1: remove 0
row 1: remove 2
row 1: add 3
row 2: remove 2
row 2: add 3
row 3: remove 2

Shape letters: n windows of all classes, by position in that order (see RankedWindows), B changes
("rows"), each tried on its own, C entries of all rows together.
"""

from typing import NamedTuple

import torch

from ..box_iou import iou_of_sides
from ..ragged import RaggedIndex, expand_ranges, isin_sorted
from .ranked_windows import RankedWindows

# Windows that may come free, of all changes looked at together: at first, and as they are followed.
_CHUNK = 1 << 19
_PARTS = 4
# A key that stands for nothing; it is sorted behind all others.
_NOTHING = torch.iinfo(torch.int64).max


class Edits(NamedTuple):
    """
    Windows to take from the kept list (`is_added` False) or to put into it, row by row. All (C,).

    row: int64. window: int64. place: int64, position at which it stands in the list: its own, or
    that of the window whose place it takes. is_added: bool.
    """

    row: torch.Tensor
    window: torch.Tensor
    place: torch.Tensor
    is_added: torch.Tensor

    @staticmethod
    def of(row: torch.Tensor, window: torch.Tensor, place: torch.Tensor, is_added: bool) -> "Edits":
        return Edits(row, window, place, torch.full_like(row, is_added, dtype=torch.bool))

    @staticmethod
    def join(*edits: "Edits") -> "Edits":
        """The entries of all; rows keep their numbers."""
        return Edits(*(torch.cat(parts) for parts in zip(*edits, strict=True)))

    def select(self, entries: torch.Tensor) -> "Edits":
        return Edits(*(column[entries] for column in self))


class IncrementalNMS:
    """
    Greedy NMS after one change, worked out from the change alone.

    A newcomer displaces every kept window that it overlaps. Windows all of whose kept suppressors
    are gone, and that overlap nothing newly kept, come back by score; each displaces the lower
    kept windows that it overlaps, which may set others free. Nothing else can change.

    next_best: (n,) int64, the best window that each kept one alone suppresses, n for none.

    Args:
        windows: and what NMS did to them.
        is_followed: (n,) bool; what happens to the other windows changes nothing that is asked for.
    """

    def __init__(self, windows: RankedWindows, is_followed: torch.Tensor) -> None:
        self.size = len(windows.classes)
        self._is_suppressed = ~windows.is_kept
        self._is_followed = is_followed
        self._coordinates, self._limit = windows.boxes.t().contiguous(), windows.limit
        is_suppression = windows.is_kept[windows.higher]
        kept = torch.where(is_suppression, windows.higher, windows.lower)
        beside = torch.where(is_suppression, windows.lower, windows.higher)
        # By the window beside, then by the kept one.
        order = torch.argsort(self._keys(beside, kept))
        kept, beside, is_suppression = kept[order], beside[order], is_suppression[order]
        self._kept_beside = self._table(beside, kept, is_followed[kept])
        self._suppressors_of = self._table(beside, kept, is_suppression)
        is_sole = is_suppression & (self._suppressors_of.counts[beside] == 1)
        self.next_best = torch.full_like(windows.classes, self.size)
        self.next_best.scatter_reduce_(0, kept, torch.where(is_sole, beside, self.size), "amin")
        is_freeable = is_suppression & is_followed[beside]
        self._suppressed_by = self._table(kept, beside, is_freeable)
        is_best = is_freeable & (windows.suppressor[beside] == kept)
        self._best_suppressed_by = self._table(kept, beside, is_best)

    def _table(
        self, keys: torch.Tensor, values: torch.Tensor, is_entry: torch.Tensor
    ) -> RaggedIndex:
        entries = is_entry.nonzero().squeeze(1)
        return RaggedIndex(keys[entries], values[entries], self.size)

    def change(self) -> Edits:
        """
        What NMS keeps less and more after each change; row b moves window b. By row, then place.

        A suppressed window gets the best score of its image; its own entry (its place depends on
        how far it is raised) is left out. A kept one falls below `next_best`, if it has one.
        """
        demoted = ((self.next_best < self.size) & self._is_followed).nonzero().squeeze(1)
        beside = self._kept_beside
        promoted = torch.repeat_interleave(beside.counts, output_size=len(beside.values))
        rows = torch.cat([promoted, demoted])
        removed = self._keys(rows, torch.cat([beside.values, demoted])).sort().values
        rows, displaced = self._split(removed)
        # What may come free, row by row, so that dense windows do not take all memory at once.
        cost = torch.zeros_like(self.next_best)
        cost.index_add_(0, rows, self._best_suppressed_by.counts[displaced])
        cost = cost.cumsum(0)
        limits = torch.arange(1, 1 + int(cost[-1]) // _CHUNK, device=cost.device) * _CHUNK
        bounds = torch.searchsorted(removed, torch.searchsorted(cost, limits) * self.size).tolist()
        parts = [
            removed[start:stop]
            for start, stop in zip([0, *bounds], [*bounds, len(removed)], strict=True)
        ]
        done = torch.cat(
            [
                keys
                for first in range(0, len(parts), _PARTS)
                for keys in self._settle(parts[first : first + _PARTS])
            ]
        )
        done = done[(done != _NOTHING).nonzero().squeeze(1)]
        row, is_added, window = self._read(done)
        order = torch.argsort(self._keys(row, window))
        return Edits(row, window, window, is_added).select(order)

    def _settle(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """
        The history of all rows, in pieces: marks of what is removed and what is added.

        Args:
            parts: keys of what the changes displace at once, rising.
        """
        # All go at once, so that a window that comes free is found where its best suppressor goes.
        waiting = torch.cat([self._freed_at_first(part) for part in parts]).sort().values
        rows, displaced = self._split(torch.cat(parts))
        history, done = self._marks(rows, displaced, False), []
        while len(waiting):
            # The best free window of each row is kept for certain: all above it is settled.
            rows, windows = self._split(waiting)
            is_first = _differs_from_previous(rows)
            first = is_first.nonzero().squeeze(1)
            kept_rows, kept = rows[first], windows[first]
            rest = ~is_first & ~self._overlap(windows, kept[is_first.cumsum(0) - 1])
            source, displaced = self._kept_beside.expand(kept)
            rows = kept_rows[source]
            marks = self._marks(rows, displaced, False)
            is_lost = (displaced > kept[source]) & ~isin_sorted(marks, history)
            lost = torch.where(is_lost, marks, _NOTHING)
            history = torch.cat([history, self._marks(kept_rows, kept, True), lost]).sort().values
            found = self._freed(self._suppressed_by, rows, displaced, is_lost, history)
            waiting = torch.cat([torch.where(rest, waiting, _NOTHING), found]).sort().values
            is_new = _differs_from_previous(waiting) & (waiting != _NOTHING)
            waiting = waiting[is_new.nonzero().squeeze(1)]
            history, finished = self._part(history, waiting)
            done.append(finished)
        return [*done, history]

    def _part(
        self, history: torch.Tensor, waiting: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Marks of the rows that wait for something, and those of the others."""
        is_open = torch.zeros(self.size + 1, dtype=torch.bool, device=history.device)
        is_open[self._split(waiting)[0]] = True
        row = history.div(2 * self.size, rounding_mode="floor").clamp(max=self.size)
        is_active = is_open[row]
        finished = torch.where(is_active, _NOTHING, history)
        return history[is_active.nonzero().squeeze(1)], finished

    def _freed_at_first(self, removed: torch.Tensor) -> torch.Tensor:
        """Keys of the windows that nothing suppresses any more now that `removed` (keys) is."""
        rows, displaced = self._split(removed)
        history = self._marks(rows, displaced, False)
        found = self._freed(self._best_suppressed_by, rows, displaced, None, history)
        return found[(found != _NOTHING).nonzero().squeeze(1)]

    def _freed(
        self,
        suppressed_by: RaggedIndex,
        rows: torch.Tensor,
        displaced: torch.Tensor,
        is_lost: torch.Tensor | None,
        history: torch.Tensor,
    ) -> torch.Tensor:
        """
        Keys of what comes free, in any order, `_NOTHING` among them.

        Args:
            suppressed_by: where to look.
            rows: (B,) which lose kept windows.
            displaced: (B,) these windows.
            is_lost: (B,) bool, which of them count. None: all, and nothing has been added yet.
            history: marks of all that has changed in these rows.
        """
        source, windows = suppressed_by.expand(displaced, is_lost)
        rows = rows[source]
        # What the newcomer overlaps is suppressed by it; the window that falls is in nobody's way.
        is_hidden = self._is_suppressed[rows] & self._overlap(windows, rows)
        is_free = (windows != rows) & ~is_hidden
        # All kept suppressors must be gone; the one just lost is.
        asked = is_free & (self._suppressors_of.counts[windows] > 1)
        source, suppressor = self._suppressors_of.expand(windows, asked)
        remains = ~isin_sorted(self._marks(rows[source], suppressor, False), history)
        obstacles = torch.zeros_like(windows).index_add_(0, source, remains.long())
        if is_lost is not None:
            first = self._marks(rows, torch.zeros_like(rows), True)
            start = torch.searchsorted(history, first)
            stop = torch.searchsorted(history, first + self.size)
            source, mark = expand_ranges(start, (stop - start) * is_free)
            above = history[mark] - first[source]
            obstacles.index_add_(0, source, self._overlap(windows[source], above).long())
        return torch.where(is_free & (obstacles == 0), self._keys(rows, windows), _NOTHING)

    def _overlap(self, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """(B,) bool, whether windows i and j (B,) of one image overlap, as NMS sees it."""
        sides = (self._coordinates.index_select(1, x).unbind(0) for x in (i, j))
        return iou_of_sides(*sides) > self._limit

    def _keys(self, rows: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """A row and a window in one number, sorted by row, then window."""
        return rows * self.size + windows

    def _split(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = keys.div(self.size, rounding_mode="floor")
        return rows, keys - rows * self.size

    def _marks(self, rows: torch.Tensor, windows: torch.Tensor, is_added: bool) -> torch.Tensor:
        """A key of the history: of each row, what is removed comes first, then what is added."""
        return (2 * rows + int(is_added)) * self.size + windows

    def _read(self, marks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row, whether it is added, and window of each mark."""
        number, window = self._split(marks)
        return number.div(2, rounding_mode="floor"), number % 2 == 1, window


def _differs_from_previous(x: torch.Tensor) -> torch.Tensor:
    """(B,) bool, whether an entry of x (B,) is another than the one before; the first is."""
    differs = torch.ones_like(x, dtype=torch.bool)
    differs[1:] = x[1:] != x[:-1]
    return differs
