# SPDX-License-Identifier: Apache-2.0
import json
import logging
import math
import os

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from maploss.evaluation import APEvaluator
from maploss.visualization import draw_evaluation

from tests.distributed import run_ranks

NAMES = ["cat", "dog", "unseen"]
IMAGE_IDS = ("a", "b", "c", "d")
OBJECTS = {  # image: (box, class, difficult)
    "a": [([10, 10, 30, 30], 0, 0), ([40, 10, 60, 40], 1, 0)],
    "b": [([5, 5, 25, 45], 0, 0), ([30, 30, 50, 50], 0, 1)],
    "c": [([5, 5, 45, 25], 1, 0)],
    "d": [],
}


def register(folder, name):
    """Registers four images of noise and their objects."""

    def load():
        return [
            {
                "file_name": os.path.join(folder, f"{image_id}.png"),
                "image_id": image_id,
                "height": 60,
                "width": 80,
                "annotations": [
                    {
                        "bbox": box,
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "category_id": class_id,
                        "difficult": difficult,
                        "iscrowd": 0,
                    }
                    for box, class_id, difficult in OBJECTS[image_id]
                ],
            }
            for image_id in IMAGE_IDS
        ]

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(thing_classes=NAMES, ap_type="area")


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for image_id in IMAGE_IDS:
        cv2.imwrite(str(folder / f"{image_id}.png"), rng.integers(0, 256, (60, 80, 3), np.uint8))
    name = f"evaluator_{tmp_path.name}"
    register(str(folder), name)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def make_output(boxes, scores, classes):
    instances = Instances((60, 80))
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return {"instances": instances}


def random_output(image_id):
    """Detections near the objects of an image and some anywhere; tied scores among them."""
    rng = np.random.default_rng(ord(image_id))
    rows = [(np.array(b) + rng.integers(-2, 3, 4), c) for b, c, _ in OBJECTS[image_id]] * 2
    rows += [(np.array([0, 0, 20, 20]) + 5 * i, i % 3) for i in range(6)]
    scores = rng.integers(0, 4, len(rows))
    return make_output([r[0] for r in rows], scores, [r[1] for r in rows])


def evaluate(name, outputs, output_dir=None):
    evaluator = APEvaluator(name, output_dir)
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    results = evaluator.evaluate()
    if output_dir is not None:
        draw_evaluation(evaluator.evaluation, output_dir)
    return results


def perfect_output(image_id):
    rows = OBJECTS[image_id]
    return make_output([r[0] for r in rows], [1.0] * len(rows), [r[1] for r in rows])


def test_perfect_detections_have_an_ap_of_100_percent(dataset):
    results = evaluate(dataset, {i: perfect_output(i) for i in IMAGE_IDS})
    assert list(results) == ["bbox"]
    assert results["bbox"]["AP"] == results["bbox"]["AP50"] == 100
    assert results["bbox"]["AP50-voc07"] == results["bbox"]["AP50-coco101"] == 100
    assert results["bbox"]["AP75"] == results["bbox"]["AP-pool"] == 100
    assert results["bbox"]["AP50-pool"] == results["bbox"]["AP75-pool"] == 100
    assert results["bbox"]["AP50-cat"] == results["bbox"]["AP50-dog"] == 100
    assert math.isnan(results["bbox"]["AP50-unseen"])


def test_no_prediction_at_all_is_an_ap_of_zero_and_a_warning(dataset, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        results = evaluate(dataset, {}, str(tmp_path))
    assert results["bbox"]["AP"] == results["bbox"]["AP50-cat"] == 0
    assert "4 of 4 images" in caplog.text
    assert (tmp_path / "detections.png").is_file()


def test_files_are_written_and_agree_with_the_results(dataset, tmp_path):
    results = evaluate(dataset, {i: random_output(i) for i in IMAGE_IDS}, str(tmp_path))
    written = json.loads((tmp_path / "ap.json").read_text())
    assert written["bbox"]["AP50"] == pytest.approx(results["bbox"]["AP50"])
    for name in ("AP", "AP75", "AP-pool", "AP50-pool"):
        assert 0 < written["bbox"][name] == results["bbox"][name] < 100
    assert written["bbox"]["AP50-unseen"] is None
    assert written["classes"]["cat"]["num_difficult"] == 1
    table = (tmp_path / "ap.txt").read_text()
    assert "mean of 2" in table
    columns, pooled = (
        next(line for line in table.splitlines() if name in line).split()
        for name in ("AP50-voc07", "AP-pool")
    )
    for column, name in (("AP50", "AP50-pool"), ("AP75", "AP75-pool"), ("AP50:95", "AP-pool")):
        cell = pooled[columns.index(column) - len(columns)]
        assert cell == f"{results['bbox'][name]:.2f}"
    assert "for want of objects: unseen" in table
    for name in ("pr_curves.png", "detections.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 10
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["ap.json", "ap.txt", "detections.png", "images", "pr_curves.png", "true_positives.json"]
    )


def test_each_true_positive_is_written_with_its_iou_and_its_rank(dataset, tmp_path):
    # Of the cats: found, of the other image's place, difficult, found, found again.
    boxes = [[5, 5, 25, 35], [40, 40, 60, 55], [30, 30, 50, 50], [10, 10, 30, 28], [10, 10, 30, 30]]
    outputs = {
        "b": make_output([*boxes[:1], boxes[2]], [5.0, 3.0], [0, 0]),
        "a": make_output([boxes[1], *boxes[3:]], [4.0, 2.0, 1.0], [0, 0, 0]),
    }
    evaluate(dataset, outputs, str(tmp_path))
    written = json.loads((tmp_path / "true_positives.json").read_text())
    nothing = {"num_detections": 0, "iou": [], "rank": []}
    assert written == {
        "dataset": dataset,
        "classes": {
            # The difficult one has no place in the ranking.
            "cat": {"num_detections": 4, "iou": [0.75, 0.9], "rank": [1, 3]},
            "dog": nothing,
            "unseen": nothing,
        },
    }


def test_reset_forgets_the_detections_before(dataset):
    evaluator = APEvaluator(dataset)
    evaluator.process([{"image_id": "a"}], [perfect_output("a")])
    evaluator.reset()
    assert evaluator.evaluate()["bbox"]["AP50"] == 0


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_score_that_is_not_finite_names_the_image(dataset, score):
    output = make_output([[0, 0, 5, 5]], [score], [0])
    with pytest.raises(FloatingPointError, match="Image 'a'"):
        evaluate(dataset, {"a": output})


def test_unknown_class_names_the_image(dataset):
    output = make_output([[0, 0, 5, 5]], [1.0], [3])
    with pytest.raises(ValueError, match="Image 'b': expected classes below 3, got 3"):
        evaluate(dataset, {"b": output})


@pytest.mark.parametrize(
    ("dtype", "difference"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 1e-2)]
)
def test_scores_that_differ_least_are_ranked(dataset, dtype, difference):
    outputs = {i: perfect_output(i) for i in IMAGE_IDS}
    output = make_output([[60, 40, 70, 50], OBJECTS["a"][0][0]], [0, 0], [0, 0])
    output["instances"].scores = torch.tensor([0.5, 0.5 + difference], dtype=dtype)
    results = evaluate(dataset, outputs | {"a": output, "b": make_output([], [], [])})
    # The first of two cats is found before the false one: precision 1 up to a recall of .5.
    assert results["bbox"]["AP50-cat"] == 50


