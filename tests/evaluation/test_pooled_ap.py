# SPDX-License-Identifier: Apache-2.0
"""AP of all classes in one list."""

import math

import numpy as np
import pytest
import torch
from maploss.evaluation import Detections, Objects, evaluate_detections, mean_ap, pooled_ap
from maploss.evaluation.detection_ap import AP_SUFFIX, IOU_THRESHS

from tests.evaluation.scenes import random_scene
from tests.reference import pooled_ap as reference

BOX = [0.0, 0, 10, 10]


def make_scene(detections, objects):
    """Of [(image, class, score, box)] and [(image, class, box, difficult)]."""
    images, classes, scores, boxes = zip(*detections, strict=True) if detections else ([],) * 4
    gt_images, gt_classes, gt_boxes, difficult = zip(*objects, strict=True)
    return (
        Detections(
            torch.tensor(boxes).reshape(-1, 4),
            torch.tensor(scores, dtype=torch.float32),
            torch.tensor(classes, dtype=torch.int64),
            torch.tensor(images, dtype=torch.int64),
        ),
        Objects(
            torch.tensor(gt_boxes),
            torch.tensor(gt_classes),
            torch.tensor(gt_images),
            torch.tensor(difficult).bool(),
            torch.zeros(len(objects)).bool(),
        ),
    )


def evaluate(detections, objects, num_classes):
    return pooled_ap(evaluate_detections(detections, objects, num_classes))


def slow_ap(detections, objects, ap_type):
    """AP at each overlap, by the reference."""
    rows = zip(
        detections.image_inds.tolist(),
        detections.classes.tolist(),
        detections.scores.tolist(),
        detections.boxes.tolist(),
        strict=True,
    )
    gt_rows = zip(
        objects.image_inds.tolist(),
        objects.classes.tolist(),
        objects.boxes.tolist(),
        objects.is_difficult.tolist(),
        objects.is_crowd.tolist(),
        strict=True,
    )
    rows, gt_rows = list(rows), list(gt_rows)
    return [reference.pooled_ap(rows, gt_rows, ap_type, t) for t in IOU_THRESHS]


@pytest.mark.parametrize(
    ("seed", "sizes"),
    [
        *((seed, {}) for seed in range(6)),
        (6, {"num_classes": 1}),
        (7, {"num_classes": 12, "num_objects": 9}),  # classes without an object
        (8, {"num_images": 1, "num_classes": 2, "num_detections": 400}),  # more than 100 of a class
    ],
)
def test_ap_pool_is_that_of_the_slow_reference_with_ties_crowds_and_difficult_objects(seed, sizes):
    detections, objects = random_scene(seed, **sizes)
    found = evaluate(detections, objects, sizes.get("num_classes", 3))
    assert objects.is_crowd.any()
    assert objects.is_difficult.any()
    assert len(detections.scores.unique()) < len(detections.scores)
    for ap_type, suffix in AP_SUFFIX.items():
        expected = slow_ap(detections, objects, ap_type)
        assert 0 < expected[0] < 1
        assert found[f"AP50-pool{suffix}"] == pytest.approx(expected[0], abs=1e-9)
        assert found[f"AP75-pool{suffix}"] == pytest.approx(expected[5], abs=1e-9)
        assert found[f"AP-pool{suffix}"] == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_ap_pool_of_one_class_is_its_ap(seed):
    results = evaluate_detections(*random_scene(seed, num_classes=1), 1)
    found = {name.replace("-pool", ""): ap for name, ap in pooled_ap(results).items()}
    assert found == mean_ap(results)


def test_scores_that_rank_well_in_each_class_only_cost_ap_pool_and_no_map():
    # Class 1 has a right detection below, and a wrong one above, all of class 0.
    objects = [(0, 0, BOX, 0), (0, 1, BOX, 0)]
    far = [50.0, 50, 60, 60]
    calibrated = [(0, 0, 4.0, BOX), (0, 0, 2.0, far), (0, 1, 3.0, BOX), (0, 1, 1.0, far)]
    shifted = [(i, k, s - 10 * k, b) for i, k, s, b in calibrated]
    for rows, expected in ((calibrated, 1.0), (shifted, (1 + 2 / 3) / 2)):
        results = evaluate_detections(*make_scene(rows, objects), 2)
        assert mean_ap(results)["AP50"] == 1
        assert pooled_ap(results)["AP50-pool"] == pytest.approx(expected)


def test_an_object_of_another_class_is_no_match():
    scene = make_scene([(0, 1, 1.0, BOX)], [(0, 0, BOX, 0)])
    assert evaluate(*scene, 2)["AP50-pool"] == 0


def test_of_equal_scores_the_first_detection_comes_first_whatever_its_class():
    right, wrong = (0, 1, 1.0, BOX), (0, 0, 1.0, [50.0, 50, 60, 60])
    objects = [(0, 1, BOX, 0)]
    assert evaluate(*make_scene([right, wrong], objects), 2)["AP50-pool"] == 1
    assert evaluate(*make_scene([wrong, right], objects), 2)["AP50-pool"] == 0.5


def test_a_detection_of_a_class_without_objects_is_a_false_positive():
    scene = make_scene([(0, 1, 2.0, BOX), (0, 0, 1.0, BOX)], [(0, 0, BOX, 0)])
    results = evaluate_detections(*scene, 2)
    assert mean_ap(results)["AP50"] == 1
    assert pooled_ap(results)["AP50-pool"] == 0.5


def test_a_difficult_object_is_neither_hit_nor_miss_in_the_one_list():
    far = [50.0, 50, 60, 60]
    scene = make_scene(
        [(0, 1, 3.0, far), (0, 1, 2.0, far), (0, 0, 1.0, BOX)], [(0, 0, BOX, 0), (0, 1, far, 1)]
    )
    found = evaluate(*scene, 2)
    assert found["AP50-pool"] == found["AP50-pool-voc07"] == 1
    # COCO's rule ignores a difficult object's first detection only.
    assert found["AP50-pool-coco101"] == 0.5


def test_without_detections_ap_pool_is_zero_and_without_objects_unknown():
    objects = [(0, 0, BOX, 0), (0, 1, BOX, 0)]
    assert set(evaluate(*make_scene([], objects), 2).values()) == {0.0}
    difficult = [(0, 0, BOX, 1), (0, 1, BOX, 1)]
    found = evaluate(*make_scene([(0, 0, 1.0, BOX)], difficult), 2)
    assert all(math.isnan(ap) for ap in found.values())
    assert len(found) == 9


def test_no_classes_are_an_error():
    with pytest.raises(ValueError, match="results: expected at least one class, got none"):
        pooled_ap([])
