# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from maploss.engine import load_config
from maploss.modeling import TimmBackbone
from maploss.modeling.timm_backbone import best_shift, import_timm
from torch.nn import functional as F

import train_net
from tests.tiny import REPOSITORY, SMALLER, arguments, as_list

WEIGHTS = REPOSITORY.parent / "shared/data/weights/tf_efficientnet_lite0_imagenet.pth"
CONFIGS = REPOSITORY / "configs/PascalVOC-Detection"
LITE0 = "tf_efficientnet_lite0"


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.fixture
def reference(timm):
    """The whole classifier, with statistics of BatchNorm and biases that are no identity."""
    torch.manual_seed(0)
    network = timm.create_model(LITE0, pretrained=False).eval()
    for name, value in network.state_dict().items():
        if value.dim() == 1:
            value.copy_(1 + 0.3 * torch.rand_like(value) - 0.15 * ("bias" in name))
    return network


def load_base(name, *opts):
    opts = [
        *as_list(SMALLER),
        "MODEL.WEIGHTS",
        "",
        "MODEL.ROI_HEADS.NAME",
        "SoftmaxROIHeads",
        *opts,
    ]
    return load_config(str(CONFIGS / f"{name}.yaml"), opts)


def load(network, reference):
    names = network.pretrained_names(reference.state_dict())
    state = {names[key]: value for key, value in reference.state_dict().items()}
    own = network.state_dict()
    network.load_state_dict({key: state[key] for key in own})


@pytest.mark.parametrize("names", [["stride16"], ["stride8", "stride32"]])
def test_the_outputs_are_those_of_timm_on_the_padded_image(timm, reference, names):
    backbone = TimmBackbone(LITE0, names)
    load(backbone, reference)
    features = timm.create_model(LITE0, features_only=True).eval()
    features.load_state_dict(reference.state_dict(), strict=False)
    image = torch.randn(2, 3, 64, 96)
    stride = backbone.size_divisibility
    before = best_shift(backbone._out_feature_strides.values())
    with torch.no_grad():
        outputs = backbone(image)
        expected = features(F.pad(image, (before, stride - before, before, stride - before)))
    assert list(outputs) == names
    level = {"stride8": 2, "stride16": 3, "stride32": 4}
    for name in names:
        torch.testing.assert_close(outputs[name], expected[level[name]], rtol=1e-4, atol=1e-4)
    assert expected[3].std() > 0.01


def test_strides_and_channels_are_timms(timm):
    shapes = TimmBackbone(LITE0, ["stride32", "stride8", "stride16"]).output_shape()
    assert list(shapes.items()) == [
        ("stride8", ShapeSpec(channels=40, stride=8)),
        ("stride16", ShapeSpec(channels=112, stride=16)),
        ("stride32", ShapeSpec(channels=320, stride=32)),
    ]


@pytest.mark.parametrize(
    ("names", "offset"),
    [(["stride16"], 0.5), (["stride32"], 0.5), (["stride8", "stride16", "stride32"], 9.5)],
)
@pytest.mark.parametrize("size", [256, 249])
def test_cells_lie_where_roi_pooling_takes_them_to_be(timm, names, offset, size):
    # With the middle of each kernel alone a cell sees one pixel, the centre of what it stands for.
    backbone = TimmBackbone(LITE0, names)
    for param in backbone.parameters():
        middle = param.shape[2] // 2
        torch.nn.init.zeros_(param).data[:, :, middle, middle] = 1 / param.shape[1]
    image = torch.full((1, 3, size, size), 1e-3, requires_grad=True)
    padding = -size % backbone.size_divisibility  # as preprocess_image
    stride = backbone.output_shape()[names[-1]].stride
    cell = 128 // stride
    outputs = backbone(F.pad(image, (0, padding, 0, padding)))
    outputs[names[-1]][0, 0, cell, cell].backward()
    ((row, column),) = image.grad[0, 0].nonzero().tolist()
    assert row == column
    assert column - (cell * stride + (stride - 1) / 2) == offset


def test_the_shift_is_right_for_one_output_and_the_least_bad_for_several():
    assert best_shift([16]) == 7
    assert best_shift([32]) == 15
    assert best_shift([8, 16, 32]) == 6


@pytest.mark.parametrize(
    ("network", "freeze_at", "frozen"),
    [
        (LITE0, 0, []),
        (LITE0, 1, ["conv_stem", "blocks.0"]),
        (LITE0, 3, ["conv_stem", "blocks.0", "blocks.1", "blocks.2"]),
        (LITE0, 5, ["conv_stem", "blocks"]),
        ("resnet18", 1, ["conv1"]),
        ("resnet18", 2, ["conv1", "layer1"]),
        ("convnext_atto", 1, ["stem_0", "stem_1", "stages_0"]),
    ],
)
def test_layers_are_frozen_up_to_the_given_output_and_all_batchnorm(
    timm, network, freeze_at, frozen
):
    backbone = TimmBackbone(network, ["stride16"], freeze_at)
    names = [name.removeprefix("network.") for name, _ in backbone.named_parameters()]
    assert len(names) > 10
    for name, param in backbone.named_parameters():
        is_frozen = name.removeprefix("network.").startswith(tuple(f"{x}." for x in frozen))
        assert param.requires_grad != is_frozen, name
    types = {type(x).__name__ for x in backbone.modules()}
    assert not types & {"BatchNorm2d", "BatchNormAct2d"}


