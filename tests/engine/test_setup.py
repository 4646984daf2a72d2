# SPDX-License-Identifier: Apache-2.0

import pickle

import numpy as np
import pytest
import torch
from maploss.engine import load_config, prepare_config
from maploss.engine.setup import default_output_dir


@pytest.fixture
def cfg(data_cfg):
    data_cfg.MODEL.LOAD_PROPOSALS = False
    return data_cfg


def test_without_cuda_the_cpu_is_used_and_that_is_said(cfg, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg.MODEL.DEVICE = "cuda"
    prepare_config(cfg, eval_only=False)
    assert cfg.MODEL.DEVICE == "cpu"
    assert len(caplog.records) == 1
    assert "no CUDA" in caplog.text


def test_with_cuda_the_device_stays(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg.MODEL.DEVICE = "cuda:0"
    prepare_config(cfg, eval_only=False)
    assert cfg.MODEL.DEVICE == "cuda:0"


def test_a_number_of_classes_other_than_the_data_set_has_is_an_error(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    with pytest.raises(ValueError, match=r"NUM_CLASSES: expected 4.*tiny.*got 3"):
        prepare_config(cfg, eval_only=True)


def test_of_a_retinanet_its_own_number_of_classes_counts(cfg):
    cfg.MODEL.META_ARCHITECTURE = "RankingRetinaNet"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES = 3, 4
    prepare_config(cfg, eval_only=True)
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    with pytest.raises(ValueError, match=r"MODEL.RETINANET.NUM_CLASSES: expected 4.*got 3"):
        prepare_config(cfg, eval_only=True)


def test_a_data_set_that_is_not_registered_is_named(cfg):
    cfg.DATASETS.TEST = ("nowhere",)
    with pytest.raises(ValueError, match=r"No data set 'nowhere' .*DATASETS\.DECLARED"):
        prepare_config(cfg, eval_only=False)


def test_given_proposal_files_are_kept(cfg, tiny_data):
    cfg.MODEL.LOAD_PROPOSALS = True
    prepare_config(cfg, eval_only=False)
    expected = (str(tiny_data / "tiny.npz"),)
    assert expected == cfg.DATASETS.PROPOSAL_FILES_TRAIN == cfg.DATASETS.PROPOSAL_FILES_TEST


def test_a_run_that_only_evaluates_needs_no_windows_to_train(cfg):
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.TRAIN = ("nothing_of_that_name",)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = ()
    prepare_config(cfg, eval_only=True)
    assert cfg.DATASETS.PROPOSAL_FILES_TRAIN == ()


def test_training_without_a_data_set_is_an_error(cfg):
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        prepare_config(cfg, eval_only=False)


def test_evaluating_without_a_data_set_is_an_error_unless_it_trains(cfg):
    cfg.DATASETS.TEST = ()
    prepare_config(cfg, eval_only=False)
    with pytest.raises(ValueError, match=r"DATASETS\.TEST"):
        prepare_config(cfg, eval_only=True)


def test_frozen_layers_without_weights_are_an_error_in_training_only(cfg):
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    prepare_config(cfg, eval_only=True)
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS.*FREEZE_AT = 2"):
        prepare_config(cfg, eval_only=False)


def test_pickles_are_read_where_that_is_on(cfg, tmp_path):
    path = tmp_path / "windows.pkl"
    ids = [str(i) for i in range(8)]
    boxes = [np.array([[1, 1, 20, 20]], np.float32) for _ in ids]
    logits = [np.zeros(1, np.float32) for _ in ids]
    content = {"ids": ids, "boxes": boxes, "objectness_logits": logits}
    path.write_bytes(pickle.dumps(content, protocol=2))
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PROPOSAL_FILES_TEST = (str(path),)
    with pytest.raises(ValueError, match=r"windows\.pkl: .*PICKLE_ON True"):
        prepare_config(cfg, eval_only=True)
    cfg.PICKLE_ON = True
    prepare_config(cfg, eval_only=True)
    assert cfg.DATASETS.PROPOSAL_FILES_TEST[0].endswith(".npz")


@pytest.mark.parametrize("key", ["OUTPUT_DIR", "_BASE_"])
def test_a_config_runs_no_code(tmp_path, key):
    bad = f"OUTPUT_DIR: !!python/object/apply:builtins.open ['{tmp_path / 'ran'}', 'w']\n"
    (tmp_path / "bad.yaml").write_text(bad)
    (tmp_path / "leaf.yaml").write_text("_BASE_: bad.yaml\n")
    name = "bad.yaml" if key == "OUTPUT_DIR" else "leaf.yaml"
    with pytest.raises(ValueError, match=rf"python/object/apply.*{name}"):
        load_config(str(tmp_path / name), [])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("configs/OHEM/L_ohem.yaml", "output/OHEM/L_ohem"),
        ("configs/OHEM/L_ohem_07++12.yaml", "output/OHEM/L_ohem_07++12"),
        ("configs/PascalVOC-Detection/Losses/map.yaml", "output/PascalVOC-Detection/Losses/map"),
        ("/elsewhere/configs/of/mine/configs/a.yaml", "output/a"),
        ("/elsewhere/a.yaml", "output/a"),
        ("a.yaml", "output/a"),
        ("configs.yaml", "output/configs"),
        ("", "output"),
    ],
)
def test_the_folder_of_results_follows_from_the_path_of_the_config(path, expected):
    assert default_output_dir(path) == expected


def test_a_folder_of_results_that_is_named_is_taken(tmp_path):
    path = tmp_path / "configs/mine/a.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("SEED: 2\n")
    assert load_config(str(path), []).OUTPUT_DIR == "output/mine/a"
    assert load_config(str(path), ["OUTPUT_DIR", "b"]).OUTPUT_DIR == "b"
    path.write_text("OUTPUT_DIR: c\n")
    assert load_config(str(path), []).OUTPUT_DIR == "c"
    assert load_config(str(path), ["OUTPUT_DIR", "b"]).OUTPUT_DIR == "b"


def test_the_log_says_where_results_go(cfg, caplog):
    cfg.OUTPUT_DIR = "output/mine/a"
    with caplog.at_level("INFO", logger="maploss"):
        prepare_config(cfg, eval_only=False)
    assert "OUTPUT_DIR is 'output/mine/a'" in caplog.text
