# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from maploss.evaluation import Detections, Objects, evaluate_detections
from maploss.visualization import draw_detection_grid, draw_metric_curves, draw_pr_curves


@pytest.fixture
def scene(tmp_path):
    """Two black images: one object found, one missed, one difficult, one wrong detection."""
    records = []
    for i in range(2):
        file_name = str(tmp_path / f"{i}.png")
        cv2.imwrite(file_name, np.zeros((100, 100, 3), np.uint8))
        records.append({"file_name": file_name, "image_id": str(i), "height": 100, "width": 100})
    objects = Objects(
        boxes=torch.tensor([[10, 20, 40, 50], [50, 50, 90, 90], [10, 60, 30, 90.0]]),
        classes=torch.tensor([0, 0, 0]),
        image_inds=torch.tensor([0, 0, 1]),
        is_difficult=torch.tensor([False, False, True]),
        is_crowd=torch.tensor([False, False, False]),
    )
    detections = Detections(
        boxes=torch.tensor([[10, 20, 40, 50], [60, 20, 90, 50.0]]),
        scores=torch.tensor([1.0, 2.0]),
        classes=torch.tensor([0, 0]),
        image_inds=torch.tensor([0, 1]),
    )
    return records, detections, objects


def has_color(image, rgb):
    return bool((np.abs(image[:, :, ::-1].astype(int) - rgb).max(2) < 25).any())


def test_grid_shows_right_wrong_missed_and_difficult_boxes_in_their_colors(tmp_path, scene):
    records, detections, objects = scene
    results = evaluate_detections(detections, objects, 1)
    path = str(tmp_path / "grid.png")
    draw_detection_grid(path, records, ["thing"], detections, objects, results)
    image = cv2.imread(path)
    legend = image.shape[0] // 4
    for rgb in ((46, 204, 64), (255, 45, 45), (255, 159, 26), (184, 184, 184)):
        assert has_color(image[legend:], rgb)


def test_grid_and_curves_are_drawn_without_any_detection_or_object(tmp_path, scene):
    records, detections, objects = scene
    nothing = Detections(*(t[:0] for t in detections))
    for objs in (objects, Objects(*(t[:0] for t in objects))):
        results = evaluate_detections(nothing, objs, 2)
        draw_detection_grid(
            str(tmp_path / "grid.png"), records, ["a", "b"], nothing, objs, results, num_images=1
        )
        draw_pr_curves(str(tmp_path / "curves.png"), ["a", "b"], results)
        assert cv2.imread(str(tmp_path / "curves.png")).std() > 1


def write_metrics(folder, shift: float, names) -> Path:
    folder.mkdir()
    lines = [{"iteration": i, **dict.fromkeys(names, shift + i)} for i in (9, 19, 29)]
    (folder / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "metrics.json"


def test_metric_curves_have_a_panel_for_each_thing_logged(tmp_path):
    softmax = [write_metrics(tmp_path / f"s-{i}", i, ["bbox/AP50"]) for i in (1, 2)]
    names = ["bbox/AP50", "map/minibatch_map", "map/gradient_up", "map/gradient_down"]
    both = {"softmax": softmax, "map": [write_metrics(tmp_path / "m-1", 3, names)]}
    widths = []
    for runs in ({"softmax": softmax}, both):
        draw_metric_curves(str(tmp_path / "curves.png"), runs)
        image = cv2.imread(str(tmp_path / "curves.png"))
        assert image.std() > 1
        widths.append(image.shape[1])
    assert widths[1] == pytest.approx(3 * widths[0], abs=3)


def test_metric_curves_without_a_curve_or_of_another_file_are_refused(tmp_path):
    empty = write_metrics(tmp_path / "e-1", 0, ["time"])
    with pytest.raises(ValueError, match="No curve"):
        draw_metric_curves(str(tmp_path / "curves.png"), {"e": [empty]})
    empty.write_text("no json")
    with pytest.raises(ValueError, match=r"metrics\.json: expected one JSON"):
        draw_metric_curves(str(tmp_path / "curves.png"), {"e": [empty]})
