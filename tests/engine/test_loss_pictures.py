# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from maploss.layers import MAPLossStats
from maploss.modeling.gradient_cache import LossInputs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_net
from tests.tiny_run import arguments, write_tiny_data


@pytest.fixture
def train(tmp_path, monkeypatch):
    """A run of 3 iterations by keys of the config; what TensorBoard has of it."""
    write_tiny_data(tmp_path)
    monkeypatch.setattr(train_net.Trainer, "test", staticmethod(lambda cfg, model: {}))

    def run(config, **keys):
        args = arguments(tmp_path, "output", config=config, SOLVER__MAX_ITER=3, **keys)
        train_net.main(default_argument_parser().parse_args(args))
        events = EventAccumulator(str(tmp_path / "output"))
        return events.Reload()

    yield run
    for catalog in (DatasetCatalog, MetadataCatalog):
        if f"tiny_{tmp_path.name}" in catalog:
            catalog.remove(f"tiny_{tmp_path.name}")


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
