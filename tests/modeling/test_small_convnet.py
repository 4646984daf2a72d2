# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.modeling import SmallConvNet


def test_the_output_has_the_announced_name_channels_and_stride():
    backbone = SmallConvNet(channels=(4, 8), strides=(2, 2), norm="")
    shape = backbone.output_shape()["conv2"]
    assert (shape.channels, shape.stride) == (8, 4)
    assert backbone(torch.zeros(2, 3, 30, 41))["conv2"].shape == (2, 8, 8, 11)


def test_normalisation_replaces_the_bias():
    backbone = SmallConvNet(channels=(32,), strides=(1,))
    assert isinstance(backbone.stages[0].norm, torch.nn.GroupNorm)
    assert backbone.stages[0].bias is None


@pytest.mark.parametrize(("channels", "strides"), [((4, 8), (2,)), ((), ())])
def test_strides_that_do_not_fit_the_stages_are_named(channels, strides):
    with pytest.raises(ValueError, match="strides"):
        SmallConvNet(channels=channels, strides=strides)
