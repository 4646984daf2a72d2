# SPDX-License-Identifier: Apache-2.0
"""
Objects that are detected more than once.

Shape letter: D detections of a class.
"""

from collections.abc import Sequence

import torch

from maploss.layers.box_iou import paired_iou

from .detection_ap import ClassResult, Detections

DUPLICATE_IOU = 0.5


def count_duplicates(detections: Detections, results: Sequence[ClassResult]) -> list[int]:
    """
    How many detections of each class say once more what a better one says.

    Those are counted that a user would see, with a score of at least `best_f1_thresh`, the
    operating point of the class. Such a detection is a duplicate if a better one of its class is
    over the same object and their boxes overlap by more than IoU .5. Over an object is what
    overlaps it by more than IoU .5, and no other object of the class more. Difficult objects do
    not count. Of equal scores the first is better.

    Args:
        detections: all.
        results: of each class, as :func:`evaluate_detections` returns them.

    Returns:
        Of each class; 0 for one without an operating point, no detection of which is right.
    """
    return [_count(detections, result) for result in results]


def _count(detections: Detections, result: ClassResult) -> int:
    is_shown = (result.scores >= result.best_f1_thresh) & ~result.is_ignored
    is_shown &= result.matched_object >= 0
    objects = result.matched_object[is_shown]
    boxes = detections.boxes[result.inds[is_shown]].double()
    # Detections are in order, so the better ones of an object come first.
    order = torch.argsort(objects, stable=True)
    _, counts = objects.unique(return_counts=True)  # sorted by object
    return sum(_repeated(group) for group in boxes[order].split(counts.tolist()) if len(group) > 1)


def _repeated(boxes: torch.Tensor) -> int:
    """How many of (D, 4) boxes over one object, best first, overlap a better one."""
    overlaps = paired_iou(boxes[:, None], boxes) > DUPLICATE_IOU
    return int(overlaps.tril(diagonal=-1).any(dim=1).sum())
