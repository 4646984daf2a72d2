# SPDX-License-Identifier: Apache-2.0
"""
What may be detected in a minibatch, and what is to be.

Shape letters: R windows of N images, K classes, P of them ranked, G objects.
"""

from typing import NamedTuple

import torch

from ..nms import Overlaps, keep_by_batched_nms, keep_by_rounds, overlaps_of_groups


class Windows(NamedTuple):
    """
    What may be detected.

    Args:
        scores: (R, K), without a graph.
        boxes: (R, 4) or (R, K, 4) XYXY in pixels.
        image_ids: (R,) int64.
    """

    scores: torch.Tensor
    boxes: torch.Tensor
    image_ids: torch.Tensor


class Objects(NamedTuple):
    """
    What is to be detected.

    Args:
        boxes: (G, 4) XYXY in pixels.
        classes: (G,) int64 in [0, K).
        image_ids: (G,) int64.
        is_difficult: (G,) bool.
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    image_ids: torch.Tensor
    is_difficult: torch.Tensor


class Cells(NamedTuple):
    """
    Each window as each class that is ranked, window by window: a cell of scores.

    Args:
        scores: (R, P).
        boxes: (R, 4), or (R P, 4) where each class has boxes of its own.
        images: (R,) int64 in [0, N).
        num_images: N.
    """

    scores: torch.Tensor
    boxes: torch.Tensor
    images: torch.Tensor
    num_images: int

    @classmethod
    def of(
        cls, windows: Windows, images: torch.Tensor, num_images: int, ranked: torch.Tensor
    ) -> "Cells":
        """Of the classes `ranked` (P,)."""
        is_shared = windows.boxes.dim() == 2
        boxes = windows.boxes if is_shared else windows.boxes[:, ranked].flatten(0, 1)
        return cls(windows.scores[:, ranked], boxes, images, num_images)

    @property
    def is_shared(self) -> bool:
        """All classes have the same boxes."""
        return len(self.boxes) == len(self.scores)

    @property
    def groups(self) -> torch.Tensor:
        """(R P,) int64 in [0, N P), windows that may suppress each other."""
        num_classes = self.scores.shape[1]
        classes = torch.arange(num_classes, device=self.images.device)
        return (self.images[:, None] * num_classes + classes).flatten()

    @property
    def images_of_cells(self) -> torch.Tensor:
        """(R P,)."""
        return self.images[:, None].expand(self.scores.shape).flatten()

    @property
    def boxes_of_cells(self) -> torch.Tensor:
        """(R P, 4)."""
        if not self.is_shared:
            return self.boxes
        return self.boxes[:, None].expand(*self.scores.shape, 4).flatten(0, 1)

    @property
    def scores_of_boxes(self) -> torch.Tensor:
        """(R, P), or (R P, 1) where each class has boxes of its own."""
        return self.scores if self.is_shared else self.scores.view(-1, 1)

    def find_overlaps(self, nms_thresh: float) -> Overlaps:
        """Of the boxes."""
        if self.is_shared:
            return overlaps_of_groups(self.boxes, self.images, self.num_images, nms_thresh)
        num_groups = self.num_images * self.scores.shape[1]
        return overlaps_of_groups(self.boxes, self.groups, num_groups, nms_thresh)

    def suppress(self, overlaps: Overlaps | None, nms_thresh: float) -> torch.Tensor:
        """
        (P R,) bool, which windows NMS keeps in each class, class by class.

        Args:
            overlaps: of :meth:`find_overlaps`; None for `batched_nms`, which works without them.
            nms_thresh: IoU.
        """
        if overlaps is None:
            scores = self.scores.flatten()
            is_kept = keep_by_batched_nms(self.boxes_of_cells, scores, self.groups, nms_thresh)
        else:
            is_kept = keep_by_rounds(overlaps, self.scores_of_boxes)
        return is_kept.view(self.scores.shape).t().flatten()
