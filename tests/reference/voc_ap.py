# SPDX-License-Identifier: Apache-2.0
"""
Slow evaluation of one class in NumPy, independent of the package: loops, and inclusive pixels.

Follows the development kit of PASCAL VOC: a detection takes the object that it overlaps most; over
the threshold it is ignored (difficult object), right (first to take it) or wrong (later).
"""

import numpy as np


def inclusive_iou(a, b):
    """IoU of two boxes x1, y1, x2, y2 whose corners are pixels that belong to them."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def judge(detections, objects, iou_thresh=0.5):
    """
    True, False or None (ignored) for each detection by falling score, and the number of objects.

    detections: [(image, score, box)]. objects: {image: [(box, is_difficult)]}. Boxes are inclusive.
    """
    taken = set()
    outcomes = []
    for image, _, box in sorted(detections, key=lambda d: -d[1]):
        best, best_iou = None, -1.0
        for i, (other, _) in enumerate(objects.get(image, [])):
            iou = inclusive_iou(box, other)
            if iou > best_iou:
                best, best_iou = i, iou
        if best is None or best_iou <= iou_thresh:
            outcomes.append(False)
        elif objects[image][best][1]:
            outcomes.append(None)
        else:
            outcomes.append((image, best) not in taken)
            taken.add((image, best))
    num_objects = sum(not difficult for rows in objects.values() for _, difficult in rows)
    return outcomes, num_objects


def voc_ap(detections, objects, ap_type="area", iou_thresh=0.5):
    """AP in [0, 1] by "area", "voc07" or "coco101"; nan without an object that counts."""
    return ap_of(*judge(detections, objects, iou_thresh), ap_type)


def ap_of(outcomes, num_objects, ap_type):
    """AP of True, False or None (ignored) for each detection by falling score."""
    if num_objects == 0:
        return float("nan")
    outcomes = [outcome for outcome in outcomes if outcome is not None]
    tp = np.cumsum(outcomes, dtype=int) if outcomes else np.zeros(0, dtype=int)
    precision = tp / np.arange(1, len(tp) + 1)
    if ap_type == "area":
        ap, found = 0.0, 0
        for rank in range(len(tp)):
            if tp[rank] > found:
                ap += precision[rank:].max() / num_objects
                found = tp[rank]
        return ap
    levels = {"voc07": 10, "coco101": 100}[ap_type]
    total = 0.0
    for level in range(levels + 1):
        reached = tp * levels >= level * num_objects
        if ap_type == "coco101":  # in floating point, as pycocotools does
            reached = tp / num_objects >= np.linspace(0, 1, 101)[level]
        total += precision[reached].max() if reached.any() else 0.0
    return total / (levels + 1)
