# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from maploss.visualization import draw_ranking

NOTHING = {"num_detections": 0, "iou": [], "rank": []}


def write(folder: Path, *classes: dict, dataset: str = "shapes_val") -> Path:
    """An evaluated run; the classes are named by their index."""
    path = folder / "inference" / "true_positives.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"dataset": dataset, "classes": dict(enumerate(classes))}))
    return path


def of_rank(ious, ranks, num_detections=1000) -> dict:
    return {"num_detections": num_detections, "iou": list(ious), "rank": list(ranks)}


def title(axes) -> str:
    return axes.get_title().replace("\n", ": ")


def test_each_label_has_a_panel_of_the_true_positives_of_all_its_runs_and_classes(tmp_path):
    first = write(tmp_path / "1", of_rank([0.6, 0.7], [3, 2]), NOTHING)
    second = write(tmp_path / "2", of_rank([0.9], [1]), of_rank([0.8], [1], 500))
    worse = write(tmp_path / "3", of_rank([0.6, 0.7, 0.8], [1, 2, 3]))
    path = str(tmp_path / "ranking.png")
    figure = draw_ranking(path, {"better": [first, second], "worse": [worse]})
    assert cv2.imread(path).std() > 1
    # In percent: .3, .2, .1 and .2, of which the two .2 share a rank.
    better, worse = figure.axes
    assert title(better) == "better: 4 objects found, Spearman 0.95"
    assert title(worse) == "worse: 3 objects found, Spearman -1.00"
    for axes, count in ((better, 4), (worse, 3)):
        (density,) = axes.collections
        assert density.get_array().sum() == count


def test_the_line_is_the_median_percent_of_each_bin_that_has_five(tmp_path):
    ious = [0.52] * 5 + [0.72] * 4 + [0.97] * 4 + [1.0]
    ranks = [900, 500, 400, 300, 100, 50, 60, 70, 80, 1, 2, 3, 4, 5]
    figure = draw_ranking(str(tmp_path / "r.png"), {"a": [write(tmp_path, of_rank(ious, ranks))]})
    (line,) = figure.axes[0].get_lines()
    assert np.allclose(line.get_xydata(), [[0.525, 40], [0.975, 0.3]])


def test_the_first_detection_is_at_the_top_and_the_last_in_the_picture(tmp_path):
    for count in (1, 10, 10_000_000):
        file = write(tmp_path / str(count), of_rank([0.6, 1.0], [count, 1], count))
        axes = draw_ranking(str(tmp_path / "r.png"), {"a": [file]}).axes[0]
        assert axes.collections[0].get_array().sum() == 2
        worst, best = axes.get_ylim()
        assert worst == 100 >= 100 / count > best > 0


def test_equal_overlaps_have_no_correlation(tmp_path, recwarn):
    for name, ious in (("one", [0.8]), ("equal", [0.8, 0.8])):
        file = write(tmp_path / name, of_rank(ious, range(1, len(ious) + 1)))
        figure = draw_ranking(str(tmp_path / "r.png"), {name: [file]})
        assert title(figure.axes[0]).endswith("Spearman nan")
    assert not [x for x in recwarn if "constant" in str(x.message).lower()]


def test_what_cannot_be_drawn_ends_the_tool_with_one_line(tmp_path, call_tool):
    write(tmp_path / "good", of_rank([0.9], [1]))
    write(tmp_path / "other", of_rank([0.9], [1]), dataset="voc")
    write(tmp_path / "nothing", NOTHING)
    for text in ("no json", "3", "{}", '{"dataset": "a", "classes": {"b": {"iou": [1]}}}'):
        path = write(tmp_path / f"broken {len(text)}")
        path.write_text(text)
    for name, says in (
        ("other", r"runs: expected one data set, got shapes_val, voc"),
        ("nothing", "nothing: expected true positives at IoU .5, got none"),
        ("missing", r"missing.*true_positives\.json: not found; train_net\.py --eval-only writes"),
        *((x.name, "expected what APEvaluator writes") for x in tmp_path.glob("broken*")),
    ):
        with pytest.raises(SystemExit, match=rf"^error: [^\n]*{says}[^\n]*$"):
            call_tool(
                "plot_ranking",
                str(tmp_path / "r.png"),
                *(str(tmp_path / x) for x in ("good", name)),
            )
    assert not (tmp_path / "r.png").exists()
    call_tool("plot_ranking", str(tmp_path / "r.png"), f"a={tmp_path / 'good'}")
    assert (tmp_path / "r.png").is_file()
