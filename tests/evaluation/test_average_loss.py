# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.modeling import build_model
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import training_records
from maploss.engine.checkpoints import find_checkpoints
from maploss.evaluation import average_loss


@pytest.fixture
def run_cfg(data_cfg, tmp_path):
    """The config of a run with two checkpoints."""
    data_cfg.INPUT.RANDOM_FLIP = "none"
    data_cfg.MODEL.ROI_HEADS.NAME = "SoftmaxROIHeads"
    data_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    data_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 3
    (tmp_path / "run").mkdir()
    for iteration in (1, 11):
        torch.manual_seed(iteration)
        state = build_model(data_cfg).state_dict()
        state["roi_heads.box_predictor.cls_score.weight"] *= 10 * iteration
        torch.save({"model": state}, tmp_path / f"run/model_{iteration:07}.pth")
    torch.save({"model": state}, tmp_path / "run/model_final.pth")
    (tmp_path / "run/config.yaml").write_text(data_cfg.dump())
    return data_cfg


def records_of(cfg):
    return training_records(cfg)


def expected_loss(cfg, path, records, storage):
    """The ordinary loss of all windows of the images together."""
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 0
    model = build_model(cfg)
    model.load_state_dict(torch.load(path)["model"])
    mapper = MAPDatasetMapper(cfg, is_train=True)
    return float(sum(x.detach() for x in model([mapper(record) for record in records]).values()))


def test_the_tool_measures_all_windows_at_each_checkpoint_and_draws(
    run_cfg, tmp_path, storage, call_tool
):
    picture = tmp_path / "curves.png"
    call_tool("average_loss", str(picture), f"softmax={tmp_path / 'run'}")
    lines = [json.loads(x) for x in (tmp_path / "run/average_loss.json").read_text().splitlines()]
    assert [x["iteration"] for x in lines] == [1, 11]
    for line in lines:
        path = tmp_path / f"run/model_{line['iteration']:07}.pth"
        expected = expected_loss(run_cfg, path, records_of(run_cfg), storage)
        assert line["train/average_loss"] == pytest.approx(expected, rel=1e-4)
    assert lines[0]["train/average_loss"] != pytest.approx(lines[1]["train/average_loss"], rel=0.1)
    assert cv2.imread(str(picture)).std() > 1


def test_images_of_a_range_of_sizes_are_measured_at_that_of_the_test(run_cfg, tmp_path, call_tool):
    run_cfg.INPUT.MIN_SIZE_TRAIN, run_cfg.INPUT.MIN_SIZE_TEST = (40, 60), 50
    run_cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    (tmp_path / "run/config.yaml").write_text(run_cfg.dump())
    call_tool("average_loss", str(tmp_path / "a.png"), str(tmp_path / "run"))
    assert len((tmp_path / "run/average_loss.json").read_text().splitlines()) == 2


def test_some_images_are_taken_at_equal_distances(run_cfg, tmp_path, storage, call_tool):
    call_tool("average_loss", str(tmp_path / "a.png"), str(tmp_path / "run"), "--images", "2")
    (line, *_) = (tmp_path / "run/average_loss.json").read_text().splitlines()
    records = records_of(run_cfg)
    path = tmp_path / "run/model_0000001.pth"
    expected = expected_loss(run_cfg, path, [records[0], records[4]], storage)
    assert json.loads(line)["train/average_loss"] == pytest.approx(expected, rel=1e-4)


def test_without_images_checkpoints_or_losses_there_is_one_line(run_cfg, tmp_path, call_tool):
    with pytest.raises(ValueError, match="expected some windows, got none"):
        average_loss(build_model(run_cfg), [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected checkpoints"):
        find_checkpoints(tmp_path / "empty")
    tool = ("average_loss", str(tmp_path / "a.png"))
    with pytest.raises(SystemExit, match=r"^error: .*empty: expected checkpoints such as"):
        call_tool(*tool, str(tmp_path / "empty"))
    with pytest.raises(SystemExit, match=r"^error: --images: expected at least 1, got 0"):
        call_tool(*tool, str(tmp_path / "run"), "--images", "0")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("SoftmaxROIHeads", "MAPROIHeads"))
    with pytest.raises(SystemExit, match=r"^error: .*run: expected SoftmaxROIHeads or OHEMROI"):
        call_tool(*tool, str(tmp_path / "run"))


def test_checkpoints_come_in_the_order_of_their_iterations(tmp_path):
    for name in ("model_0000009", "model_10000000", "model_final", "model_0000299"):
        (tmp_path / f"{name}.pth").touch()
    found = find_checkpoints(tmp_path)
    assert list(found) == [10, 300, 10000001]
    assert found[300] == Path(tmp_path / "model_0000299.pth")
