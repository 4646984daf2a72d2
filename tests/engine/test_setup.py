# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from maploss.engine import load_config, prepare_config


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


@pytest.mark.parametrize("key", ["OUTPUT_DIR", "_BASE_"])
def test_a_config_runs_no_code(tmp_path, key):
    bad = f"OUTPUT_DIR: !!python/object/apply:builtins.open ['{tmp_path / 'ran'}', 'w']\n"
    (tmp_path / "bad.yaml").write_text(bad)
    (tmp_path / "leaf.yaml").write_text("_BASE_: bad.yaml\n")
    name = "bad.yaml" if key == "OUTPUT_DIR" else "leaf.yaml"
    with pytest.raises(ValueError, match=rf"python/object/apply.*{name}"):
        load_config(str(tmp_path / name), [])
    assert not (tmp_path / "ran").exists()
