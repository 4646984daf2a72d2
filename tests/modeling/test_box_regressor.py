# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from maploss.modeling.box_regressor import BoxRegressor, box_deltas

K = 3
WINDOWS = torch.tensor([[10.0, 20, 30, 60], [0, 0, 10, 10], [5, 5, 25, 15]], dtype=torch.float64)
BOXES = torch.tensor([[12.0, 16, 32, 76], [0, 0, 10, 20], [5, 5, 25, 15]], dtype=torch.float64)


def make(num_boxes=K, **settings):
    torch.manual_seed(0)
    return BoxRegressor(7, num_boxes, **settings).double()


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


def giou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def slow_giou_losses(regressor, outputs, classes):
    """Decoded by hand, window by window: lambda (1 - GIoU)."""
    losses = []
    for row, own in enumerate(classes.tolist()):
        if own == K:
            losses.append(0.0)
            continue
        own = own if regressor.num_boxes > 1 else 0
        dx, dy, dw, dh = (
            outputs[row].reshape(-1, 4)[own] * regressor.target_std[own].numpy()
            + regressor.target_mean[own].numpy()
        )
        x1, y1, x2, y2 = WINDOWS[row].tolist()
        width, height = x2 - x1, y2 - y1
        x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
        w, h = width * math.exp(dw) / 2, height * math.exp(dh) / 2
        losses.append(
            regressor.loss_weight * (1 - giou((x - w, y - h, x + w, y + h), BOXES[row].tolist()))
        )
    return losses


@pytest.mark.parametrize("num_boxes", [K, 1])
def test_giou_is_of_the_regressed_box_of_the_class_and_its_object(num_boxes):
    regressor = normalised(make(num_boxes, loss_weight=2.0, loss_type="giou"))
    outputs = torch.randn(3, 4 * num_boxes, dtype=torch.float64)
    # The last box is far away: GIoU is below 0, and has a gradient.
    outputs.view(3, -1, 4)[2, :, :2] += 5
    outputs.requires_grad_()
    classes = torch.tensor([2, K, 0])  # the second is background
    losses = regressor.losses(outputs, WINDOWS, BOXES, classes, K)
    numbers = outputs.detach().numpy()
    # Detectron2 decodes in single precision.
    assert losses.tolist() == pytest.approx(slow_giou_losses(regressor, numbers, classes), rel=1e-4)
    assert losses[2] > 2.0
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    expected = np.zeros_like(numbers)
    for place in np.ndindex(numbers.shape):
        moved = [numbers.copy(), numbers.copy()]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        up, down = (sum(slow_giou_losses(regressor, x, classes)) for x in moved)
        expected[place] = (up - down) / 2e-6
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected).max(axis=1)[[0, 2]].min() > 0.01


def test_descent_on_giou_finds_the_boxes():
    regressor = normalised(make(loss_type="giou"))
    outputs, classes = torch.zeros(3, 4 * K, requires_grad=True), torch.tensor([2, 0, 1])
    optimizer = torch.optim.Adam([outputs], lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        regressor.losses(outputs, WINDOWS, BOXES, classes, K).sum().backward()
        optimizer.step()
    boxes = regressor.boxes(outputs.detach(), WINDOWS)[torch.arange(3), classes]
    torch.testing.assert_close(boxes, BOXES.float(), atol=0.5, rtol=0)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
def test_outputs_that_are_not_finite_have_a_loss_that_is_not_and_spoil_no_other(loss_type):
    outputs = torch.zeros(2, 4 * K, dtype=torch.float64)
    outputs[1] = float("nan")
    regressor = make(loss_type=loss_type)
    losses = regressor.losses(outputs, WINDOWS[:2], BOXES[:2], torch.tensor([1, 1]), K)
    assert torch.isfinite(losses).tolist() == [True, False]


def test_folding_leaves_the_boxes_as_they_were():
    regressor, features = normalised(make()), torch.randn(3, 7, dtype=torch.float64)
    regressor.weight.data.mul_(100)
    before = regressor.boxes(regressor(features), WINDOWS)
    regressor.fold()
    torch.testing.assert_close(regressor.boxes(regressor(features), WINDOWS), before)
    assert not regressor.target_mean.any()
    assert (regressor.target_std == 1).all()


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
@pytest.mark.parametrize("rows", [0, 3])
def test_without_windows_over_objects_the_loss_is_zero_with_a_graph(rows, loss_type):
    outputs = torch.randn(rows, 4 * K, dtype=torch.float64, requires_grad=True)
    classes = torch.full((rows,), K)
    regressor = make(loss_type=loss_type)
    losses = regressor.losses(outputs, WINDOWS[:rows], BOXES[:rows], classes, K)
    losses.sum().backward()
    assert losses.tolist() == [0.0] * rows
    assert not outputs.grad.any()


def test_it_starts_as_in_the_paper_and_needs_a_weight():
    regressor = BoxRegressor(1000, 20)
    assert regressor.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not regressor.bias.any()
    with pytest.raises(ValueError, match="loss_weight: expected a number above 0, got 0"):
        BoxRegressor(7, K, loss_weight=0)


def test_another_loss_is_refused_with_the_name_of_the_key():
    message = "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE: expected one of smooth_l1, giou, got 'ciou'"
    with pytest.raises(ValueError, match=message):
        BoxRegressor(7, K, loss_type="ciou")