def test_an_empty_data_set_is_named():
    name = "evaluator_of_nothing"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(thing_classes=NAMES)
    try:
        with pytest.raises(ValueError, match=f"'{name}': expected images, got none"):
            evaluate(name, {})
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def records(dataset):
    """The records of the data set, to be changed."""
    records = DatasetCatalog.get(dataset)
    DatasetCatalog.remove(dataset)
    DatasetCatalog.register(dataset, lambda: records)
    return records


def test_a_record_without_annotations_has_no_objects(dataset, records, tmp_path):
    del records[3]["annotations"]
    results = evaluate(dataset, {i: perfect_output(i) for i in IMAGE_IDS}, str(tmp_path))
    assert results["bbox"]["AP50"] == 100


@pytest.mark.parametrize("class_id", [-1, 3])
def test_an_object_of_an_unknown_class_names_image_and_class(dataset, records, class_id):
    records[1]["annotations"][0]["category_id"] = class_id
    with pytest.raises(ValueError, match=f"Image 'b'.*classes 0 to 2, got class {class_id}"):
        evaluate(dataset, {i: perfect_output(i) for i in IMAGE_IDS})


def test_prediction_for_an_image_that_the_data_set_has_not_is_an_error(dataset):
    with pytest.raises(ValueError, match="image 'z'"):
        evaluate(dataset, {"z": perfect_output("a")})


def evaluate_as_one_of_two(folder, name):
    """Image b is seen by both."""
    register(folder, name)
    images = ("a", "b", "d") if comm.get_rank() else ("c", "b")
    return evaluate(name, {i: random_output(i) for i in images})


def test_two_processes_give_the_result_of_one(dataset, tmp_path):
    expected = evaluate(dataset, {i: random_output(i) for i in IMAGE_IDS})["bbox"]
    results, other = run_ranks(evaluate_as_one_of_two, 2, str(tmp_path / "images"), "in_two")
    assert results["bbox"] == pytest.approx(expected, nan_ok=True)
    assert 0 < results["bbox"]["AP50"] < 100
    assert other is None


def test_a_data_set_in_cocos_form_is_judged_by_pycocotools_too(dataset, tmp_path):
    outputs = {image_id: random_output(image_id) for image_id in IMAGE_IDS}
    assert "coco" not in evaluate(dataset, outputs)
    MetadataCatalog.get(dataset).set(evaluator_type="coco")
    results = evaluate(dataset, outputs, str(tmp_path / "out"))
    assert 0 < results["coco"]["AP50"] < 100
    assert results["coco"]["AP50"] == pytest.approx(results["bbox"]["AP50-coco101"], abs=1e-4)
    written = json.loads((tmp_path / "out/ap.json").read_text())
    assert written["coco"]["AP50"] == results["coco"]["AP50"]
    assert written["coco"]["APl"] is None
    table = (tmp_path / "out/ap.txt").read_text().splitlines()[-1]
    for name in ("AP", "AP50", "AP75", "AP-pool", "AP50-pool"):
        value = results["coco"][name]
        assert 0 < value == written["coco"][name] < 100
        assert f"{name} {value:.2f}" in table.partition("By COCO's rule: ")[2].split(", ")
        assert value == pytest.approx(results["bbox"][f"{name}-coco101"], abs=1e-4)


def test_a_class_whose_key_is_that_of_a_mean_leaves_the_mean_there(dataset):
    MetadataCatalog.remove(dataset)
    MetadataCatalog.get(dataset).set(thing_classes=["pool", "voc07", "unseen"])
    outputs = {i: random_output(i) for i in IMAGE_IDS}
    results = evaluate(dataset, outputs)["bbox"]
    MetadataCatalog.remove(dataset)
    MetadataCatalog.get(dataset).set(thing_classes=NAMES)
    expected = evaluate(dataset, outputs)["bbox"]
    for name in ("AP50-pool", "AP50-voc07"):
        assert results[name] == expected[name] != expected["AP50-cat"]
