# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from maploss.engine import load_config
from maploss.modeling import PlainConvNet
from maploss.modeling.plain_convnet import NETWORKS
from torch import nn
from torchvision.models import alexnet, vgg16
from torchvision.ops import roi_pool

from tests.tiny import REPOSITORY, SMALLER, as_list


def convolutions(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def take(backbone, reference):
    names = backbone.pretrained_names([f"features.{key}" for key in reference.state_dict()])
    values = {names[f"features.{key}"]: value for key, value in reference.state_dict().items()}
    backbone.load_state_dict(values)


def test_vgg16_has_the_features_of_torchvision_before_the_last_pooling():
    torch.manual_seed(0)
    reference = vgg16(weights=None).features
    backbone = PlainConvNet("vgg16")
    take(backbone, reference)
    image = torch.randn(2, 3, 70, 101)
    with torch.no_grad():
        expected = reference[:-1](image)
        (actual,) = backbone(image).values()
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_alexnet_has_the_features_of_torchvision_but_for_the_padding():
    torch.manual_seed(0)
    reference = alexnet(weights=None).features
    reference[0].padding = (5, 5)
    reference[2].padding = reference[5].padding = 1
    backbone = PlainConvNet("alexnet")
    take(backbone, reference)
    image = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)["conv5"], reference[:-1](image))


def test_windows_are_pooled_as_by_torchvisions_roi_pool():
    cfg = load_config(str(REPOSITORY / "configs/Fast-RCNN/L.yaml"), as_list(SMALLER))
    pooler = build_model(cfg).roi_heads.pooler
    features = torch.randn(2, 512, 20, 30)
    boxes = [
        torch.tensor([[8.0, 0, 200, 150], [100, 30, 480, 320]]),
        torch.tensor([[3.0, 4, 9, 10]]),
    ]
    actual = pooler([features], [Boxes(x) for x in boxes])
    assert torch.equal(actual, roi_pool(features, boxes, (7, 7), spatial_scale=1 / 16))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_strides_and_channels_are_as_announced_and_the_maps_cover_the_image(network, size):
    backbone = PlainConvNet(network)
    shape = backbone.output_shape()["conv5"]
    _, channels, *cells = backbone(torch.zeros(1, 3, *size))["conv5"].shape
    assert channels == shape.channels
    assert shape.stride == 16
    assert all(abs(n - length / 16) < 1 for n, length in zip(cells, size, strict=True))


@pytest.mark.parametrize(
    ("network", "expected"),
    [("alexnet", 0), ("caffenet", 0), ("vgg_cnn_m_1024", 0), ("vgg16", 7.5)],
)
def test_cells_look_at_the_pixels_where_roi_pooling_takes_them_to_be(network, expected):
    # The centre of gravity of what a cell sees, if all layers take means.
    layers = []
    for layer in PlainConvNet(network).children():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            kernel, stride, padding = (
                x[0] if isinstance(x, tuple) else x
                for x in (layer.kernel_size, layer.stride, layer.padding)
            )
            layers.append(nn.AvgPool2d(kernel, stride, padding))
    image = torch.zeros(1, 1, 256, 256, requires_grad=True)
    nn.Sequential(*layers)(image)[0, 0, 8, 8].backward()
    seen = image.grad[0, 0].sum(dim=1)
    centre = float((seen * torch.arange(256)).sum() / seen.sum())
    assert centre == pytest.approx(16 * 8 + expected, abs=1e-3)


