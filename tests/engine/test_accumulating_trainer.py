# SPDX-License-Identifier: Apache-2.0
import contextlib
import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from maploss.engine import accumulating_trainer
from maploss.engine.accumulating_trainer import AccumulatingTrainer


class Model(torch.nn.Module):
    """The loss is the mean of w x; how often gradients would not be exchanged is counted."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.seen, self.without_exchange = [], []

    def forward(self, x):
        self.seen.append(x)
        return {"loss_a": (self.weight * x).mean(), "loss_b": 0.5 * self.weight[0] * x[0]}

    @contextlib.contextmanager
    def no_sync(self):
        self.without_exchange.append(len(self.seen))
        yield


def make(num_passes, **kwargs):
    model = Model()
    data = itertools.count(1)
    loader = (torch.tensor([float(i), 2.0 * i]) for i in data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, AccumulatingTrainer(model, loader, optimizer, num_passes=num_passes, **kwargs)


def test_an_update_has_the_mean_gradient_and_logs_the_mean_losses():
    model, trainer = make(3)
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
    # The mean of x is [2, 4].
    torch.testing.assert_close(model.weight.grad, torch.tensor([2 / 2 + 0.5 * 2, 4 / 2]))
    torch.testing.assert_close(
        model.weight.detach(), torch.tensor([1.0, 2.0]) - 0.1 * model.weight.grad
    )
    assert storage.latest()["loss_a"][0] == pytest.approx((1 * 2 + 2 * 4) / 2)
    assert storage.latest()["total_loss"][0] == pytest.approx(5 + 0.5 * 2)


def test_gradients_are_of_one_update_only():
    model, trainer = make(1)
    with EventStorage():
        for trainer.iter in range(2):
            trainer.run_step()
    torch.testing.assert_close(model.weight.grad, torch.tensor([2 / 2 + 0.5 * 2, 4 / 2]))


def test_processes_exchange_gradients_in_the_last_pass_only(monkeypatch):
    monkeypatch.setattr(accumulating_trainer, "DistributedDataParallel", Model)
    model, trainer = make(3)
    with EventStorage():
        trainer.iter = 0
        trainer.run_step()
    # The first two passes.
    assert model.without_exchange == [0, 1]


def test_a_loss_that_is_not_finite_stops_before_the_update():
    model, trainer = make(2)
    model.weight.data[0] = float("inf")
    trainer.iter = 0
    with EventStorage(), pytest.raises(FloatingPointError):
        trainer.run_step()
    assert model.weight[1] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA it is half precision")
def test_mixed_precision_on_a_cpu_is_bfloat16():
    seen = []

    class Linear(Model):
        def forward(self, x):
            seen.append(torch.nn.functional.linear(x, self.weight[None]).dtype)
            return {"loss_a": self.weight.sum()}

    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = AccumulatingTrainer(model, [torch.ones(1, 2)], optimizer, num_passes=1, is_amp=True)
    trainer.iter = 0
    with EventStorage():
        trainer.run_step()
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(model.weight.detach(), torch.tensor([0.9, 1.9]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_scaler_goes_into_the_checkpoint_and_back():
    _, trainer = make(2, is_amp=True)
    trainer.grad_scaler.update(3.0)
    _, other = make(2, is_amp=True)
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == 3.0
