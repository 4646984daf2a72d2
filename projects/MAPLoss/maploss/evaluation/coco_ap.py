# SPDX-License-Identifier: Apache-2.0
"""COCO's own numbers, by pycocotools."""

import contextlib
import io

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco_matching import MAX_DETECTIONS
from .detection_ap import Detections, Objects

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Larger than any range of areas that COCO evaluates: an object so large is ignored.
_IGNORED_AREA = 1e11


def coco_ap(detections: Detections, objects: Objects, num_classes: int) -> dict[str, float]:
    """
    AP by pycocotools, in [0, 1]: `AP` (IoU .5:.95), `AP50`, `AP75`, and `APs`, `APm`, `APl` of
    small, medium and large objects; nan where there are no such objects.

    Difficult objects are ignored as pycocotools ignores objects outside the range of areas. The 100
    best detections of each image and class count.
    """
    # A class at a time: pycocotools keeps a dictionary for each detection.
    precisions = [
        _precision(detections, objects, class_id, num_images=_num_images(detections, objects))
        for class_id in range(num_classes)
    ]
    # (IoU thresholds, recall levels, classes, ranges of areas); -1 where there is no object.
    precision = np.concatenate(precisions, axis=2)
    parts = (
        precision[..., 0],
        precision[0, ..., 0],
        precision[5, ..., 0],
        *(precision[..., area] for area in (1, 2, 3)),
    )
    means = (float(x[x > -1].mean()) if (x > -1).any() else float("nan") for x in parts)
    return dict(zip(NAMES, means, strict=True))


def _num_images(detections: Detections, objects: Objects) -> int:
    inds = [int(x.max()) for x in (detections.image_inds, objects.image_inds) if len(x)]
    return max(inds, default=-1) + 1


def _precision(
    detections: Detections, objects: Objects, class_id: int, num_images: int
) -> np.ndarray:
    images = {"images": [{"id": i} for i in range(num_images)], "categories": [{"id": class_id}]}
    gt, dt = COCO(), COCO()
    gt.dataset = {**images, "annotations": _objects_of(objects, class_id)}
    dt.dataset = {**images, "annotations": _detections_of(detections, class_id)}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        gt.createIndex()
        dt.createIndex()
        evaluation = COCOeval(gt, dt, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def _objects_of(objects: Objects, class_id: int) -> list[dict]:
    """Objects of a class, as pycocotools has them."""
    rows = (objects.classes == class_id).nonzero().squeeze(1).tolist()
    return [
        {
            # pycocotools takes the id 0 for none.
            "id": number,
            "image_id": int(objects.image_inds[i]),
            "category_id": class_id,
            "bbox": _xywh(objects.boxes[i]),
            "area": _area(objects, i),
            "iscrowd": int(objects.is_crowd[i]),
        }
        for number, i in enumerate(rows, 1)
    ]


def _detections_of(detections: Detections, class_id: int) -> list[dict]:
    """Detections of a class, by falling score, the best of each image; as pycocotools has them."""
    inds = (detections.classes == class_id).nonzero().squeeze(1)
    inds = inds[np.argsort(-detections.scores[inds].double().numpy(), kind="stable")]
    counts: dict[int, int] = {}
    annotations: list[dict] = []
    for i in inds.tolist():
        image = int(detections.image_inds[i])
        counts[image] = counts.get(image, 0) + 1
        if counts[image] > MAX_DETECTIONS:
            continue
        box = _xywh(detections.boxes[i])
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": class_id,
                "bbox": box,
                "area": box[2] * box[3],
                "score": float(detections.scores[i]),
                "iscrowd": 0,
            }
        )
    return annotations


def _area(objects: Objects, i: int) -> float:
    if objects.is_difficult[i] and not objects.is_crowd[i]:
        return _IGNORED_AREA
    if objects.areas is not None:
        return float(objects.areas[i])
    _, _, width, height = _xywh(objects.boxes[i])
    return width * height


def _xywh(box: torch.Tensor) -> list[float]:
    x1, y1, x2, y2 = box.double().tolist()
    return [x1, y1, x2 - x1, y2 - y1]
