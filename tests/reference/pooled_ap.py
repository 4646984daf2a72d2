# SPDX-License-Identifier: Apache-2.0
"""
Slow AP of all classes in one list, independent of the package: one loop over all detections.

Goes down the one list and matches on the way, where the package matches class by class first.
"""

from collections import Counter

import numpy as np

from .voc_ap import ap_of


def overlap(box, other, *, of_first=False):
    """IoU of two boxes x1, y1, x2, y2, or the share of the first one that lies in the other."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    inter = max(width, 0) * max(height, 0)
    area, other_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return inter / (area if of_first else area + other_area - inter)


def pooled_ap(detections, objects, ap_type, iou_thresh):
    """
    AP in [0, 1] by "area", "voc07" or "coco101", the last one with COCO's matching.

    detections: [(image, class, score, box)]. objects: [(image, class, box, difficult, crowd)].
    """
    judge = judge_coco if ap_type == "coco101" else judge_voc
    by_score = sorted(detections, key=lambda d: -d[2])
    taken, seen = set(), Counter()
    outcomes = []
    for image, class_id, _, box in by_score:
        mine = [i for i, o in enumerate(objects) if o[:2] == (image, class_id)]
        seen[image, class_id] += 1
        number = seen[image, class_id]
        outcomes.append(judge(box, [(i, *objects[i][2:]) for i in mine], taken, number, iou_thresh))
    return ap_of(outcomes, sum(not (o[3] or o[4]) for o in objects), ap_type)


def judge_voc(box, objects, taken, number, iou_thresh):
    """True, False or None (ignored); the object overlapped most, taken or not."""
    ordinary = [o for o in objects if not o[3]]
    ious = [overlap(box, o[1]) for o in ordinary]
    if ious and max(ious) > iou_thresh:
        index, _, difficult, _ = ordinary[int(np.argmax(ious))]
        is_first = index not in taken
        taken.add(index)
        return None if difficult else is_first
    in_crowd = any(o[3] and overlap(box, o[1], of_first=True) > iou_thresh for o in objects)
    return None if in_crowd else False


def judge_coco(box, objects, taken, number, iou_thresh):
    """The same: the best object that is free, those that count first; 100 of image and class."""
    if number > 100:
        return None
    best = {}
    for index, other, difficult, crowd in objects:
        share = overlap(box, other, of_first=crowd)
        if share >= iou_thresh and (crowd or index not in taken):
            is_ignored = difficult or crowd
            # Of equal ones the last.
            if is_ignored not in best or share >= best[is_ignored][0]:
                best[is_ignored] = share, index
    if not best:
        return False
    is_ignored = min(best)
    taken.add(best[is_ignored][1])
    return None if is_ignored else True
