# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from maploss.engine.preserve_loss_buffers import preserve_loss_buffers
from maploss.layers import ParameterizedAPLoss, control_points
from torch import nn


def make(points=None, scale=1.0):
    return nn.ModuleDict({"loss": ParameterizedAPLoss(points=points, gradient_scale=scale)})


@pytest.mark.parametrize("is_scale", [False, True])
def test_a_run_trains_with_the_loss_of_its_config_and_says_so(is_scale, caplog):
    points = control_points(torch.rand(5, 8, dtype=torch.float64))
    model = make(points, 2.0)
    other = make(points, 3.0) if is_scale else make(points.flip(0), 2.0)
    with caplog.at_level(logging.WARNING), preserve_loss_buffers(model):
        model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model["loss"].points, points)
    assert model["loss"].gradient_scale == 2.0
    assert "loss: the weights were trained with other functions" in caplog.text


def test_nothing_is_said_of_the_same_loss(caplog):
    model = make(scale=2.0)
    with caplog.at_level(logging.WARNING), preserve_loss_buffers(model):
        model.load_state_dict(make(scale=2.0).state_dict())
    assert caplog.text == ""
