# SPDX-License-Identifier: Apache-2.0
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.events import EventStorage
from maploss.engine import loss_pictures
from maploss.engine.loss_pictures import LossPictures
from maploss.layers import MAPLossStats
from maploss.modeling.gradient_cache import LossInputs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_net
from tests.distributed import run_ranks
from tests.modeling.test_roi_heads import make_batch, make_model
from tests.tiny import arguments, make_cfg

EMPTY = np.zeros((1, 1, 3), np.uint8)


@pytest.fixture
def train(tiny_data, monkeypatch):
    """A run of 3 iterations by keys of the config; what TensorBoard has of it."""
    monkeypatch.setattr(train_net.Trainer, "test", staticmethod(lambda cfg, model: {}))

    def run(config, **keys):
        args = arguments(tiny_data, "output", config=config, SOLVER__MAX_ITER=3, **keys)
        train_net.main(default_argument_parser().parse_args(args))
        events = EventAccumulator(str(tiny_data / "output"))
        return events.Reload()

    return run


@pytest.mark.parametrize("passes", [1, 2])
def test_tensorboard_has_the_parts_of_the_loss_and_pictures_of_a_minibatch(train, passes):
    events = train(
        "map",
        MODEL__MAP_LOSS__VIS_PERIOD=2,
        SOLVER__ACCUMULATE_STEPS=passes,
        MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=0,
    )
    scalars = set(events.Tags()["scalars"])
    assert {
        "loss_map",
        "loss_score_reg",
        "total_loss",
        "map/minibatch_map",
        "map_per_class/a",
        "map_per_class/b",
        "map/nonzero_share",
        "map/clipped_share",
        "map/largest_score",
        *(f"map_seconds/{x}" for x in ("match", "nms", "ap", "gradient", "exchange")),
    } <= scalars
    images = events.Tags()["images"]
    assert "minibatch PR curves" in images
    assert any(x.startswith("pseudo-gradient of ") for x in images)
    # Iterations 0 and 2.
    assert len(events.Images("minibatch PR curves")) == 2


@pytest.mark.parametrize(("config", "period"), [("map", 0), ("softmax", 2)])
def test_without_a_period_or_the_loss_there_are_no_such_pictures(train, config, period):
    images = train(config, MODEL__MAP_LOSS__VIS_PERIOD=period).Tags()["images"]
    assert not [x for x in images if "gradient" in x or "PR" in x]


@pytest.mark.parametrize(
    ("keys", "panels"),
    [
        ({"BOXES": "none"}, 1),
        ({"BOXES": "regressed", "GRADIENT": "none"}, 1),
        ({"BOXES": "regressed"}, 2),
        ({"BOXES": "windows"}, 2),
    ],
)
def test_the_gradient_by_boxes_is_shown_where_boxes_learn_from_the_map(train, keys, panels):
    keys = {f"MODEL__MAP_LOSS__BOX_REG__{key}": value for key, value in keys.items()}
    events = train(
        "map",
        MODEL__MAP_LOSS__VIS_PERIOD=1,
        MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=0,
        MODEL__ROI_BOX_HEAD__BBOX_REG_LOSS_WEIGHT=1.0,
        **keys,
    )
    names = [x for x in events.Tags()["images"] if x.startswith("pseudo-gradient of ")]
    # The images have 64 x 48 pixels, enlarged to 512 x 384.
    widths = {x.width for name in names for x in events.Images(name)}
    assert widths == {512 * panels + 12 * (panels - 1)}


def test_nothing_of_a_minibatch_stays_in_the_model(train, monkeypatch):
    models = []
    after_train = train_net.Trainer.after_train

    def keep(trainer):
        models.append(copy.deepcopy(trainer.model))  # a graph cannot be copied
        after_train(trainer)

    monkeypatch.setattr(train_net.Trainer, "after_train", keep)
    train("map", MODEL__MAP_LOSS__VIS_PERIOD=2)
    loss = models[0].roi_heads.box_predictor.map_loss
    assert not loss._forward_hooks
    assert not models[0]._forward_pre_hooks
    kept = [x for module in models[0].modules() for x in vars(module).values()]
    assert not [x for x in kept if isinstance(x, torch.Tensor | LossInputs | MAPLossStats)]


def curves_of_this_process() -> tuple[set, set]:
    """Names of the classes whose curves are drawn, and of those that have an AP, of one step."""
    cfg, drawn = make_cfg(), []
    # In one list of all classes each process ranks all of them.
    cfg.MODEL.MAP_LOSS.POOLED = 0.0
    model = make_model(cfg, "MAPROIHeads")
    pictures = LossPictures(model, 1, "BGR")
    loss_pictures.minibatch_pr_picture = lambda curves, _: drawn.append({*curves}) or EMPTY
    with EventStorage() as storage:
        pictures.trainer = SimpleNamespace(iter=0, storage=storage)
        pictures.before_step()
        model(make_batch())
        pictures.after_step()
        names = {x.split("/")[1] for x in storage.latest() if x.startswith("map_per_class/")}
    return drawn[0], names


def test_each_process_draws_the_curves_of_the_classes_that_it_ranks():
    ranks = run_ranks(curves_of_this_process, 2)
    (first, names), (second, _) = ranks
    assert first | second == names
    assert not first & second
    assert first
    assert second
