# SPDX-License-Identifier: Apache-2.0
"""
What is watched of :class:`maploss.layers.MAPLossStats`, in one place while that changes.

Shape letters: T overlaps, K classes, D detections of one class.
"""

import torch

from ..layers import MAPLossStats


def class_detections(stats: MAPLossStats, c: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Of a class with an object: scores (D,), matched_gt (D,) and its number of objects."""
    has_method = hasattr(stats, "class_detections")
    found = stats.class_detections(c) if has_method else stats.curves[c]
    return found.scores, found.matched_gt, found.num_gt


def overlap_ap(stats: MAPLossStats) -> torch.Tensor:
    """(T, K) AP of each overlap and class, nan for a class without an object."""
    return getattr(stats, "ap", stats.ap_per_class[None])


def seconds(stats: MAPLossStats) -> dict[str, float]:
    """What each part of the ranking has taken; on CUDA asking waits for the device."""
    return stats.seconds() if callable(stats.seconds) else stats.seconds
