# SPDX-License-Identifier: Apache-2.0
"""Random detections and objects of several classes."""

import numpy as np
import torch
from maploss.evaluation import Detections, Objects


def random_scene(seed, num_images=8, num_classes=3, num_objects=40, num_detections=300):
    """Objects that overlap each other, some difficult, some crowds; detections with ties."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 40, (num_objects, 2))
    gt_boxes = np.concatenate([corner, corner + rng.integers(8, 40, (num_objects, 2))], axis=1)
    near = gt_boxes[rng.integers(0, num_objects, num_detections)]
    boxes = near + rng.integers(-4, 5, near.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    kind = rng.random(num_objects)
    objects = Objects(
        boxes=torch.tensor(gt_boxes, dtype=torch.float32),
        classes=torch.tensor(rng.integers(0, num_classes, num_objects)),
        image_inds=torch.tensor(rng.integers(0, num_images, num_objects)),
        is_difficult=torch.tensor(kind < 0.15),
        is_crowd=torch.tensor(kind > 0.85),
    )
    detections = Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32),
        scores=torch.tensor(rng.integers(0, 60, num_detections) / 7, dtype=torch.float32),
        classes=torch.tensor(rng.integers(0, num_classes, num_detections)),
        image_inds=torch.tensor(np.sort(rng.integers(0, num_images, num_detections))),
    )
    return detections, objects
