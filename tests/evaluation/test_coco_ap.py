# SPDX-License-Identifier: Apache-2.0
"""AP by COCO's rule, ours beside pycocotools'."""

import math

import numpy as np
import pytest
import torch
from maploss.evaluation.coco_ap import coco_ap
from maploss.evaluation.coco_matching import match_coco
from maploss.evaluation.detection_ap import Detections, Objects, evaluate_detections, mean_ap

from tests.evaluation.scenes import random_scene


@pytest.mark.parametrize("seed", range(20))
def test_ap_of_101_points_is_that_of_pycocotools(seed):
    scene = random_scene(seed)
    ours = mean_ap(evaluate_detections(*scene, 3))
    theirs = coco_ap(*scene, 3)
    assert 0 < theirs["AP50"] < 1
    assert ours["AP50-coco101"] == pytest.approx(theirs["AP50"], abs=1e-6)
    assert ours["AP-coco101"] == pytest.approx(theirs["AP"], abs=1e-6)


@pytest.mark.parametrize("num_objects", [20, 100, 700])
def test_a_recall_on_a_level_counts_as_in_pycocotools(num_objects):
    """Every recall of i / 100 is reached exactly: rounding decides which levels count."""
    scene = random_scene(0, 1, 1, num_objects, 0)
    corner = 50.0 * torch.arange(num_objects)[:, None].expand(-1, 4)
    boxes = corner + torch.tensor([0.0, 0, 10, 10])
    images = torch.arange(num_objects) // 50  # fewer than 100 detections in each
    objects = scene[1]._replace(boxes=boxes, image_inds=images)
    objects = objects._replace(**{k: torch.zeros(num_objects) > 0 for k in objects._fields[3:]})
    is_wrong = torch.arange(num_objects) % 3 == 1
    detections = Detections(
        torch.cat([boxes, boxes[is_wrong] + 20]),
        torch.cat([torch.arange(num_objects), torch.arange(num_objects)[is_wrong]]).neg().float(),
        torch.zeros(num_objects + int(is_wrong.sum()), dtype=torch.int64),
        torch.cat([images, images[is_wrong]]),
    )
    ours = mean_ap(evaluate_detections(detections, objects, 1))
    theirs = coco_ap(detections, objects, 1)
    assert ours["AP50-coco101"] == pytest.approx(theirs["AP50"], abs=1e-9)


def test_only_the_100_best_of_an_image_count():
    boxes = torch.tensor([[0.0, 0, 10, 10]]) + 20 * torch.arange(102)[:, None]
    detections = Detections(
        boxes, -torch.arange(102.0), torch.zeros(102).long(), torch.zeros(102).long()
    )
    last, none = boxes[[100]], torch.tensor([False])
    objects = Objects(last, torch.tensor([0]), torch.tensor([0]), none, none)
    (result,) = evaluate_detections(detections, objects, 1)
    assert result.ap["AP50-coco101"] == 0 == coco_ap(detections, objects, 1)["AP50"]
    assert result.ap["AP50"] == pytest.approx(1 / 101)


def test_those_beyond_100_are_no_false_positives_either():
    # 150 in the first image, all wrong, and a right one in the second, which scores least.
    boxes = torch.tensor([[0.0, 0, 10, 10]]) + 20 * torch.arange(151)[:, None]
    image_inds = (torch.arange(151) == 150).long()
    detections = Detections(boxes, -torch.arange(151.0), torch.zeros(151).long(), image_inds)
    none = torch.tensor([False])
    objects = Objects(boxes[[150]], torch.tensor([0]), torch.tensor([1]), none, none)
    (result,) = evaluate_detections(detections, objects, 1)
    assert result.ap["AP50-coco101"] == pytest.approx(1 / 101)
    assert coco_ap(detections, objects, 1)["AP50"] == pytest.approx(1 / 101)


def test_of_equal_overlaps_the_last_object_is_taken_as_in_pycocotools():
    gt_boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    zero, no = np.zeros(2, dtype=int), np.zeros(2, dtype=bool)
    assert match_coco(gt_boxes[:1], zero[:1], gt_boxes, zero, no, no, [0.5]).tolist() == [[1]]


def test_sizes_of_objects_go_by_the_areas_of_the_annotations():
    box, none = torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([False])
    zero = torch.tensor([0])
    detections = Detections(box, torch.tensor([1.0]), zero, zero)
    by_box = coco_ap(detections, Objects(box, zero, zero, none, none), 1)
    assert by_box["APl"] == pytest.approx(1)
    by_mask = coco_ap(detections, Objects(box, zero, zero, none, none, torch.tensor([500.0])), 1)
    assert by_mask["APs"] == by_mask["AP"] == pytest.approx(1)
    assert math.isnan(by_mask["APl"])


def test_a_detection_whose_best_object_is_taken_goes_to_the_next():
    gt_boxes = np.array([[0.0, 0, 10, 10], [2, 0, 12, 10]])
    boxes = np.array([[0.0, 0, 10, 10], [0.5, 0, 10.5, 10]])
    zero, no = np.zeros(2, dtype=int), np.zeros(2, dtype=bool)
    matched = match_coco(boxes, zero, gt_boxes, zero, no, no, [0.5, 0.9])
    assert matched.tolist() == [[0, 1], [0, -1]]


def test_without_objects_or_detections_pycocotools_has_nothing_to_say():
    detections, objects = random_scene(0)
    nothing = Objects(*(x[:0] for x in objects if x is not None))
    assert all(math.isnan(x) for x in coco_ap(detections, nothing, 3).values())
    assert coco_ap(Detections(*(x[:0] for x in detections)), objects, 3)["AP"] == 0


def test_small_medium_and_large_objects_are_told_apart():
    sides = torch.tensor([20.0, 50.0, 150.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    classes, images, no = torch.zeros(3).long(), torch.arange(3), torch.zeros(3) > 0
    objects = Objects(boxes, classes, images, no, no)
    detections = Detections(boxes[:2], torch.ones(2), classes[:2], images[:2])
    found = coco_ap(detections, objects, 1)
    assert [found[x] for x in ("APs", "APm", "APl")] == pytest.approx([1, 1, 0])
