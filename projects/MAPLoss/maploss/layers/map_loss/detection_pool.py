# SPDX-License-Identifier: Apache-2.0
"""
Who takes part in the rankings of a minibatch beside its own windows.

Shape letters: R windows, K classes, N processes, E entries of the ranking of one class: what the
processes before this one have detected, the R windows, what the processes after it have detected,
and what is remembered, so that ties go as in one process with the images of all.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist

from .detection_lists import ClassDetections, DetectionLists
from .detection_memory import DetectionMemory
from .distributed import Group, gather_detections, gather_num_gt, sum_pushes


class Entries(NamedTuple):
    """
    The ranking of one class. scores, matched_gt, is_kept: (E,), see :class:`DetectionLists`.

    own: the R windows. others: by process, this one's has no place. remembered: the rest.
    """

    scores: torch.Tensor
    matched_gt: torch.Tensor
    is_kept: torch.Tensor
    own: slice
    others: list[slice]
    remembered: slice

    def is_in(self, part: slice) -> torch.Tensor:
        """(E,) bool."""
        mask = torch.zeros_like(self.is_kept)
        mask[part] = True
        return mask


class RankingContext:
    """
    The other processes of a group, and a memory of earlier minibatches.

    num_gt: (K,) objects of each class, difficult ones left out, of all who take part. listed:
    classes of which the windows have to be listed. num_minibatches: of the memory, and this one.
    """

    def __init__(
        self,
        group: Group | None,
        memory: DetectionMemory | None,
        scores: torch.Tensor,
        num_gt: torch.Tensor,
        num_objects: int,
    ) -> None:
        """
        Args:
            group, memory: None for none. scores: whose dtype and device count. num_gt: (K,) and
            num_objects, with difficult ones: of this process.

        Raises:
            ValueError: the memory is of another number of classes.
        """
        self.group, self.memory = group, memory
        self._scores = scores
        self.rank = dist.get_rank(group) if group is not None else 0
        self._num_gt, self._num_objects = num_gt[None], [num_objects]
        if group is not None:
            self._num_gt, self._num_objects = gather_num_gt(num_gt, num_objects, group)
        # By process: of each class, empty for this one; and what is remembered.
        self._others: list[list[ClassDetections]] = []
        self._counts: list[list[int]] = []
        self._remembered = memory.recall(scores) if memory is not None else None
        self.num_gt = self._num_gt.sum(0)
        if self._remembered is not None:
            if self._remembered.num_gt.shape != num_gt.shape:
                raise ValueError(
                    f"memory: expected detections of {len(num_gt)} classes, got "
                    f"{len(self._remembered.num_gt)}"
                )
            self.num_gt = self.num_gt + self._remembered.num_gt
        self.num_minibatches = 1 + (len(memory) if memory is not None else 0)
        # What is remembered must tell of classes that only later minibatches have.
        is_listed = self.num_gt >= 0 if memory is not None else self.num_gt > 0
        self.listed: list[int] = is_listed.nonzero().squeeze(1).tolist()

    @property
    def is_alone(self) -> bool:
        """The ranking is of this minibatch's own windows and nothing else."""
        return self.group is None and self.memory is None

    def meet(self, classes: dict[int, ClassDetections]) -> None:
        """
        Tells the others of this process's detections, learns of theirs, and remembers all, where
        gradients are enabled: what is only looked at is not remembered.

        Args:
            classes: of those listed.
        """
        nothing = self._scores.new_zeros(0)
        none = (nothing, nothing.long(), nothing.bool())
        parts = [classes.get(c, none) for c in range(len(self.num_gt))]
        own = DetectionLists.of(parts, self._num_gt[self.rank], self._num_objects[self.rank])
        lists = [own]
        if self.group is not None:
            lists = gather_detections(own, self._num_gt, self._num_objects, self.group)
        if self.memory is not None and torch.is_grad_enabled():
            self.memory.remember(DetectionLists.join(lists))
        first_object = own.num_objects
        for i, other in enumerate([*lists, self._remembered]):
            if i == self.rank or other is None:
                self._others.append([none] * len(parts))
            else:
                self._others.append(other.by_class(first_object))
                first_object += other.num_objects
        self._counts = [x.counts for x in lists]

    def entries(
        self, c: int, scores: torch.Tensor, matched_gt: torch.Tensor, is_kept: torch.Tensor
    ) -> Entries:
        """The ranking of class `c`, from what is said of the R windows, (R,) each."""
        parts = [x[c] for x in self._others] or [(scores[:0], matched_gt[:0], is_kept[:0])] * 2
        parts[self.rank] = (scores, matched_gt, is_kept)
        slices, start = [], 0
        for part in parts:
            slices.append(slice(start, start + len(part[0])))
            start = slices[-1].stop
        ranked, matched, kept = (torch.cat(column) for column in zip(*parts, strict=True))
        *processes, remembered = slices
        return Entries(ranked, matched, kept, processes[self.rank], processes, remembered)

    def take_back(self, pushes: dict[int, tuple[Entries, torch.Tensor]]) -> dict[int, torch.Tensor]:
        """
        What the other processes push this one's detections.

        Args:
            pushes: class -> its ranking, and (E,) what this process pushes all who are in it.

        Returns:
            Of each class, for the detections in the order of :meth:`meet`; none without others.
        """
        if self.group is None:
            return {}
        of_processes = []
        for i, counts in enumerate(self._counts):
            total = self._scores.new_zeros(sum(counts))
            if i != self.rank:
                classes = total.split(counts)
                for c, (entries, gradient) in pushes.items():
                    classes[c].copy_(gradient[entries.others[i]])
            of_processes.append(total)
        received = sum_pushes(of_processes, self.rank, self.group)
        classes = received.split(self._counts[self.rank])
        return {c: classes[c] for c in pushes}
