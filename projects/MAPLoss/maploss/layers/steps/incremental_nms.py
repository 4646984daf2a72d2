# SPDX-License-Identifier: Apache-2.0
"""
How the kept set of NMS changes when one window is raised to the top or taken out.

Windows go by their rank here (0 for the best score), so that sorted numbers are sorted by score.
Shape letters: R windows, B changes ("rows"), each tried on its own, C entries of all rows together.
"""

from typing import NamedTuple

import torch

from ..nms import NMSRecord, Overlaps
from ..ragged import RaggedIndex, isin_sorted

# Windows that may come free, of all changes looked at together.
_CHUNK = 1 << 20


class Edits(NamedTuple):
    """
    Windows to take from the kept list (`is_added` False) or to put into it, row by row. All (C,).

    row: int64. window: int64, rank of the window. place: int64, rank at which it stands in the
    list: its own, or that of the window whose place it takes. is_added: bool.
    """

    row: torch.Tensor
    window: torch.Tensor
    place: torch.Tensor
    is_added: torch.Tensor

    @staticmethod
    def of(row: torch.Tensor, window: torch.Tensor, place: torch.Tensor, is_added: bool) -> "Edits":
        return Edits(row, window, place, torch.full_like(row, is_added, dtype=torch.bool))

    def of_rows(self, rows: torch.Tensor, num_rows: int) -> "Edits":
        """The entries of `rows` (B,), numbered anew, out of `num_rows`."""
        number = torch.full((num_rows,), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        row = number[self.row]
        mine = row >= 0
        return Edits(row[mine], self.window[mine], self.place[mine], self.is_added[mine])

    @staticmethod
    def join(*edits: "Edits") -> "Edits":
        """The entries of all; rows keep their numbers."""
        return Edits(*(torch.cat(parts) for parts in zip(*edits, strict=True)))


def swap(taken: torch.Tensor, put: torch.Tensor, place: torch.Tensor) -> Edits:
    """Row b takes window taken[b] out of the list and puts put[b] in at place[b]. All (B,)."""
    rows = torch.arange(len(taken), device=taken.device)
    return Edits.join(Edits.of(rows, taken, taken, False), Edits.of(rows, put, place, True))


class IncrementalNMS:
    """
    Greedy NMS after one change, worked out from the change alone.

    A newcomer displaces every kept window that it overlaps. Windows all of whose kept suppressors
    are gone, and that overlap nothing newly kept, come back by score; each displaces the lower
    kept windows that it overlaps, which may set others free. Nothing else can change.

    Args:
        record, overlaps: of the present scores. is_followed: (R,) bool by rank; what happens to the
            other windows changes nothing that is asked for.
    """

    def __init__(self, record: NMSRecord, overlaps: Overlaps, is_followed: torch.Tensor) -> None:
        rank = record.rank
        self.size = len(rank)
        by_rank = torch.empty_like(rank)
        by_rank[rank] = torch.arange(self.size, device=rank.device)
        self._overlaps = overlaps._replace(boxes=overlaps.boxes[by_rank])
        higher, lower = rank[record.higher], rank[record.lower]
        is_kept = record.is_kept[by_rank]
        is_suppression = is_kept[higher]
        suppressor, suppressed = higher[is_suppression], lower[is_suppression]
        self._suppressors_of = RaggedIndex(suppressed, suppressor, self.size)
        is_sole = self._suppressors_of.counts[suppressed] == 1
        # The best window that each kept one alone suppresses, R for none.
        self.heir = torch.full_like(rank, self.size)
        self.heir.scatter_reduce_(0, suppressor[is_sole], suppressed[is_sole], "amin")
        followed = is_followed[suppressed]
        self._suppressed_by = RaggedIndex(suppressor[followed], suppressed[followed], self.size)
        best = record.suppressor[by_rank[suppressed]]
        followed = followed & (rank[best] == suppressor)
        self._best_suppressed_by = RaggedIndex(
            suppressor[followed], suppressed[followed], self.size
        )
        kept = torch.cat([suppressor, lower[~is_suppression]])
        beside = torch.cat([suppressed, higher[~is_suppression]])
        followed = is_followed[kept]
        self._kept_beside = RaggedIndex(beside[followed], kept[followed], self.size)

    def change(self, risers: torch.Tensor, fallers: torch.Tensor) -> Edits:
        """
        What NMS keeps less and more after each change.

        Rows 0..A-1: the suppressed window risers[a] gets the best score of its image; its own entry
        (its place depends on how far it is raised) is left out. Rows A..A+B-1: the kept window
        fallers[b] is taken out.
        """
        rows, displaced = self._kept_beside.expand(risers)
        removed = torch.arange(len(risers), len(risers) + len(fallers), device=risers.device)
        rows, displaced = torch.cat([rows, removed]), torch.cat([displaced, fallers])
        newcomers = torch.cat([risers, torch.full_like(fallers, -1)])
        # What may come free, row by row, so that dense windows do not take all memory at once.
        cost = torch.zeros_like(newcomers)
        cost.index_add_(0, rows, self._best_suppressed_by.counts[displaced])
        chunk = cost.cumsum(0).div(_CHUNK, rounding_mode="floor")[rows]
        keys = self._keys(rows, displaced)
        parts = [keys[chunk == c] for c in chunk.unique().tolist()]
        return Edits.join(*(self._settle(part, newcomers) for part in parts or [keys]))

    def _settle(self, removed: torch.Tensor, newcomers: torch.Tensor) -> Edits:
        """
        Args:
            removed: keys (row and window in one number) of what the changes displace at once.
            newcomers: (A + B,) window that is kept whatever happens, -1 for none.
        """
        removed = removed.sort().values
        added = removed.new_zeros(0)
        # All go at once, so that a window that comes free is found where its best suppressor goes.
        waiting = self._freed(self._best_suppressed_by, removed, removed, added, newcomers)
        while len(waiting):
            # The best free window of each row is kept for certain: all above it is settled.
            rows, windows = self._split(waiting)
            is_first = torch.ones_like(rows, dtype=torch.bool)
            is_first[1:] = rows[1:] != rows[:-1]
            kept = waiting[is_first]
            added = torch.cat([added, kept])
            kept_rows, kept_windows = self._split(kept)
            beside = kept_windows[is_first.long().cumsum(0) - 1]
            waiting = waiting[~is_first & ~self._overlaps.contains(windows, beside)]
            source, displaced = self._kept_beside.expand(kept_windows)
            is_lower = displaced > kept_windows[source]
            lost = self._keys(kept_rows[source], displaced)[is_lower]
            lost = lost[~isin_sorted(lost, removed)].unique()
            if len(lost):
                removed = torch.cat([removed, lost]).sort().values
                found = self._freed(self._suppressed_by, lost, removed, added, newcomers)
                waiting = torch.cat([waiting, found]).unique()
        edits = []
        for keys, is_added in ((removed, False), (added, True)):
            rows, windows = self._split(keys)
            edits.append(Edits.of(rows, windows, windows, is_added))
        return Edits.join(*edits)

    def _freed(
        self,
        suppressed_by: RaggedIndex,
        lost: torch.Tensor,
        removed: torch.Tensor,
        added: torch.Tensor,
        newcomers: torch.Tensor,
    ) -> torch.Tensor:
        """Sorted keys of the windows that nothing suppresses any more now that `lost` is gone."""
        rows, windows = self._split(lost)
        source, windows = suppressed_by.expand(windows)
        rows = rows[source]
        above = newcomers[rows]
        is_hidden = (above >= 0) & self._overlaps.contains(windows, above)
        is_free = (windows != above) & ~is_hidden
        rows, windows = rows[is_free], windows[is_free]
        # All kept suppressors must be gone; the one just lost is.
        asked = (self._suppressors_of.counts[windows] > 1).nonzero().squeeze(1)
        source, suppressor = self._suppressors_of.expand(windows[asked])
        remains = ~isin_sorted(self._keys(rows[asked[source]], suppressor), removed)
        is_free = torch.ones_like(rows, dtype=torch.bool)
        is_free[asked[source[remains]]] = False
        keys = self._keys(rows[is_free], windows[is_free]).unique()
        if not len(added) or not len(keys):
            return keys
        rows, windows = self._split(keys)
        added_rows, added_windows = self._split(added)
        num_rows = 1 + int(torch.maximum(rows.max(), added_rows.max()))
        source, above = RaggedIndex(added_rows, added_windows, num_rows).expand(rows)
        is_free = torch.ones_like(rows, dtype=torch.bool)
        is_free[source[self._overlaps.contains(windows[source], above)]] = False
        return keys[is_free]

    def _keys(self, rows: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        return rows * self.size + windows

    def _split(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = keys.div(self.size, rounding_mode="floor")
        return rows, keys - rows * self.size
