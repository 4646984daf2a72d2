# SPDX-License-Identifier: Apache-2.0
"""
The windows that NMS keeps as lists of detections, one for each overlap and class.

Shape letters: T overlaps, P classes, L = T P lists (overlap by overlap), n windows, D kept ones,
W windows that match an object at the lowest overlap, G such objects (and one that none has).
"""

import torch

from ..average_precision import recall_weights_table
from ..match_detections import DIFFICULT
from ..ragged import RaggedIndex
from .ranked_windows import RankedWindows


class DetectionLists:
    """
    Which kept windows are true positives, and how many detections of each kind are above a place.

    Objects are numbered anew, class by class. A "flat" place counts the kept windows of all
    overlaps one after the other, (T D,), so that running sums over it serve all lists.

    Args:
        windows: of all classes.
        ap_type: "area", "voc07" or "coco101".
    """

    def __init__(self, windows: RankedWindows, ap_type: str) -> None:
        self.windows = windows
        self.num_overlaps, self.size = windows.gt.shape
        self.num_classes = len(windows.num_gt)
        self.overlaps = torch.arange(self.num_overlaps, device=windows.gt.device)[:, None]
        self._number_objects()
        self._find_detections()
        self._find_true_positives()
        most = max(1, int(self.num_objects.max()))
        self._weights = recall_weights_table(windows.num_gt, ap_type, most)

    def _number_objects(self) -> None:
        windows, device = self.windows, self.windows.gt.device
        self.matched = (windows.gt[0] >= 0).nonzero().squeeze(1)
        ids, order = windows.gt[0][self.matched].sort(stable=True)
        is_new = torch.ones_like(ids, dtype=torch.bool)
        is_new[1:] = ids[1:] != ids[:-1]
        best = self.matched[order[is_new.nonzero().squeeze(1)]]
        best, by_place = best.sort()
        number = torch.empty_like(by_place)
        number[by_place] = torch.arange(len(by_place), device=device)
        self.object_of = torch.full_like(windows.classes, -1)
        self.object_of[self.matched[order]] = number[is_new.cumsum(0) - 1]
        self._none = len(best)
        self.object_start = torch.searchsorted(
            windows.classes[best], torch.arange(self.num_classes + 1, device=device)
        )
        self.num_objects = self.object_start.diff()

    def _find_detections(self) -> None:
        windows = self.windows
        self.kept = windows.is_kept.nonzero().squeeze(1)
        self.kept_before = _running(windows.is_kept)
        self.counts = (windows.gt[:, self.kept] != DIFFICULT).flatten()
        self._detections = _running(self.counts)
        classes = torch.arange(self.num_classes + 1, device=windows.gt.device)
        self.class_start = torch.searchsorted(windows.classes, classes)
        bounds = self.flat(self.class_start)
        self.list_start, self._list_stop = bounds[:, :-1].flatten(), bounds[:, 1:].flatten()
        first_list = self.overlaps * self.num_classes
        self.kept_lists = (first_list + windows.classes[self.kept]).flatten()
        self.matched_lists = first_list + windows.classes[self.matched]
        self.is_matched = windows.gt[:, self.matched] >= 0
        self.matched_labels = torch.where(self.is_matched, self.object_of[self.matched], self._none)
        self.is_matched_kept = self.is_matched & windows.is_kept[self.matched]
        listed = self.matched[windows.is_kept[self.matched].nonzero().squeeze(1)]
        # The kept windows of each object; whether they match it still depends on the overlap.
        self.listed_for = RaggedIndex(self.object_of[listed], listed, self._none + 1)

    def _find_true_positives(self) -> None:
        num_columns = self._none + 1
        where = torch.where(self.is_matched_kept, self.matched, self.size)
        # (T, G): position of each object's true positive, n if no kept window is matched to it.
        self.tp_of = torch.full(
            (self.num_overlaps, num_columns), self.size, device=self.matched.device
        ).scatter_reduce_(1, self.matched_labels, where, "amin")
        tps, objects = self.tp_of.sort(1)
        is_real = tps < self.size
        found = torch.nn.functional.pad((self.tp_of < self.size).cumsum(1), (1, 0))
        start = found[:, self.object_start]
        self.num_tp = start.diff(dim=1).flatten()
        self._tp_start = (self.overlaps * num_columns + start[:, :-1]).flatten()

        cells = torch.where(is_real, self.flat(tps), len(self.counts))
        is_tp = torch.zeros_like(self._detections, dtype=torch.bool)
        is_tp[cells] = True
        self.tps_before = _running(is_tp[:-1])
        self._fps_before = self._detections - self.tps_before
        self.num_fp = self._fps_before[self._list_stop] - self._fps_before[self.list_start]

        classes = self.windows.classes[tps.clamp(max=self.size - 1)]
        of_list = self.overlaps * self.num_classes + classes
        column = torch.arange(num_columns, device=tps.device)
        index = self.overlaps * num_columns + column - self._tp_start[of_list]
        self._tps = tps.flatten()
        self._fps_above = (self.detections_above(of_list, tps) - index).flatten()
        # (T, G): index of each object's true positive in its list, from 1; 0 for none.
        self.tp_index = torch.zeros_like(tps).scatter_(
            1, objects, torch.where(is_real, index + 1, 0)
        )

    def last_tp(self) -> torch.Tensor:
        """(L,) position of the last true positive of each list, -1 for none."""
        last = self._tps[(self._tp_start + self.num_tp - 1).clamp(min=0)]
        return torch.where(self.num_tp > 0, last, -1)

    def flat(self, places: torch.Tensor) -> torch.Tensor:
        """(T, B) flat places of positions (B,) or (T, B)."""
        return self.overlaps * len(self.kept) + self.kept_before[places]

    def overlap_of(self, lists: torch.Tensor) -> torch.Tensor:
        return lists.div(self.num_classes, rounding_mode="floor")

    def label(self, overlap: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """The object of each window (B,) at each overlap (B,) by its new number, or -1 or -2."""
        gt = self.windows.gt.flatten()[overlap * self.size + windows]
        return torch.where(gt >= 0, self.object_of[windows], gt)

    def detections_above(self, lists: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """How many detections of each list stand above a place; shapes are broadcast."""
        flat = self.overlap_of(lists) * len(self.kept) + self.kept_before[places]
        return self._detections[flat] - self._detections[self.list_start[lists]]

    def true_positives(self, lists: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, width) positions of the true positives, n in the padding, and the fps above each."""
        column = torch.arange(width, device=lists.device)
        is_real = column < self.num_tp[lists][:, None]
        cells = (self._tp_start[lists][:, None] + column).clamp(max=len(self._tps) - 1)
        return (
            torch.where(is_real, self._tps[cells], self.size),
            torch.where(is_real, self._fps_above[cells], 0),
        )

    def false_positive(self, lists: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Position of the false positive `index` (from 0) of each list; shapes are broadcast."""
        wanted = self._fps_before[self.list_start[lists]] + index + 1
        flat = torch.searchsorted(self._fps_before, wanted) - 1
        first = self.overlap_of(lists) * len(self.kept)
        return self.kept[(flat - first).clamp(0, len(self.kept) - 1)]

    def weights_of(self, lists: torch.Tensor, width: int) -> torch.Tensor:
        """(B, width) recall weights."""
        return self._weights[lists % self.num_classes, :width]


def _running(mask: torch.Tensor) -> torch.Tensor:
    """(B + 1,) how many of `mask` (B,) are true before each place."""
    return torch.nn.functional.pad(mask.cumsum(0), (1, 0))
