# SPDX-License-Identifier: Apache-2.0
import hashlib
import logging
import sys
import types
from urllib.error import URLError

import pytest
import torch
import torchvision
from detectron2.utils.file_io import PathManager
from maploss.engine import prepare_config, weights_input
from maploss.engine.weights_input import check_weights_input, known_inputs, torchvision_entry

NAME = "torchvision://SqueezeNet1_0_Weights.IMAGENET1K_V1"
CAFFE = ("BGR", [104.0, 117.0, 123.0], [1.0, 1.0, 1.0])
IMAGENET = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


@pytest.fixture
def cfg(tiny_cfg, monkeypatch):
    """Of a SqueezeNet; nothing is downloaded."""
    tiny_cfg.MODEL.BACKBONE.NAME = "build_squeezenet_backbone"
    monkeypatch.setattr(PathManager, "get_local_path", lambda path, **_: path)
    return tiny_cfg


def feed(cfg, image_format, mean, std):
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = image_format, mean, std


def save(path, *names):
    torch.save({name: torch.ones(2) for name in names}, path)
    return str(path)


def test_weights_by_a_name_of_torchvision_want_torchvisions_input(cfg):
    cfg.MODEL.WEIGHTS = NAME
    feed(cfg, *IMAGENET)
    check_weights_input(cfg)
    feed(cfg, *CAFFE)
    with pytest.raises(ValueError, match=r"SqueezeNet1_0_Weights\.IMAGENET1K_V1") as caught:
        check_weights_input(cfg)
    right = 'INPUT.FORMAT RGB MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]" MODEL.PIXEL_STD'
    assert f'{right} "[58.395, 57.12, 57.375]", got BGR [104.0' in str(caught.value)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_each_of_the_three_keys_alone_is_enough_to_be_wrong(cfg, wrong):
    cfg.MODEL.WEIGHTS = NAME
    feed(cfg, *(CAFFE[i] if i == wrong else IMAGENET[i] for i in range(3)))
    with pytest.raises(ValueError, match=r"expect INPUT\.FORMAT RGB"):
        check_weights_input(cfg)


def test_features_of_vgg16_have_a_normalisation_of_their_own():
    (known,) = known_inputs("torchvision://VGG16_Weights.IMAGENET1K_FEATURES")
    assert known.std == pytest.approx((1, 1, 1))
    assert known.mean == pytest.approx((123, 117, 104), abs=0.01)


def test_a_file_of_torchvision_is_known_by_its_bytes_whatever_its_name(cfg, tmp_path, monkeypatch):
    path = save(tmp_path / "renamed.pth", "features.0.weight", "features.3.squeeze.weight")
    digits = hashlib.sha256((tmp_path / "renamed.pth").read_bytes()).hexdigest()[:8]
    assert torchvision_entry(path) is None
    entry = types.SimpleNamespace(url=f"https://x/squeezenet1_0-{digits}.pth")
    entry.transforms = torchvision.models.SqueezeNet1_0_Weights.DEFAULT.transforms
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda model: [entry])
    cfg.MODEL.WEIGHTS = path
    feed(cfg, *IMAGENET)
    check_weights_input(cfg)
    feed(cfg, *CAFFE)
    with pytest.raises(ValueError, match=r"renamed\.pth: torchvision's"):
        check_weights_input(cfg)


def test_other_weights_with_torchvisions_names_get_what_the_config_says_and_a_line(
    cfg, tmp_path, caplog
):
    """Such as a SqueezeNet converted from Caffe."""
    caplog.set_level(logging.INFO)
    cfg.MODEL.WEIGHTS = save(tmp_path / "w.pth", "features.0.weight", "features.3.squeeze.weight")
    for values in (CAFFE, IMAGENET):
        caplog.clear()
        feed(cfg, *values)
        check_weights_input(cfg)
        assert "what input they were trained with is not known" in caplog.text
        assert f"They get {values[0]}, minus {values[1]}" in caplog.text


