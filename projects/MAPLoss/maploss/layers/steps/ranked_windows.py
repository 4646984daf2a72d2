# SPDX-License-Identifier: Apache-2.0
"""
The windows of all classes in one list, and their nearest steps at all overlaps.

Shape letters: n windows of all P classes and all images, T overlaps with objects, E pairs.
"""

from typing import NamedTuple

import torch

from .steps import Steps


class RankedWindows(NamedTuple):
    """
    All windows, class by class, by falling score, ties in input order, and what NMS did to them.

    A window goes by its position in this order. Detections that overlap nothing here, as those of
    other processes, are kept windows in images of their own.

    classes: (n,) int64 in [0, P), not falling. image_ids: (n,) int64. boxes: (n, 4) float32, XYXY.
    is_kept: (n,) bool. suppressor: (n,) int64, the best-scored kept window that overlaps a
    suppressed one, -1 for kept windows. higher, lower: (E,) int64, the overlapping pairs of one
    class and image of which at least one is kept, higher < lower. limit: the float32 number that an
    IoU must exceed. gt: (T, n) int64, the object matched, -1 for none, -2 for a difficult one;
    objects of different classes differ; what changes with the overlaps, which rise, is only that
    a window matched before is matched no longer. num_gt: (P,) int64, objects of each class without
    the difficult ones.
    """

    classes: torch.Tensor
    image_ids: torch.Tensor
    boxes: torch.Tensor
    is_kept: torch.Tensor
    suppressor: torch.Tensor
    higher: torch.Tensor
    lower: torch.Tensor
    limit: float
    gt: torch.Tensor
    num_gt: torch.Tensor

    @classmethod
    def without_pairs(
        cls,
        classes: torch.Tensor,
        is_kept: torch.Tensor,
        gt: torch.Tensor,
        num_gt: torch.Tensor,
    ) -> "RankedWindows":
        """Where nobody asks what NMS would do next: no window overlaps another."""
        no_pair = classes.new_zeros(0)
        return cls(
            classes=classes,
            image_ids=torch.zeros_like(classes),
            boxes=torch.zeros((len(classes), 4), device=classes.device),
            is_kept=is_kept,
            suppressor=torch.full_like(classes, -1),
            higher=no_pair,
            lower=no_pair,
            limit=1.0,
            gt=gt,
            num_gt=num_gt,
        )


class RankedSteps(NamedTuple):
    """
    AP of each class at each overlap, and its nearest steps above and below each window's score.

    value: (T, P) float64, nan for a class without objects. up_value, down_value: (T, n) float64, AP
    just beyond, nan where there is no step. up_partner, down_partner: (T, n) int64, position of the
    window passed there, -1 for none.
    """

    value: torch.Tensor
    up_value: torch.Tensor
    up_partner: torch.Tensor
    down_value: torch.Tensor
    down_partner: torch.Tensor

    @classmethod
    def none(cls, windows: RankedWindows) -> "RankedSteps":
        """No step anywhere, and an AP of 0 where there are objects."""
        nan = windows.gt.new_full(windows.gt.shape, float("nan"), dtype=torch.float64)
        value = torch.where(windows.num_gt == 0, float("nan"), nan.new_zeros(()))
        no_partner = torch.full_like(windows.gt, -1)
        value = value.expand(len(windows.gt), -1)
        return cls(value, nan, no_partner, nan.clone(), no_partner.clone())

    def of_input(self, order: torch.Tensor, scores: torch.Tensor) -> Steps:
        """
        Those of one class at one overlap in the order of the input.

        Args:
            order: (D,) int64, index in the input of the window at each position.
            scores: (D,) in the order of the input.
        """
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order), device=order.device)
        columns = []
        for value, partner in (
            (self.up_value[0], self.up_partner[0]),
            (self.down_value[0], self.down_partner[0]),
        ):
            partner = partner[position]
            is_step = partner >= 0
            passed = torch.where(is_step, order[partner.clamp(min=0)], -1)
            at = torch.where(is_step, scores[passed], float("nan"))
            columns.append((at, value[position], passed))
        (up_at, up_value, up_partner), (down_at, down_value, down_partner) = columns
        return Steps(
            self.value[0, 0], up_at, up_value, down_at, down_value, up_partner, down_partner
        )
