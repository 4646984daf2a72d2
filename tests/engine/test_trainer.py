# SPDX-License-Identifier: Apache-2.0
"""A resumed run is the run that would have been without the stop, bit for bit."""

import random
import re
import shutil

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net
from tests.tiny import NUM_IMAGES, arguments, write_data


@pytest.fixture
def folder(tiny_data, monkeypatch):
    write_data(tiny_data, upright=(0, 3, 6))  # for ASPECT_RATIO_GROUPING
    monkeypatch.setattr(train_net.Trainer, "test", staticmethod(lambda cfg, model: {}))
    return tiny_data


@pytest.fixture
def losses(monkeypatch):
    """Of each iteration that ends: [(iteration, total loss)]."""
    seen = []
    after_step = train_net.Trainer.after_step

    def watch(trainer):
        seen.append((trainer.iter, trainer.storage.history("total_loss").latest()))
        after_step(trainer)

    monkeypatch.setattr(train_net.Trainer, "after_step", watch)
    return seen


def train(args):
    return train_net.main(default_argument_parser().parse_args(args))


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False)


def assert_equal(a, b, path=""):
    """Dictionaries, lists, tensors and numbers, to the bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{path}.{i}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ("softmax", {"DATALOADER__NUM_WORKERS": 1, "SEED": -1}),
        ("softmax", {"SOLVER__ACCUMULATE_STEPS": 2, "DATALOADER__ASPECT_RATIO_GROUPING": True}),
        ("map", {"DATALOADER__NUM_WORKERS": 1, "DATALOADER__ASPECT_RATIO_GROUPING": True}),
        ("map", {"MODEL__MAP_LOSS__MEMORY": 3}),
        ("map", {"SOLVER__ACCUMULATE_STEPS": 2, "SOLVER__AMP__ENABLED": True}),
        ("map", {"SOLVER__ACCUMULATE_STEPS": 2, "SOLVER__OPTIMIZER": "SGD"}),
        ("map", {"DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler"}),
        (
            "softmax",
            {
                "TEST__PRECISE_BN__ENABLED": True,
                "TEST__PRECISE_BN__NUM_ITER": 2,
                "TEST__EVAL_PERIOD": 2,
                "MODEL__SMALL_CONVNET__NORM": "BN",
            },
        ),
    ],
)
def test_what_a_checkpoint_makes_is_what_a_run_without_a_stop_makes(folder, losses, config, keys):
    train(arguments(folder, "output", config=config, **keys))
    output, without_stop = folder / "output", folder / "without_stop.pth"
    shutil.move(output / "model_final.pth", without_stop)
    expected = losses[4:]
    losses.clear()
    (output / "last_checkpoint").write_text("model_0000003.pth")
    random.random(), np.random.rand(), torch.rand(1)  # what came before is of no matter
    train(arguments(folder, "output", "--resume", config=config, **keys))
    assert [x[0] for x in losses] == [4, 5, 6, 7]
    assert losses == expected
    assert_equal(load(output / "model_final.pth"), load(without_stop))


def test_the_checkpoints_seed_wins_over_the_configs_with_a_warning(folder, losses):
    train(arguments(folder, "output", SEED=3))
    expected = losses[4:]
    losses.clear()
    (folder / "output/last_checkpoint").write_text("model_0000003.pth")
    train(arguments(folder, "output", "--resume", SEED=4))
    assert losses == expected
    assert "SEED is 4: going on with 3" in (folder / "output/log.txt").read_text()


def test_the_order_of_images_and_the_windows_depend_on_the_seed(folder, losses):
    for seed in (3, 4, 3):
        train(arguments(folder, "output", SEED=seed, SOLVER__MAX_ITER=2))
    assert losses[:2] == losses[4:] != losses[2:4]


def spoil_while_training(monkeypatch, path, content=b""):
    """Once training has begun, as the start would find a file that is missing."""
    before_train = train_net.Trainer.before_train

    def spoil(trainer):
        before_train(trainer)
        path.write_bytes(content)

    monkeypatch.setattr(train_net.Trainer, "before_train", spoil)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_with_file_iteration_and_checkpoint(folder, monkeypatch, workers):
    image = folder / "JPEGImages/5.png"
    spoil_while_training(monkeypatch, image, image.read_bytes()[:99])
    keys = {"DATALOADER__NUM_WORKERS": workers, "SOLVER__CHECKPOINT_PERIOD": 1, "SEED": 3}
    with pytest.raises(SystemExit) as stop:
        train(arguments(folder, "output", **keys))
    said = r"error: training stopped in iteration (\d): Cannot read image .*/5\.png: .*"
    match = re.fullmatch(said + r"\(last checkpoint: .*/model_000000(\d)\.pth\)", str(stop.value))
    assert match, stop.value
    assert int(match[1]) == int(match[2]) + 1


def test_an_unreadable_image_can_be_skipped_and_is_counted(folder, monkeypatch):
    spoil_while_training(monkeypatch, folder / "JPEGImages/5.png")
    counts, trained = [], []
    after_step = train_net.Trainer.after_step

    def watch(trainer):
        counts.append(trainer.storage.latest()["data/skipped_images"][0])
        after_step(trainer)

    monkeypatch.setattr(train_net.Trainer, "after_step", watch)
    finals = []
    for workers in (0, 1):
        args = {"DATALOADER__NUM_WORKERS": workers, "DATALOADER__UNREADABLE_IMAGES": "skip"}
        train(arguments(folder, f"output{workers}", **args))
        finals.append(load(folder / f"output{workers}/model_final.pth")["model"])
        trained.append(counts[:])
        counts.clear()
    assert_equal(*finals)
    assert trained[0] == trained[1] == sorted(trained[0])
    assert trained[0][-1] == 16 // NUM_IMAGES  # two passes over all images
    says = 'DATALOADER.UNREADABLE_IMAGES: expected "stop" or "skip", got'
    with pytest.raises(SystemExit, match=f"^error: {says}"):
        train(arguments(folder, "output", DATALOADER__UNREADABLE_IMAGES="ignore"))
