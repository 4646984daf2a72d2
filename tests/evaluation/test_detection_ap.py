# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from maploss.evaluation.detection_ap import (
    IOU_THRESHS,
    Detections,
    Objects,
    evaluate_detections,
    mean_ap,
)
from maploss.layers import average_precision, match_detections

from tests.reference.voc_ap import voc_ap

AP_REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "ap_reference"
needs_ap_reference = pytest.mark.skipif(
    not AP_REFERENCE.is_dir(), reason="published AP values are not beside the checkout"
)


def to_tensors(detections, objects, num_classes):
    """From lists per class of inclusive boxes to the package's continuous ones."""
    images = sorted({d[0] for k in detections for d in k} | {i for k in objects for i in k})
    index = {image: i for i, image in enumerate(images)}
    offset = np.array([0, 0, 1, 1], dtype=np.float32)
    d = [(s, k, index[i], b + offset) for k in range(num_classes) for i, s, b in detections[k]]
    o = [
        (k, index[i], box + offset, difficult)
        for k in range(num_classes)
        for i, rows in objects[k].items()
        for box, difficult in rows
    ]
    return (
        Detections(
            boxes=torch.tensor(np.array([r[3] for r in d]).reshape(-1, 4), dtype=torch.float32),
            scores=torch.tensor([r[0] for r in d], dtype=torch.float32),
            classes=torch.tensor([r[1] for r in d], dtype=torch.int64),
            image_inds=torch.tensor([r[2] for r in d], dtype=torch.int64),
        ),
        Objects(
            boxes=torch.tensor(np.array([r[2] for r in o]).reshape(-1, 4), dtype=torch.float32),
            classes=torch.tensor([r[0] for r in o], dtype=torch.int64),
            image_inds=torch.tensor([r[1] for r in o], dtype=torch.int64),
            is_difficult=torch.tensor([r[3] for r in o], dtype=torch.bool),
            is_crowd=torch.zeros(len(o), dtype=torch.bool),
        ),
    )


def random_scene(rng, num_classes=3, num_images=6):
    """Objects on a grid of whole pixels, detections around them, and some anywhere."""
    objects = [{} for _ in range(num_classes)]
    detections = [[] for _ in range(num_classes)]
    for k in range(num_classes):
        for image in range(num_images):
            rows = []
            for _ in range(rng.integers(0, 4)):
                corner = rng.integers(0, 60, 2)
                box = np.concatenate([corner, corner + rng.integers(5, 40, 2)])
                rows.append((box, bool(rng.random() < 0.2)))
                for _ in range(rng.integers(0, 4)):
                    near = box + rng.integers(-4, 5, 4)
                    near[2:] = np.maximum(near[2:], near[:2])
                    detections[k].append((image, float(rng.normal(1)), near))
            objects[k][image] = rows
            corner = rng.integers(0, 60, 2)
            box = np.concatenate([corner, corner + rng.integers(5, 40, 2)])
            detections[k].append((image, float(rng.normal()), box))
    return detections, objects


@pytest.mark.parametrize("seed", range(20))
def test_ap_equals_slow_reference_by_both_rules_of_voc_at_all_thresholds(seed):
    detections, objects = random_scene(np.random.default_rng(seed))
    results = evaluate_detections(*to_tensors(detections, objects, 3), 3)
    for k, result in enumerate(results):
        for ap_type, suffix in (("area", ""), ("voc07", "-voc07")):
            expected = [voc_ap(detections[k], objects[k], ap_type, t) for t in IOU_THRESHS]
            assert result.ap["AP50" + suffix] == pytest.approx(expected[0], abs=1e-9)
            assert result.ap["AP" + suffix] == pytest.approx(np.mean(expected), abs=1e-9)


def test_difficult_objects_are_neither_hits_nor_misses():
    box = np.array([10, 10, 29, 29])
    objects = [{0: [(box, False), (box + 50, True)]}]
    detections = [[(0, 3.0, box + 50), (0, 2.0, box + 50), (0, 1.0, box)]]
    (result,) = evaluate_detections(*to_tensors(detections, objects, 1), 1)
    assert result.ap["AP50"] == 1.0
    assert (result.num_objects, result.num_difficult) == (1, 1)
    assert result.is_ignored.tolist() == [True, True, False]


def test_detections_in_a_crowd_are_neither_hits_nor_misses():
    box = np.array([10, 10, 29, 29])
    crowd = np.array([100, 0, 199, 99])
    inside, across = np.array([110, 10, 119, 19]), np.array([90, 0, 109, 9])
    detections = [[(0, 4.0, inside), (0, 3.0, inside + 20), (0, 2.0, across), (0, 1.0, box)]]
    found, objects = to_tensors(detections, [{0: [(box, False), (crowd, False)]}], 1)
    (result,) = evaluate_detections(found, objects._replace(is_crowd=torch.tensor([0, 1]) > 0), 1)
    assert result.is_ignored.tolist() == [True, True, False, False]
    assert result.ap["AP50"] == result.ap["AP50-voc07"] == 0.5
    assert (result.num_objects, result.num_difficult) == (1, 1)
    assert result.matched_object.tolist() == [-1, -1, -1, 0]


def test_second_detection_of_an_object_is_wrong():
    box = np.array([10, 10, 29, 29])
    detections = [[(0, 2.0, box), (0, 1.0, box)]]
    (result,) = evaluate_detections(*to_tensors(detections, [{0: [(box, False)]}], 1), 1)
    assert result.is_tp.tolist() == [True, False]
    assert result.matched_object.tolist() == [0, 0]


