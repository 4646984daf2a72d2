# SPDX-License-Identifier: Apache-2.0
"""
AP after NMS and its nearest steps the slow way: from the definitions alone, without torch.

Detections and windows go by their index; a list of them is in order of falling score.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-12


class Step(NamedTuple):
    """Where f first changes: score and index of the coordinate passed (-1: never), f beyond."""

    at: float = float("nan")
    value: float = float("nan")
    partner: int = -1


def average_precision(
    order: Sequence[int], matched_gt: Sequence[int], num_gt: int, ap_type: str
) -> float:
    """The mean over recall levels of the best precision at that recall or a higher one."""
    points, found, tp, fp = [], set(), 0, 0
    for i in order:
        gt = matched_gt[i]
        if gt == -2:
            continue
        if gt >= 0 and gt not in found:
            found.add(gt)
            tp += 1
        else:
            fp += 1
        points.append((tp, tp / (tp + fp)))
    # Recall is tp / num_gt; a level i / n is reached if tp * n >= i * num_gt, in integers.
    first, n = {"area": (1, num_gt), "voc07": (0, 10), "coco101": (0, 100)}[ap_type]
    total = 0.0
    if ap_type == "coco101":  # in floating point, as pycocotools does
        levels = np.linspace(0, 1, 101)
        return (
            sum(max((p for t, p in points if t / num_gt >= x), default=0.0) for x in levels) / 101
        )
    for i in range(first, n + 1):
        total += max((p for t, p in points if t * n >= i * num_gt), default=0.0)
    return total / (n + 1 - first)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of continuous boxes (4,), no +1."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return float(inter / union) if union > 0 else 0.0


def overlap_masks(boxes: np.ndarray, image_ids: np.ndarray, thresh: float) -> list[int]:
    """For each window the set of those of its image with IoU > thresh, as the bits of a number."""
    count = len(boxes)
    return [
        sum(
            1 << j
            for j in range(count)
            if image_ids[i] == image_ids[j] and iou(boxes[i], boxes[j]) > thresh
        )
        for i in range(count)
    ]


def greedy_nms(order: Sequence[int], overlaps: list[int]) -> list[int]:
    """The windows kept, in order."""
    kept, mask = [], 0
    for i in order:
        if not overlaps[i] & mask:
            kept.append(i)
            mask |= 1 << i
    return kept


def nearest_steps(
    f: Callable[[list[int]], float], scores: np.ndarray
) -> tuple[float, list[tuple[Step, Step]]]:
    """
    f now, and for each coordinate its first step on the way up and on the way down.

    f takes the indices by falling score; ties keep their order.
    """
    order = [int(i) for i in np.argsort(-scores, kind="stable")]
    value = f(order)
    steps = []
    for i in range(len(scores)):
        at = order.index(i)
        rest = order[:at] + order[at + 1 :]
        both = []
        for places, passed in ((range(at - 1, -1, -1), 0), (range(at + 1, len(order)), -1)):
            found = Step()
            for place in places:
                new = f([*rest[:place], i, *rest[place:]])
                if abs(new - value) > TOLERANCE:
                    partner = rest[place + passed]
                    found = Step(float(scores[partner]), new, partner)
                    break
            both.append(found)
        steps.append((both[0], both[1]))
    return value, steps
