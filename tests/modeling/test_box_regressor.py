# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from maploss.modeling.box_regressor import BoxRegressor, box_deltas

K = 3
WINDOWS = torch.tensor([[10.0, 20, 30, 60], [0, 0, 10, 10], [5, 5, 25, 15]], dtype=torch.float64)
BOXES = torch.tensor([[12.0, 16, 32, 76], [0, 0, 10, 20], [5, 5, 25, 15]], dtype=torch.float64)


def make(num_boxes=K, loss_weight=1.0):
    torch.manual_seed(0)
    return BoxRegressor(7, num_boxes, loss_weight=loss_weight).double()


def normalised(regressor):
    shape = regressor.target_mean.shape
    regressor.set_targets(torch.rand(shape), torch.rand(shape) + 0.5)
    return regressor


def test_deltas_are_those_of_rcnn():
    # Centre (20, 40) to (22, 46) in a window of 20 x 40; sizes 20 x 40 to 20 x 60.
    expected = [[2 / 20, 6 / 40, 0, math.log(60 / 40)], [0, 5 / 10, 0, math.log(2)], [0] * 4]
    torch.testing.assert_close(box_deltas(WINDOWS, BOXES), torch.tensor(expected).double())


def test_outputs_that_hit_their_targets_give_the_boxes_and_no_loss():
    regressor = normalised(make())
    classes = torch.tensor([2, 0, 1])
    deltas = torch.randn(3, K, 4, dtype=torch.float64)
    rows = torch.arange(3)
    wanted = box_deltas(WINDOWS, BOXES)
    mean, std = regressor.target_mean[classes], regressor.target_std[classes]
    deltas[rows, classes] = (wanted - mean) / std
    outputs = deltas.flatten(1)
    assert regressor.losses(outputs, WINDOWS, BOXES, classes, K).abs().max() < 1e-12
    boxes = regressor.boxes(outputs, WINDOWS)
    assert boxes.shape == (3, K, 4)
    torch.testing.assert_close(boxes[rows, classes], BOXES.float())


@pytest.mark.parametrize("num_boxes", [K, 1])
def test_loss_and_gradient_are_smooth_l1_on_normalised_targets(num_boxes):
    regressor = normalised(make(num_boxes, loss_weight=2.0))
    outputs = 2 * torch.randn(3, 4 * num_boxes, dtype=torch.float64)
    outputs.requires_grad_()
    classes = torch.tensor([2, K, 0])  # the second is background
    losses = regressor.losses(outputs, WINDOWS, BOXES, classes, K)
    losses.mean().backward()
    total, gradient = [0.0] * 3, torch.zeros(3, num_boxes, 4, dtype=torch.float64)
    for row, own in ((0, 2), (2, 0)):
        own = own if num_boxes > 1 else 0
        mean, std = regressor.target_mean[own], regressor.target_std[own]
        target = (box_deltas(WINDOWS, BOXES)[row] - mean) / std
        for i in range(4):
            x = float(outputs[row].detach().view(num_boxes, 4)[own, i] - target[i])
            total[row] += 2.0 * (0.5 * x * x if abs(x) < 1 else abs(x) - 0.5)
            gradient[row, own, i] = 2.0 / 3 * max(-1.0, min(1.0, x))
    assert losses.tolist() == pytest.approx(total)
    assert (gradient.abs() == 2.0 / 3).any()  # both branches took part
    torch.testing.assert_close(outputs.grad.view_as(gradient), gradient)
    numbers = outputs.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: regressor.losses(x, WINDOWS, BOXES, classes, K), (numbers,)
    )


def test_folding_leaves_the_boxes_as_they_were():
    regressor, features = normalised(make()), torch.randn(3, 7, dtype=torch.float64)
    regressor.weight.data.mul_(100)
    before = regressor.boxes(regressor(features), WINDOWS)
    regressor.fold()
    torch.testing.assert_close(regressor.boxes(regressor(features), WINDOWS), before)
    assert not regressor.target_mean.any()
    assert (regressor.target_std == 1).all()


@pytest.mark.parametrize("rows", [0, 3])
def test_without_windows_over_objects_the_loss_is_zero_with_a_graph(rows):
    outputs = torch.randn(rows, 4 * K, dtype=torch.float64, requires_grad=True)
    classes = torch.full((rows,), K)
    losses = make().losses(outputs, WINDOWS[:rows], BOXES[:rows], classes, K)
    losses.sum().backward()
    assert losses.tolist() == [0.0] * rows
    assert not outputs.grad.any()


def test_it_starts_as_in_the_paper_and_needs_a_weight():
    regressor = BoxRegressor(1000, 20)
    assert regressor.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not regressor.bias.any()
    with pytest.raises(ValueError, match="loss_weight: expected a number above 0, got 0"):
        BoxRegressor(7, K, loss_weight=0)
