# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.config import get_cfg
from maploss.config import add_maploss_config
from maploss.engine import build_optimizer, freeze_except


def config(**solver):
    cfg = get_cfg()
    add_maploss_config(cfg)
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def small_model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.GroupNorm(1, 2))
    model[0].bias.requires_grad = False
    return model


def test_sgd_is_the_default():
    assert isinstance(build_optimizer(config(), small_model()), torch.optim.SGD)


def test_adamw_decays_weights_but_not_norms_and_leaves_frozen_parameters_out():
    cfg = config(OPTIMIZER="AdamW", BASE_LR=0.25, WEIGHT_DECAY=0.5, WEIGHT_DECAY_NORM=0.0)
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    model = small_model()
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {model[0].weight: 0.5, model[1].weight: 0.0, model[1].bias: 0.0}
    assert {g["lr"] for g in optimizer.param_groups} == {0.25}


def test_gradient_clipping_applies_to_adamw():
    cfg = config(OPTIMIZER="AdamW", CLIP_GRADIENTS=config().SOLVER.CLIP_GRADIENTS)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    model = small_model()
    optimizer = build_optimizer(cfg, model)
    model(torch.ones(1, 3) * 1e6).sum().backward()
    model[0].weight.grad.fill_(5.0)
    optimizer.step()
    assert float(model[0].weight.grad.abs().max()) == pytest.approx(1e-3)


def test_another_name_is_named():
    with pytest.raises(ValueError, match=r"SOLVER.OPTIMIZER.*SGD or AdamW.*'Adam'"):
        build_optimizer(config(OPTIMIZER="Adam"), small_model())


def test_only_the_named_parameters_train_and_frozen_ones_stay_frozen():
    model = small_model()
    freeze_except(model, [])
    assert [x.requires_grad for x in model.parameters()] == [True, False, True, True]
    freeze_except(model, ["0.", "1.w"])
    assert [x.requires_grad for x in model.parameters()] == [True, False, True, False]


def test_a_beginning_that_no_parameter_has_is_told():
    with pytest.raises(ValueError, match=r"TRAIN_ONLY: expected .*'1\.bias', got 'fc6'"):
        freeze_except(small_model(), ["0.", "fc6"])
