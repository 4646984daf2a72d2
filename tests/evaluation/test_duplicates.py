# SPDX-License-Identifier: Apache-2.0
"""Objects that are detected more than once."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from maploss.evaluation import APEvaluator, count_duplicates, evaluate_detections

from tests.evaluation.scenes import random_scene
from tests.evaluation.test_pooled_ap import make_scene
from tests.reference.pooled_ap import overlap
from tests.tiny import NAME

BOX, SHIFTED, OTHER_SIDE = [0.0, 0, 10, 10], [0.0, 0, 12, 10], [0.0, 0, 10, 18]
FAR = [50.0, 50, 60, 60]


def count(detections, objects, num_classes=1):
    scene = make_scene(detections, objects)
    return count_duplicates(scene[0], evaluate_detections(*scene, num_classes))


def slow_count(detections, objects, results):
    """By the definition, one detection after another."""
    counts = []
    for c, result in enumerate(results):
        rows = [d for d in range(len(detections.scores)) if detections.classes[d] == c]
        rows.sort(key=lambda d: (-float(detections.scores[d]), d))
        shown, number = [], 0
        for d in rows:
            box, image = detections.boxes[d].tolist(), int(detections.image_inds[d])
            of_class = [
                g
                for g in range(len(objects.classes))
                if objects.classes[g] == c and objects.image_inds[g] == image
            ]
            others = [g for g in of_class if not objects.is_crowd[g]]
            best = max(others, key=lambda g: overlap(box, objects.boxes[g].tolist()), default=None)
            if best is None or overlap(box, objects.boxes[best].tolist()) <= 0.5:
                continue
            if (
                objects.is_difficult[best]
                or not float(detections.scores[d]) >= result.best_f1_thresh
            ):
                continue
            number += any(g == best and overlap(box, other) > 0.5 for g, other in shown)
            shown.append((best, box))
        counts.append(number)
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_count_by_the_definition(seed):
    detections, objects = random_scene(seed, num_images=2, num_objects=20)
    results = evaluate_detections(detections, objects, 3)
    assert count_duplicates(detections, results) == slow_count(detections, objects, results)
    # Below the operating point there are more.
    results = [result._replace(best_f1_thresh=0.5) for result in results]
    counts = count_duplicates(detections, results)
    assert counts == slow_count(detections, objects, results)
    assert sum(counts) > 0


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((0, 0, 0.8, SHIFTED), 1),
        ((0, 0, 0.9, SHIFTED), 1),  # of equal scores
        ((1, 0, 0.8, SHIFTED), 0),  # in another image
        ((0, 1, 0.8, SHIFTED), 0),  # of another class
        ((0, 0, 0.8, FAR), 0),  # over nothing
        ((0, 0, 0.1, SHIFTED), 0),  # below the operating point
    ],
)
def test_a_second_detection_of_an_object_is_one(second, expected):
    # The object of image 1 sets the operating point at .3.
    detections = [(0, 0, 0.9, BOX), second, (1, 0, 0.3, FAR)]
    objects = [(0, 0, BOX, False), (1, 0, FAR, False)]
    assert count(detections, objects, 2)[0] == expected


def test_two_over_an_object_that_hardly_overlap_each_other_are_none():
    # Each covers more than half of the object, and less than half of both is common.
    wide = [[0.0, 0, 6, 10], [4.0, 0, 10, 10]]
    detections = [(0, 0, 0.9 - i / 10, box) for i, box in enumerate(wide)] + [(1, 0, 0.3, FAR)]
    objects = [(0, 0, BOX, False), (1, 0, FAR, False)]
    assert count(detections, objects) == [0]


def test_difficult_objects_do_not_count():
    detections = [(0, 0, 0.9, BOX), (0, 0, 0.8, SHIFTED), (1, 0, 0.3, FAR)]
    objects = [(0, 0, BOX, True), (1, 0, FAR, False)]
    assert count(detections, objects) == [0]


def test_a_class_without_a_right_detection_has_none():
    assert count([(0, 0, 0.9, FAR), (0, 0, 0.8, FAR)], [(0, 0, BOX, False)]) == [0]
    assert count([], [(0, 0, BOX, False)]) == [0]


def test_three_detections_of_an_object_are_two_duplicates():
    detections = [(0, 0, x / 10, BOX) for x in (9, 8, 7)]
    # The objects of other images set the operating point at .3.
    detections += [(i, 0, 0.3, FAR) for i in (1, 2, 3)]
    objects = [(0, 0, BOX, False), *((i, 0, FAR, False) for i in (1, 2, 3))]
    assert count(detections, objects) == [2]


def test_the_evaluation_has_duplicates_per_image(tiny_data):
    evaluator = APEvaluator(NAME)
    for record in DatasetCatalog.get(NAME):
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]]).repeat(2, 1)
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(boxes)
        found.scores = torch.ones(len(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]] * 2)
        evaluator.process([record], [{"instances": found}])
    # Two of an image's three objects count, and each is detected twice.
    assert evaluator.evaluate()["bbox"]["duplicates-per-image"] == 2