@pytest.mark.parametrize("names", [["conv1_1.weight"], ["conv1.weight", "fc6.weight"]])
def test_names_of_caffe_want_bgr_minus_the_mean(cfg, tmp_path, names):
    cfg.MODEL.WEIGHTS = save(tmp_path / "w.pth", *names)
    feed(cfg, "BGR", [102.98, 115.947, 122.772], [1.0, 1.0, 1.0])
    check_weights_input(cfg)
    feed(cfg, *IMAGENET)
    with pytest.raises(ValueError, match=r"weights with Caffe's names expect INPUT\.FORMAT BGR"):
        check_weights_input(cfg)


def test_a_network_of_timm_wants_what_one_of_its_weights_wants(cfg, tmp_path, monkeypatch):
    means = {"net": (0.5,) * 3, "net.other": (0.485, 0.456, 0.406)}
    timm = types.ModuleType("timm")
    timm.is_model = lambda name: True
    timm.list_models = lambda *_, **__: ["net.other", "net_b.x"]
    timm.get_pretrained_cfg = lambda x: types.SimpleNamespace(mean=means[x], std=(0.5,) * 3)
    monkeypatch.setitem(sys.modules, "timm", timm)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_fpn_backbone", "net"
    cfg.MODEL.WEIGHTS = save(tmp_path / "w.pth", "conv_stem.weight")
    half = [127.5] * 3
    for mean in (half, IMAGENET[1]):
        feed(cfg, "RGB", mean, half)
        check_weights_input(cfg)
    feed(cfg, "BGR", half, half)
    with pytest.raises(ValueError, match=r"timm's weights of net expect INPUT.FORMAT RGB .*127\.5"):
        check_weights_input(cfg)


def test_a_checkpoint_of_a_detector_is_not_asked_for_its_input(cfg, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = {"backbone.conv1_1.weight": torch.ones(1)}
    torch.save({"model": names}, tmp_path / "model_final.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    check_weights_input(cfg)
    assert not caplog.records


def test_a_file_that_is_none_is_left_to_the_loader(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"nothing")
    assert known_inputs(str(tmp_path / "w.pth")) == []
    assert known_inputs(str(tmp_path / "none.pth")) == []


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        ("build_squeezenet_backbone", r"torchvision://SqueezeNet1_0_Weights.*squeezenet1_0-b66bff"),
        ("build_plain_convnet_backbone", r"torchvision://VGG16_Weights.*PIXEL_MEAN"),
        ("build_timm_backbone", r"timm\.create_model\('tf_efficientnet_lite0', pretrained=True\)"),
        ("build_resnet_fpn_backbone", r"detectron2://ImageNetPretrained"),
    ],
)
def test_missing_weights_are_told_with_how_to_get_them(data_cfg, backbone, says, monkeypatch):
    monkeypatch.setattr("maploss.engine.setup.import_timm", lambda name: None)
    data_cfg.MODEL.BACKBONE.NAME, data_cfg.MODEL.BACKBONE.FREEZE_AT = backbone, 2
    with pytest.raises(ValueError, match=f"MODEL.WEIGHTS: expected a file.*{says}"):
        prepare_config(data_cfg, eval_only=False)
    data_cfg.MODEL.WEIGHTS = "/nowhere/w.pth"
    with pytest.raises(FileNotFoundError, match=rf"Checkpoint not found: /nowhere/w\.pth.*{says}"):
        prepare_config(data_cfg, eval_only=False)


def test_a_download_that_fails_is_told_with_the_address(monkeypatch):
    def fail(self, path, force=False, **_):
        raise URLError("no network")

    handler = PathManager._PathManager__get_path_handler("https://x")
    monkeypatch.setattr(type(handler), "_get_local_path", fail)
    with pytest.raises(OSError, match=r"cannot download https://download.*b66bff10\.pth .*copy it"):
        PathManager.get_local_path(NAME)


def test_weights_of_detectron2_are_known_by_their_path():
    assert weights_input.known_inputs("detectron2://ImageNetPretrained/MSRA/R-50.pkl")[0].mean == (
        103.53,
        116.28,
        123.675,
    )
