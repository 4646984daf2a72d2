# SPDX-License-Identifier: Apache-2.0
import torch
from maploss.layers.surrogate_gradient import attach_gradient, scale_gradient


def test_each_input_gets_the_gradient_chosen_for_it_times_that_of_the_value():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
    gradients = torch.tensor([0.5, -0.5]), torch.tensor([[7.0]], dtype=torch.float64)
    value = attach_gradient(x.sum() * 10, (x, y), gradients)
    assert value == 30
    (-2 * value).backward()
    assert x.grad.tolist() == [-1, 1]
    assert y.grad.tolist() == [[-14]]


def test_a_scaled_gradient_leaves_the_value_as_it_is():
    x = torch.tensor([2.0, -3.0], requires_grad=True)
    for scale in (7.0, torch.tensor(-0.5)):
        y = scale_gradient(x, scale)
        assert torch.equal(y, x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        torch.testing.assert_close(gradient, scale * 2 * x.detach())