def test_blocks_above_the_last_output_are_not_kept(timm):
    assert len(TimmBackbone(LITE0, ["stride16"]).network.blocks) == 5
    assert len(TimmBackbone(LITE0, ["stride32", "stride8"]).network.blocks) == 7


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "tf_efficientnet_lite9"}, "a network of timm such as tf_efficientnet_lite., got"),
        ({"name": "vit_tiny_patch16_224", "out_features": ["stride4"]}, "some of .*'stride16'"),
        ({"out_features": ["stride64"]}, "some of .*'stride2'.*'stride32'.*got .*stride64"),
        ({"out_features": []}, r"some of .*got \[\]"),
        ({"freeze_at": 6}, "a number from 0 to 5, the outputs of tf_efficientnet_lite0, got 6"),
        ({"freeze_at": -1}, "a number from 0 to 5.*got -1"),
    ],
)
def test_what_timm_does_not_have_is_named(timm, keys, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        TimmBackbone(**{"name": LITE0, "out_features": ["stride16"], **keys})


def test_an_fpn_on_what_is_no_output_is_named(timm):
    cfg = load_base("Base-Faster-RCNN-EfficientNet-Lite0-FPN-VOC2007")
    cfg.MODEL.FPN.IN_FEATURES = ["stride4"]
    with pytest.raises(ValueError, match=r"FPN\.IN_FEATURES: expected some .*'stride8'.*stride4"):
        build_backbone(cfg)


def test_without_timm_there_is_one_line(tiny_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"expected the package timm \(pip install -e '\.\[timm\]"):
        import_timm(LITE0)
    args = arguments(tiny_data, "output", MODEL__BACKBONE__NAME="build_timm_backbone")
    with pytest.raises(
        SystemExit, match=r"\Aerror: MODEL.TIMM.NAME tf_.* expected the package.*\Z"
    ):
        train_net.main(default_argument_parser().parse_args(args))


@pytest.mark.parametrize(
    "config",
    [
        "Base-EfficientNet-Lite0-VOC2007-mini",
        "Base-Faster-RCNN-EfficientNet-Lite0-FPN-VOC2007",
    ],
)
def test_weights_with_timms_names_fill_the_whole_backbone(reference, config):
    model = build_model(load_base(config))
    incompatible = model.load_state_dict(reference.state_dict(), strict=False)
    network = getattr(model.backbone, "bottom_up", model.backbone).network
    expected = reference.state_dict()
    assert len(network.state_dict()) > 100
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert not [key for key in incompatible.missing_keys if ".network." in key]
    assert not incompatible.unexpected_keys
    assert not any(param.requires_grad for param in network.parameters())


def test_network_and_outputs_are_those_of_the_config(timm):
    cfg = load_base("Base-EfficientNet-Lite0-VOC2007-mini", "MODEL.TIMM.NAME", "resnet18")
    cfg.MODEL.TIMM.OUT_FEATURES = ["stride8", "stride32"]
    assert build_backbone(cfg).output_shape() == {
        "stride8": ShapeSpec(channels=128, stride=8),
        "stride32": ShapeSpec(channels=512, stride=32),
    }


def test_the_fpn_has_a_level_for_each_output_and_one_more(timm):
    model = build_model(load_base("Base-Faster-RCNN-EfficientNet-Lite0-FPN-VOC2007"))
    shapes = model.backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {
        "p3": 8,
        "p4": 16,
        "p5": 32,
        "p6": 64,
    }
    with torch.no_grad():
        outputs = model.backbone(torch.zeros(1, 3, 64, 96))
    for name, shape in shapes.items():
        assert abs(outputs[name].shape[3] - 96 / shape.stride) <= 32 / shape.stride


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no ImageNet weights beside the repository")
def test_the_imagenet_weights_are_those_of_the_configs(timm):
    model = build_model(load_base("Base-EfficientNet-Lite0-VOC2007-mini"))
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu"), strict=False)
    image = torch.rand(1, 3, 128, 128) * 255
    with torch.no_grad():
        inputs = model.preprocess_image([{"image": image[0]}])
        features = model.backbone(inputs.tensor)["stride16"]
    assert inputs.tensor.abs().max() <= 1
    assert 0.1 < features.std() < 10


def test_a_run_with_the_cache_is_the_run_without(timm, tiny_data, monkeypatch):
    seen = []
    after_step = train_net.Trainer.after_step

    def watch(trainer):
        seen.append(trainer.storage.history("total_loss").latest())
        after_step(trainer)

    monkeypatch.setattr(train_net.Trainer, "after_step", watch)
    torch.manual_seed(0)
    weights = tiny_data / "lite0.pth"
    torch.save(timm.create_model(LITE0).state_dict(), weights)
    keys = {
        "MODEL__BACKBONE__NAME": "build_timm_backbone",
        "MODEL__BACKBONE__FREEZE_AT": 5,
        "MODEL__ROI_HEADS__IN_FEATURES": ["stride16"],
        "MODEL__WEIGHTS": weights,
        "MODEL__PIXEL_MEAN": [127.5] * 3,
        "MODEL__PIXEL_STD": [127.5] * 3,
        "INPUT__FORMAT": "RGB",
        "SOLVER__MAX_ITER": 3,
    }
    for cache in ("''", Path(tiny_data) / "features"):
        args = arguments(tiny_data, "output", **keys, DATALOADER__FEATURE_CACHE__FOLDER=cache)
        train_net.main(default_argument_parser().parse_args(args))
    assert seen[3:] == pytest.approx(seen[:3], rel=2e-3)
