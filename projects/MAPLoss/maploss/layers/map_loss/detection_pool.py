# SPDX-License-Identifier: Apache-2.0
"""
Who takes part in the rankings of a minibatch beside its own detections.

Shape letters: K classes, P of them ranked, T overlaps, N processes, n detections of this process, m
of all who take part: of process 0, of process 1, .., and what is remembered.
"""

import torch
import torch.distributed as dist

from .detection_memory import DetectionMemory, RememberedMinibatch
from .detections import Detections
from .distributed import (
    Exchange,
    Group,
    all_gather,
    check_alike,
    exchange_detections,
    owners,
    return_gradient,
)
from .settings import MAPLossSettings


class DetectionPool:
    """
    The detections of this process, of the other processes of a group, and of earlier minibatches.

    ranked: (P,) int64, the classes with an object of anyone who takes part; all K with a memory,
    since what is remembered must tell of classes that only later minibatches have, and with pooled
    classes, where false positives of absent ones count too. num_gt: (P,) int64, objects of these,
    difficult ones left out. num_objects: of all. first_object: from where this process's are
    counted. num_minibatches: of the memory, and this one. is_ranked_here: (P,) bool, False for
    classes that another process ranks. own, remembered: where these stand among the m.

    Args:
        group: of processes that call this together; None for this one alone.
        memory: None for none.
        scores: (R, K), whose dtype and device count.
        num_gt: (K,) int64, objects of this process without difficult ones.
        num_objects: of this process, with difficult ones.
        settings: of the loss.

    Raises:
        ValueError: the memory is of another number of classes or of other overlaps, processes
            differ in settings, number of classes, or the scores' dtype.
    """

    def __init__(
        self,
        group: Group | None,
        memory: DetectionMemory | None,
        scores: torch.Tensor,
        num_gt: torch.Tensor,
        num_objects: int,
        settings: MAPLossSettings,
    ) -> None:
        if group is not None:
            check_alike(scores, settings, group)
        if not len(num_gt):  # nothing to rank
            group = memory = None
        self.group, self._memory = group, memory
        self._rank = dist.get_rank(group) if group is not None else 0
        self._iou_threshs = settings.iou_threshs
        # What is remembered, all processes remember. Steps follow from what NMS suppressed, which
        # each process knows of its own windows only.
        self._ranks_candidates = settings.is_made_of_steps
        self.shares_classes = group is not None and memory is None and settings.ranks_by_class
        self._num_objects = [num_objects]
        if group is not None:
            rows = all_gather(torch.cat([num_gt, num_gt.new_tensor([num_objects])]), group)
            self._num_objects = rows[:, -1].tolist()
            num_gt = rows[:, :-1].sum(0)
        self._num_gt = num_gt
        self._earlier = memory.recall(scores, settings.iou_threshs) if memory is not None else None
        self.first_object = sum(self._num_objects[: self._rank])
        self.num_objects = sum(self._num_objects)
        if self._earlier is not None:
            if self._earlier.num_gt.shape != num_gt.shape:
                raise ValueError(
                    f"memory: expected detections of {len(num_gt)} classes, got "
                    f"{len(self._earlier.num_gt)}"
                )
            num_gt = num_gt + self._earlier.num_gt
            self.num_objects += self._earlier.num_objects
        self.num_minibatches = 1 + (len(memory) if memory is not None else 0)
        ranks_all = memory is not None or settings.pooled > 0
        self.ranked = (num_gt >= (0 if ranks_all else 1)).nonzero().squeeze(1)
        self.num_gt = num_gt[self.ranked]
        self.is_ranked_here = torch.ones_like(self.ranked, dtype=torch.bool)
        if group is not None and self.shares_classes:
            self.is_ranked_here = (
                owners(len(self.ranked), group).to(self.ranked.device) == self._rank
            )
        self.own = self.remembered = slice(0, 0)
        self._exchange: Exchange | None = None
        self._shared = self.ranked[:0]
        self._num_candidates = 0

    def gather(self, candidates: Detections, shared: torch.Tensor) -> Detections:
        """
        The m detections that this process ranks. Remembers what was shared by all processes, where
        gradients are enabled: what is only looked at is not remembered.

        Args:
            candidates: classes in [0, P), not falling.
            shared: (n,) int64, which of them the others and the memory get. Steps are those of all
                candidates, and then all of them are ranked here.
        """
        detections = candidates.take(shared)
        self._shared, self._num_candidates = shared, len(candidates.scores)
        lengths = [len(shared)]
        if self.group is not None:
            detections, self._exchange = exchange_detections(
                detections,
                len(self.ranked),
                len(self._iou_threshs),
                self._num_objects,
                self.shares_classes,
                self.group,
            )
            lengths = self._exchange.num_received
        if self._memory is not None and torch.is_grad_enabled():
            now = RememberedMinibatch(
                detections, self._num_gt, sum(self._num_objects), self._iou_threshs
            )
            self._memory.remember(now)
        start = sum(lengths[: self._rank])
        stop = start + lengths[self._rank]
        if self._ranks_candidates:
            own = candidates.shift_objects(self.first_object)
            if self.group is not None:
                others = detections.take(slice(start)), detections.take(slice(stop, None))
                detections = Detections.cat([others[0], own, others[1]])
            else:
                detections = own
            stop = start + len(own.scores)
        self.own, end = slice(start, stop), len(detections.scores)
        if self._earlier is not None:
            earlier = self._earlier.detections.shift_objects(sum(self._num_objects))
            detections = Detections.cat([detections, earlier])
        self.remembered = slice(end, len(detections.scores))
        return detections

    def own_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """(P R, C) of all candidates of this process, from the (m, C) of all that are ranked."""
        own = self._return(gradient) if self.shares_classes else gradient[self.own]
        if self._ranks_candidates:
            return own
        by_candidate = own.new_zeros((self._num_candidates, *own.shape[1:]))
        return by_candidate.index_copy_(0, self._shared, own)

    def candidates_at(self, order: torch.Tensor) -> torch.Tensor:
        """(n,) which candidate of this process each of the m is, of indices (n,); -1 for others."""
        candidates = torch.full_like(order, -1)
        own = torch.arange(self._num_candidates, device=order.device)
        candidates[self.own] = own if self._ranks_candidates else self._shared
        return candidates[order]

    def gradient_of_others(self, gradient: torch.Tensor) -> torch.Tensor:
        """
        (B,) what the other processes say of the detections that were sent to them.

        Args:
            gradient: (m,) what this process says.
        """
        others = [
            gradient[: self.own.start],
            gradient.new_zeros(len(self._shared)),
            gradient[self.own.stop : self.remembered.start],
        ]
        return self._return(torch.cat(others))

    def _return(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.group is None or self._exchange is None:
            raise RuntimeError("own_gradient: expected detections of a group, gathered before")
        return return_gradient(gradient, self._exchange, self.group)

    def sum_ap(self, ap: torch.Tensor) -> torch.Tensor:
        """(T, P) AP of all classes, from that of the classes of which this process has any."""
        if self.shares_classes:
            ap = ap.contiguous()
            # Each class is one process's; without detections it is 0.
            dist.all_reduce(ap, group=self.group)
        return ap