def test_the_layers_of_caffe_have_their_groups_norms_and_shapes():
    caffenet = {k: tuple(v.shape) for k, v in PlainConvNet("caffenet").state_dict().items()}
    assert caffenet["conv2.weight"] == (256, 48, 5, 5)
    assert caffenet["conv5.weight"] == (256, 192, 3, 3)
    medium = PlainConvNet("vgg_cnn_m_1024")
    assert tuple(medium.conv2.weight.shape) == (256, 96, 5, 5)
    # Caffe: x / (k + alpha / n * sum of x^2 over n channels)^beta
    x = torch.rand(1, 96, 2, 2) * 30
    sums = torch.stack([x[:, max(i - 2, 0) : i + 3].square().sum(1) for i in range(96)], 1)
    torch.testing.assert_close(medium.norm1(x), x / (2 + 5e-4 / 5 * sums) ** 0.75)
    torch.testing.assert_close(PlainConvNet("caffenet").norm1(x), x / (1 + 2e-5 * sums) ** 0.75)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_freezing_ends_below_the_named_block(network, freeze_at):
    backbone = PlainConvNet(network, freeze_at)
    for name, param in backbone.named_parameters():
        assert param.requires_grad == (int(name[4]) > freeze_at), name


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match=r"network: expected one of .*'vgg16'.*, got 'vgg19'"):
        PlainConvNet("vgg19")
    with pytest.raises(ValueError, match="freeze_at: expected 0 to 5, got 6"):
        PlainConvNet("alexnet", 6)


@pytest.fixture
def alexnet_cfg(tiny_cfg):
    tiny_cfg.MODEL.BACKBONE.NAME = "build_plain_convnet_backbone"
    tiny_cfg.MODEL.BACKBONE.FREEZE_AT = 1
    tiny_cfg.MODEL.PLAIN_CONVNET.NETWORK = "alexnet"
    tiny_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["conv5"]
    tiny_cfg.MODEL.ROI_BOX_HEAD.NAME = "FullyConnectedHead"
    tiny_cfg.MODEL.ROI_BOX_HEAD.FULLY_CONNECTED.DIMS = [6, 5]
    return tiny_cfg


def classifier(names, fc6=(6, 256 * 2 * 2), fc7=(5, 6)):
    """Random weights of AlexNet with narrow fc6 and fc7, under torchvision's or Caffe's names."""
    shapes = [v.shape for v in alexnet(weights=None).features.state_dict().values()]
    for fc in (fc6, fc7, (1000, fc7[0])):
        shapes += [fc, fc[:1]]
    if names == "torchvision":
        layers = [
            *(f"features.{i}" for i in (0, 3, 6, 8, 10)),
            *(f"classifier.{i}" for i in (1, 4, 6)),
        ]
    else:
        layers = [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]
    keys = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    return {key: torch.randn(shape) for key, shape in zip(keys, shapes, strict=True)}


@pytest.mark.parametrize("names", ["torchvision", "caffe"])
def test_fc6_and_fc7_of_a_classifier_become_the_box_head(alexnet_cfg, names):
    model = build_model(alexnet_cfg)
    weights = classifier(names)
    model.load_state_dict(dict(weights), strict=False)
    values = list(weights.values())
    assert torch.equal(model.backbone.conv1.weight, values[0])
    assert torch.equal(model.backbone.conv5.bias, values[9])
    assert torch.equal(model.roi_heads.box_head.fc6.weight, values[10])
    assert torch.equal(model.roi_heads.box_head.fc7.bias, values[13])
    assert model.roi_heads.box_predictor.cls_score.out_features == 4


def test_all_weights_that_do_not_fit_are_named_with_both_shapes(alexnet_cfg):
    model = build_model(alexnet_cfg)
    weights = classifier("torchvision", fc6=(6, 256 * 6 * 6), fc7=(7, 6))
    with pytest.raises(ValueError, match="weights of other shapes") as error:
        model.load_state_dict(weights, strict=False)
    for line in (
        r"fc6.weight (classifier.1.weight): expected (6, 1024), got (6, 9216)",
        r"fc7.weight (classifier.4.weight): expected (5, 6), got (7, 6)",
        r"fc7.bias (classifier.4.bias): expected (5,), got (7,)",
    ):
        assert line in str(error.value)
    assert "conv1" not in str(error.value)
