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
    for objs in (objects, Objects(*(t[:0] for t in objects if t is not None))):
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
    softmax = [write_metrics(tmp_path / f"s-{i}", i, ["bbox/AP50"]) for i in (1, 2, 6)]
    names = ["bbox/AP", "bbox/AP50", "map/minibatch_map", "map/gradient_up"]
    one = write_metrics(tmp_path / "m-1", 3, names)
    lines = [json.loads(line) for line in one.read_text().splitlines()]
    down = [json.dumps({**line, "map/gradient_down": 2 * line["iteration"]}) for line in lines]
    one.write_text("\n".join(down))
    path = str(tmp_path / "curves.png")
    assert len(draw_metric_curves(path, {"softmax": softmax}).axes) == 1
    figure = draw_metric_curves(path, {"softmax": softmax, "map": [one]})
    assert cv2.imread(path).std() > 1
    # The empty lines are those of the legend.
    curves = [
        [(x.get_linestyle(), *x.get_xydata().tolist()) for x in a.lines if len(x.get_xdata())]
        for a in figure.axes
    ]
    ap = [("-", [10, 12], [20, 22], [30, 32]), ("-", [10, 12], [20, 22], [30, 32])]
    assert curves[0] == ap[:1]
    assert curves[1] == ap  # mean of 10, 11, 15; and 9 + 3
    assert curves[2] == [("-", [10, 1200], [20, 2200], [30, 3200])]
    assert curves[3] == [("-", [10, 12], [20, 22], [30, 32]), ("--", [10, 18], [20, 38], [30, 58])]
    (band,) = figure.axes[1].collections  # one run has no spread
    corners = band.get_paths()[0].vertices.tolist()
    assert [10, 10] in corners
    assert [10, 15] in corners


def test_metric_curves_without_a_curve_or_of_another_file_are_refused(tmp_path):
    empty = write_metrics(tmp_path / "e-1", 0, ["time"])
    with pytest.raises(ValueError, match="No curve"):
        draw_metric_curves(str(tmp_path / "curves.png"), {"e": [empty]})
    for text in ("no json", "3", '{"loss": 1}'):
        empty.write_text(text)
        with pytest.raises(ValueError, match=r"metrics\.json: expected .*JSON"):
            draw_metric_curves(str(tmp_path / "curves.png"), {"e": [empty]})
