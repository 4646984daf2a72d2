# SPDX-License-Identifier: Apache-2.0
"""tools/prepare_data.py as a user calls it, and what the files that it writes say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data.prepare.prepare_data import base_path
from maploss.data.prepare.settings import choose_settings
from maploss.data.prepare.summary import merge, summarize, warnings_of
from maploss.engine import load_config, prepare_config
from maploss.engine.own_data_base import choose_base
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
NUM_IMAGES = 20


@pytest.fixture
def folder(tmp_path):
    """Twenty images of noise with YOLO's labels, half of them in files."""
    rng = np.random.default_rng(0)
    data = tmp_path / "my cells"
    for i in range(NUM_IMAGES):
        (data / "images").mkdir(parents=True, exist_ok=True)
        (data / "labels").mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"images/{i}.png")
        if i % 2 == 0:
            (data / f"labels/{i}.txt").write_text(f"{i // 2 % 2} .5 .5 .4 .6\n")
    (data / "classes.txt").write_text("red\nwhite\n")
    yield data
    for name in ("my_cells_train", "my_cells_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def prepare(call_tool, tmp_path, monkeypatch):
    """Calls the tool in an empty folder: its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: call_tool("prepare_data", *map(str, args))


def test_the_file_that_is_written_is_a_config_that_a_run_takes(prepare, folder, monkeypatch):
    monkeypatch.setattr("maploss.engine.setup.check_weights_input", lambda cfg: None)
    monkeypatch.setattr("maploss.engine.setup._fill_proposal_files", lambda *_: None)
    status, output, errors = prepare(folder)
    assert (status, errors) == (0, "")
    for part in (
        "YOLO labels without a data.yaml",
        "no split found: 80% of the images train",
        "2 classes: red, white",
        "checked all images and boxes: nothing wrong",
        "images 16 4",
        "box sizes",
        "warning: 16 images to train on are few",
        "next: python train_net.py --config-file data.yaml",
    ):
        assert part in " ".join(output.split())
    cfg = load_config("data.yaml", [])
    prepare_config(cfg, eval_only=False)
    assert cfg.DATASETS.TRAIN == ("my_cells_train",)
    assert cfg.DATASETS.TEST == ("my_cells_val",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert cfg.MODEL.ROI_HEADS.NAME == "MAPROIHeads"
    assert len(DatasetCatalog.get("my_cells_train")) == 16
    assert cfg.INPUT.MIN_SIZE_TRAIN == (48,)
    assert cfg.TEST.EVAL_PERIOD * 10 == cfg.SOLVER.MAX_ITER == 300
    assert cfg.OUTPUT_DIR == "output/my_cells"


def test_with_an_rpn_no_windows_are_needed(prepare, folder):
    assert prepare(folder, "--proposals", "rpn")[0] == 0
    cfg = load_config("data.yaml", [])
    assert not cfg.MODEL.LOAD_PROPOSALS
    assert cfg.MODEL.PROPOSAL_GENERATOR.NAME == "IgnoringRPN"


def test_problems_are_told_with_their_amount_and_a_few_of_many(prepare, folder):
    (folder / "labels/0.txt").write_text("0 30 20 20 15\n0 .98 .5 .3 .5\n")
    for i in range(2, 20, 2):
        (folder / f"labels/{i}.txt").write_text("0 .5 .5 0 .5\n" * 2)
    status, output, errors = prepare(folder)
    assert status == 1
    assert "expected shares of the image from 0 to 1, got 30" in output
    assert "error:" in errors
    (folder / "labels/0.txt").write_text("0 .5 .5 1 .5\n0 .98 .5 .3 .5\n")
    status, output, errors = prepare(folder)
    assert (status, errors) == (0, "")
    assert "0.txt:2 (red): box reaches outside its image by 8.3 pixels" in output
    assert "and 9 more; python tools/check_dataset.py my_cells_train --config-file" in output
    assert "checked all images and boxes: 19 wrong" in output


def test_a_yaml_of_another_is_not_overwritten_and_its_own_is(prepare, folder, tmp_path):
    (tmp_path / "data.yaml").write_text("names: [a]\n")
    status, _, errors = prepare(folder)
    assert status == 1
    assert "data.yaml exists and was not written by this tool" in errors
    assert prepare(folder, "--output", "mine.yaml")[0] == 0
    assert prepare(folder, "--output", "mine.yaml")[0] == 0


def test_a_folder_that_is_no_data_set_ends_with_what_was_looked_for(prepare, tmp_path):
    (tmp_path / "empty").mkdir()
    status, output, errors = prepare(tmp_path / "empty")
    assert (status, output) == (1, "")
    assert errors.startswith("error: ")
    assert "Looked for:" in errors
    assert not (tmp_path / "data.yaml").exists()


def test_an_image_that_cannot_be_read_is_one_line(prepare, folder):
    (folder / "images/3.png").write_bytes(b"none")
    status, output, errors = prepare(folder)
    assert status == 1
    assert "problem: Cannot read image" in output
    assert errors.count("\n") == 1


def test_weights_choose_the_network_and_the_input(tmp_path):
    squeezenet, lite = tmp_path / "s.pth", tmp_path / "e.pth"
    torch.save({"features.0.weight": 1, "features.3.squeeze.weight": 1}, squeezenet)
    torch.save({"conv_stem.weight": 1}, lite)
    chosen = choose_base(str(squeezenet), "selective_search")
    assert chosen.file == "Base-SqueezeNet.yaml"
    assert "what input it was trained with is not known" in chosen.notes[0]
    chosen = choose_base(str(squeezenet), "rpn", is_caffe=True)
    assert chosen.file == "Base-SqueezeNet-RPN.yaml"
    assert chosen.keys["INPUT.FORMAT"] == "BGR"
    assert choose_base(str(lite), "rpn").file == "Base-EfficientNet-Lite0-RPN.yaml"
    torch.save({"fc.weight": 1}, lite)
    with pytest.raises(ValueError, match=r"expected a state dict of SqueezeNet.*got fc\.weight"):
        choose_base(str(lite), "rpn")
    with pytest.raises(FileNotFoundError, match=r"--weights: no such file: /no/w\.pth"):
        choose_base("/no/w.pth", "rpn")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/Own-Data").glob("*.yaml")))
def test_each_base_is_a_config_of_the_map_loss_with_box_regression(path):
    cfg = load_config(str(path), [])
    assert cfg.MODEL.ROI_HEADS.NAME == "MAPROIHeads"
    assert cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT == 1
    assert ("RPN" not in path.name) == cfg.MODEL.LOAD_PROPOSALS


def make_summary(num_images, side, width=640, height=480, num_empty=0):
    box = {"bbox": [0, 0, side, side], "category_id": 0}
    records = [
        {"width": width, "height": height, "annotations": [] if i < num_empty else [box]}
        for i in range(num_images)
    ]
    return summarize(records)


@pytest.mark.parametrize(
    ("summary", "min_size", "minibatch", "iterations"),
    [
        (make_summary(292, 100), 240, 16, 360),
        (make_summary(4000, 20), 384, 16, 5000),
        (make_summary(100_000, 100), 240, 16, 10_000),
        (make_summary(100, 2), 480, 16, 300),
        (make_summary(100, 30, 4000, 3000), 800, 16, 300),
        (make_summary(100, 30, 120, 100), 100, 16, 300),
        (make_summary(9, 100, num_empty=5), 240, 4, 300),
    ],
)
def test_settings_fit_the_number_of_images_and_the_size_of_objects(
    summary, min_size, minibatch, iterations
):
    settings = choose_settings(summary)
    assert settings.min_size == min_size
    assert (settings.minibatch, settings.iterations) == (minibatch, iterations)
    assert settings.eval_period * 10 == iterations
    assert settings.learning_rate == pytest.approx(0.001 * (minibatch / 16) ** 0.5)


def test_classes_without_objects_are_told_by_what_they_lack_them_for():
    train, val = make_summary(60, 10), make_summary(10, 10, num_empty=10)
    lines = warnings_of({"a": train, "b": val}, ["cat", "dog"], ["a"])
    assert lines == ["no object to train on of dog", "no object to evaluate of cat, dog"]
    assert merge([train, val]).num_images == 70


def test_the_base_is_relative_inside_the_repository_only(tmp_path):
    base = tmp_path / "repository/configs/Own-Data/Base.yaml"
    inside, outside = tmp_path / "repository/data.yaml", tmp_path / "data.yaml"
    assert base_path(str(base), str(inside)) == "configs/Own-Data/Base.yaml"
    assert base_path(str(base), str(outside)) == str(base)
