# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from maploss.modeling import SqueezeNet
from maploss.modeling.squeezenet import CONV1_PADDING
from torchvision.models import squeezenet1_0

WEIGHTS = (
    Path(__file__).resolve().parents[3]
    / "shared/data/weights/squeezenet1_0_imagenet_deepcompressed.pth"
)


@pytest.fixture
def squeezenet_cfg(tiny_cfg):
    tiny_cfg.MODEL.BACKBONE.NAME = "build_squeezenet_backbone"
    tiny_cfg.MODEL.SQUEEZENET.OUT_FEATURES = ["fire9"]
    tiny_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["fire9"]
    return tiny_cfg


def test_the_outputs_are_those_of_torchvision_but_for_the_padding_of_conv1():
    torch.manual_seed(0)
    reference = squeezenet1_0(weights=None).features
    reference[0].padding = (CONV1_PADDING, CONV1_PADDING)
    backbone = SqueezeNet(["conv1", "fire4", "fire8", "fire9"])
    backbone.features.load_state_dict(reference.state_dict())
    image = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        outputs = backbone(image)
        assert torch.equal(outputs["conv1"], reference[:2](image))
        assert torch.equal(outputs["fire4"], reference[:6](image))
        assert torch.equal(outputs["fire8"], reference[:11](image))
        assert torch.equal(outputs["fire9"], reference(image))


@pytest.mark.parametrize("size", [(64, 96), (375, 500), (33, 47)])
def test_strides_and_channels_are_as_announced_and_the_maps_cover_the_image(size):
    names = ["fire2", "fire4", "fire5", "fire8", "fire9"]
    backbone = SqueezeNet(names)
    shapes = backbone.output_shape()
    assert [shapes[name].stride for name in names] == [4, 4, 8, 8, 16]
    outputs = backbone(torch.zeros(1, 3, *size))
    for name in names:
        _, channels, height, width = outputs[name].shape
        stride = shapes[name].stride
        assert channels == shapes[name].channels
        assert abs(height - size[0] / stride) < 2
        assert abs(width - size[1] / stride) < 2


@pytest.mark.parametrize(("name", "expected"), [("fire4", -1.5), ("fire8", 0.5), ("fire9", 4.5)])
def test_cells_lie_where_roi_pooling_takes_them_to_be(name, expected):
    # The gradient of one cell is centred on that cell's centre if all weights are alike.
    backbone = SqueezeNet([name])
    for module in backbone.modules():
        if isinstance(module, torch.nn.MaxPool2d):
            # For the mean, each input counts; the geometry is the same.
            module.forward = lambda x: torch.nn.functional.avg_pool2d(x, 3, 2, ceil_mode=True)
    for param in backbone.parameters():
        torch.nn.init.constant_(param, 0.01)
    image = torch.ones(1, 3, 300, 300, requires_grad=True)
    stride = backbone.output_shape()[name].stride
    cell = 144 // stride
    backbone(image)[name][0, 0, cell, cell].backward()
    weight = image.grad[0, 0].sum(0)
    center = (weight * torch.arange(300)).sum() / weight.sum()
    assert center.item() - (cell * stride + (stride - 1) / 2) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("freeze_at", "first_free"), [(0, 0), (1, 3), (2, 4), (5, 8), (9, 99)])
def test_layers_are_frozen_up_to_the_given_one(freeze_at, first_free):
    backbone = SqueezeNet(["fire9"], freeze_at)
    for name, param in backbone.named_parameters():
        assert param.requires_grad == (int(name.split(".")[1]) >= first_free), name


def test_layers_above_the_last_output_are_not_built():
    assert len(SqueezeNet(["fire4"]).features) == 6
    assert not any(p.requires_grad for p in SqueezeNet(["fire4"], freeze_at=9).parameters())


@pytest.mark.parametrize("names", [["fire1"], []])
def test_unknown_outputs_are_named(names):
    with pytest.raises(ValueError, match=r"out_features.*fire9"):
        SqueezeNet(names)


@pytest.mark.parametrize("freeze_at", [-1, 10])
def test_freeze_at_out_of_range_is_named(freeze_at):
    with pytest.raises(ValueError, match=rf"freeze_at.*{freeze_at}"):
        SqueezeNet(["fire9"], freeze_at)


def test_weights_with_torchvision_names_load_into_the_backbone(squeezenet_cfg, tmp_path):
    path = str(tmp_path / "weights.pth")
    reference = squeezenet1_0(weights=None).state_dict()
    torch.save(reference, path)
    model = build_model(squeezenet_cfg)
    DetectionCheckpointer(model).load(path)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, reference[key]), key


def test_a_checkpoint_of_the_whole_model_loads_as_ever(squeezenet_cfg, tmp_path):
    torch.manual_seed(0)
    model = build_model(squeezenet_cfg)
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    other = build_model(squeezenet_cfg)
    DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_weights_of_another_network_are_an_error(squeezenet_cfg):
    with pytest.raises(ValueError, match=r"stem\.conv1\.weight"):
        build_model(squeezenet_cfg).load_state_dict({"stem.conv1.weight": torch.zeros(1)})


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no ImageNet weights beside the repository")
def test_the_imagenet_weights_fill_the_whole_backbone(squeezenet_cfg):
    model = build_model(squeezenet_cfg)
    given = torch.load(WEIGHTS, map_location="cpu")
    incompatible = model.load_state_dict(given, strict=False)
    loaded = [
        key
        for key in model.backbone.state_dict()
        if torch.equal(model.backbone.state_dict()[key], given[key])
    ]
    assert len(loaded) == 50
    assert not [key for key in incompatible.missing_keys if key.startswith("backbone.")]
    assert not incompatible.unexpected_keys