def test_iou_of_exactly_one_half_is_no_match():
    box = np.array([0, 0, 9, 9])
    half = np.array([0, 0, 9, 4])
    (result,) = evaluate_detections(*to_tensors([[(0, 1.0, half)]], [{0: [(box, False)]}], 1), 1)
    assert result.ap["AP50"] == 0.0


def test_class_without_objects_is_left_out_of_the_mean_and_without_detections_is_zero():
    box = np.array([0, 0, 9, 9])
    objects = [{0: [(box, False)]}, {}, {0: [(box + 20, False)]}, {0: [(box + 40, True)]}]
    detections = [[(0, 1.0, box)], [(0, 1.0, box)], [], [(0, 1.0, box + 40)]]
    results = evaluate_detections(*to_tensors(detections, objects, 4), 4)
    aps = [result.ap["AP50"] for result in results]
    assert aps[0] == 1.0
    assert aps[2] == 0.0
    assert math.isnan(aps[1])
    assert math.isnan(aps[3])
    assert mean_ap(results)["AP50"] == 0.5


def test_no_detection_and_no_object_at_all_gives_nan_mean():
    results = evaluate_detections(*to_tensors([[]], [{}], 1), 1)
    assert math.isnan(mean_ap(results)["AP50"])


def test_scores_that_differ_in_the_seventh_digit_are_ranked():
    box = np.array([0, 0, 9, 9])
    detections = [[(0, 0.5, box + 50), (0, 0.5000001, box)]]
    (result,) = evaluate_detections(*to_tensors(detections, [{0: [(box, False)]}], 1), 1)
    assert result.ap["AP50"] == 1.0


def test_threshold_of_best_f1_keeps_the_detections_up_to_the_last_right_one():
    box = np.array([0, 0, 9, 9])
    objects = [{0: [(box, False), (box + 30, False)]}]
    detections = [[(0, 4.0, box), (0, 3.0, box + 30), (0, 2.0, box + 60), (0, 1.0, box + 90)]]
    (result,) = evaluate_detections(*to_tensors(detections, objects, 1), 1)
    assert result.best_f1 == 1.0
    assert result.best_f1_thresh == 3.0


def test_curve_and_best_f1_are_those_at_an_iou_of_one_half():
    box, other = np.array([0, 0, 99, 99]), np.array([200, 0, 299, 99])
    overlap = np.array([0, 0, 99, 51])  # IoU .52
    objects = [{0: [(box, False), (other, True)]}]
    detections = [[(0, 2.0, overlap + np.array([200, 0, 200, 0])), (0, 1.0, overlap)]]
    (result,) = evaluate_detections(*to_tensors(detections, objects, 1), 1)
    assert result.ap["AP50"] == 1.0
    assert result.ap["AP"] == pytest.approx(0.1)
    assert result.precision.tolist() == result.recall.tolist() == [1.0]
    assert (result.best_f1, result.best_f1_thresh) == (1.0, 1.0)
    assert result.is_tp.tolist() == [False, True]
    assert result.is_ignored.tolist() == [True, False]
    assert result.matched_object.tolist() == [1, 0]


def read_rows(folder):
    """{file stem: rows of words} of a folder of text files."""
    files = sorted(Path(folder).glob("*.txt"))
    return {f.stem: [line.split() for line in f.read_text().splitlines()] for f in files}


@needs_ap_reference
def test_published_ap_of_padilla_sample_is_reproduced():
    def boxes_and_images(rows, column):
        flat = [(i, row) for i, stem in enumerate(sorted(rows)) for row in rows[stem]]
        xywh = torch.tensor([[float(v) for v in row[column : column + 4]] for _, row in flat])
        # Inclusive pixels from x to x + w there.
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:] + 1], dim=1)
        return boxes, torch.tensor([i for i, _ in flat]), [row for _, row in flat]

    sample = AP_REFERENCE / "padilla_sample2"
    gt_boxes, gt_images, _ = boxes_and_images(read_rows(sample / "groundtruths"), 1)
    boxes, images, rows = boxes_and_images(read_rows(sample / "detections"), 2)
    scores = torch.tensor([float(row[1]) for row in rows], dtype=torch.float64)
    matched = match_detections(boxes, images, gt_boxes, gt_images, iou_thresh=0.3)
    area = float(average_precision(scores, matched, len(gt_boxes), "area"))
    voc07 = float(average_precision(scores, matched, len(gt_boxes), "voc07"))
    assert 100 * area == pytest.approx(24.57, abs=0.005)
    assert 100 * voc07 == pytest.approx(26.84, abs=0.005)


@needs_ap_reference
def test_published_ap_of_every_class_of_cartucho_is_reproduced():
    sample = AP_REFERENCE / "cartucho"
    gt, dets = (read_rows(sample / name) for name in ("ground-truth", "detection-results"))
    names = sorted({row[0] for rows in gt.values() for row in rows})
    objects = [{} for _ in names]
    detections = [[] for _ in names]
    for image, rows in gt.items():
        for row in rows:
            box = np.array([float(v) for v in row[1:5]])
            objects[names.index(row[0])].setdefault(image, []).append((box, False))
    for image, rows in dets.items():
        for row in rows:
            if row[0] in names:
                box = np.array([float(v) for v in row[2:6]])
                detections[names.index(row[0])].append((image, float(row[1]), box))
    results = evaluate_detections(*to_tensors(detections, objects, len(names)), len(names))
    published = {}
    for line in (sample / "expected_output.txt").read_text().splitlines():
        if line.endswith(" AP "):
            percent, name = line.split("% = ")
            published[name.split()[0]] = float(percent)
    assert sorted(published) == names
    for name, result in zip(names, results, strict=True):
        assert 100 * result.ap["AP50"] == pytest.approx(published[name], abs=0.0051), name
    assert 100 * mean_ap(results)["AP50"] == pytest.approx(31.05, abs=0.005)
