# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from maploss.engine import load_config, load_for_evaluation, training_records
from maploss.modeling import post_hoc_svm
from maploss.modeling.post_hoc_svm import ImageFeatures, extract_features, train_svms

pytest.importorskip("sklearn")
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from maploss.data.mapper import MAPDatasetMapper

D = 6


def make_image(rng, center, num_hard=0):
    """An object of class 0 around `center`, and windows over nothing: many easy, some hard."""
    easy = rng.normal(0, 1, (40, D)) - 4
    hard = rng.normal(0, 0.3, (num_hard, D)) + 0.5 * center
    windows = np.concatenate([easy, hard]).astype(np.float32)
    objects = (center + rng.normal(0, 0.5, (1, D))).astype(np.float32)
    iou = np.zeros((len(windows), 1), np.float32)
    return ImageFeatures(windows, objects, np.array([0]), iou)


def make_images(num_hard=0, num=60):
    rng = np.random.default_rng(0)
    center = np.full(D, 4.0)
    return [make_image(rng, center, num_hard if i > num // 2 else 0) for i in range(num)]


def test_objects_score_above_the_other_windows():
    images = make_images()
    weight, bias = train_svms(lambda: images, 2)
    assert weight.shape == (2, D)
    objects = np.concatenate([x.gt_features for x in images]) @ weight[0] + bias[0]
    others = np.concatenate([x.features for x in images]) @ weight[0] + bias[0]
    assert objects.min() > others.max()
    assert not weight[1].any()  # no object of this class
    assert bias[1] == -1


def test_negatives_that_score_high_are_learned_from_and_easy_ones_forgotten():
    images = make_images(num_hard=200)
    easy = np.concatenate([x.features[:40] for x in images])
    hard = np.concatenate([x.features[40:] for x in images])
    svm = post_hoc_svm._ClassSVM(np.concatenate([x.gt_features for x in images]), easy, 1.0)
    assert np.median(hard @ svm.weight + svm.bias) > -0.5
    svm.mine(hard[:100])
    assert len(np.concatenate(svm.negatives)) == len(easy) + 100  # too few to learn anew
    svm.mine(hard)
    assert np.median(hard @ svm.weight + svm.bias) < -0.9
    assert len(svm.negatives[0]) < len(hard) + 200


def test_hard_windows_that_were_no_first_negatives_are_found_and_learned_from(monkeypatch):
    monkeypatch.setattr(post_hoc_svm, "_FIRST_NEGATIVES", 20)
    images = make_images(num_hard=200)
    # The first negatives, one of each image, come from its easy half.
    monkeypatch.setattr(np.random, "default_rng", lambda _: InOrder())
    hard = np.concatenate([x.features[40:] for x in images])
    weight, bias = train_svms(lambda: images, 1)
    assert np.median(hard @ weight[0] + bias[0]) < -0.9
    # Without a single one among those mined, they look like objects.
    easy = [ImageFeatures(x.features[:40], x.gt_features, x.gt_classes, x.iou[:40]) for x in images]
    weight, bias = train_svms(lambda: easy, 1)
    assert np.median(hard @ weight[0] + bias[0]) > -0.5


class InOrder:
    def permutation(self, inds):
        return inds


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_size_of_the_features_does_not_matter(scale):
    images = make_images()
    larger = [
        ImageFeatures(x.features * scale, x.gt_features * scale, x.gt_classes, x.iou)
        for x in images
    ]
    weight, bias = train_svms(lambda: images, 1)
    scaled_weight, scaled_bias = train_svms(lambda: larger, 1)
    np.testing.assert_allclose(scaled_weight * scale, weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scaled_bias, bias, rtol=1e-3)


def test_a_window_is_a_negative_of_a_class_only_if_it_overlaps_none_of_its_objects():
    iou = np.array([[0.29, 0.0, 0.9], [0.3, 0.0, 0.0], [0.0, 0.5, 0.0]])
    image = ImageFeatures(np.zeros((3, D)), np.zeros((3, D)), np.array([1, 1, 2]), iou)
    assert image.is_negative(0).tolist() == [True, True, True]
    assert image.is_negative(1).tolist() == [True, False, False]
    assert image.is_negative(2).tolist() == [False, True, True]


def test_without_images_there_is_nothing_to_learn():
    with pytest.raises(ValueError, match="expected some windows, got none"):
        train_svms(lambda: [], 2)


@pytest.fixture
def trained_cfg(data_cfg, tmp_path):
    data_cfg.MODEL.ROI_HEADS.NAME = "SoftmaxROIHeads"
    data_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    data_cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.manual_seed(0)
    torch.save({"model": build_model(data_cfg).state_dict()}, data_cfg.MODEL.WEIGHTS)
    (tmp_path / "config.yaml").write_text(data_cfg.dump())
    return data_cfg


def test_features_are_those_of_windows_and_objects_in_their_order(trained_cfg):
    (record,) = training_records(trained_cfg)[:1]
    trained_cfg.INPUT.RANDOM_FLIP = "none"
    inputs = MAPDatasetMapper(trained_cfg, is_train=True)(record)
    (image,) = extract_features(build_model(trained_cfg), [inputs])
    # The first three windows are the objects (of which the third is difficult).
    assert image.features.shape == (20, 8)
    assert len(image.gt_features) == len(image.gt_classes) == 2
    np.testing.assert_allclose(image.gt_features, image.features[:2], atol=1e-5)
    np.testing.assert_allclose(image.iou[[0, 1], [0, 1]], 1, atol=1e-5)


def test_the_tool_writes_a_detector_with_the_svms_and_the_box_regression(
    trained_cfg, tmp_path, call_tool
):
    output = tmp_path / "svm"
    config = str(tmp_path / "config.yaml")
    _, out, _ = call_tool("train_svm", "--config-file", config, "--output", str(output))
    assert "4 SVMs" in out
    cfg = load_config(str(output / "config.yaml"), [])
    assert cfg.MODEL.ROI_HEADS.NAME == "MAPROIHeads"
    model = build_model(cfg)
    load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=False)
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (4, 8)
    assert model.roi_heads.box_predictor.bbox_pred is not None


def test_a_model_that_is_not_there_ends_the_tool_with_one_line(trained_cfg, tmp_path, call_tool):
    arguments = ("--config-file", str(tmp_path / "config.yaml"), "--output", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^error: Checkpoint not found: .*gone\.pth$"):
        call_tool("train_svm", *arguments, "--opts", "MODEL.WEIGHTS", str(tmp_path / "gone.pth"))


def test_a_broken_image_or_windows_of_an_rpn_end_the_tool_with_one_line(
    trained_cfg, tmp_path, call_tool
):
    config = str(tmp_path / "config.yaml")
    arguments = ("--config-file", config, "--output", str(tmp_path / "svm"))
    with pytest.raises(SystemExit, match=r"^error: MODEL\.LOAD_PROPOSALS: expected True"):
        call_tool("train_svm", *arguments, "--opts", "MODEL.LOAD_PROPOSALS", "False")
    (record, *_) = DatasetCatalog.get(trained_cfg.DATASETS.TRAIN[0])
    Path(record["file_name"]).write_bytes(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"^error: Cannot read image .*: "):
        call_tool("train_svm", *arguments)
