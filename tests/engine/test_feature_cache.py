# SPDX-License-Identifier: Apache-2.0
"""Runs of train_net.py that read the outputs of a frozen backbone."""

import json
import shutil
import signal
import time

import pytest
import torch
from detectron2.engine import default_argument_parser
from maploss.evaluation import APEvaluator
from maploss.modeling import SmallConvNet

import train_net
from tests.distributed import run_ranks, start_fresh
from tests.tiny import RESNET_FPN, arguments

HEADS = {"MODEL__TRAIN_ONLY": ["roi_heads"]}
FPN = {
    **{key.replace(".", "__"): value for key, value in RESNET_FPN.items()},
    "MODEL__TRAIN_ONLY": ["roi_heads", "proposal_generator", "backbone.fpn"],
    "MODEL__META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL__RPN__POST_NMS_TOPK_TRAIN": 50,
}
# All detections: none is near a threshold.
RETINANET = {
    "MODEL__TRAIN_ONLY": ["head"],
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    "MODEL__RETINANET__NMS_THRESH_TEST": 1.0,
}
# Adam's step hardly depends on the size of a gradient, so that rounding grows with each.
SGD = {"SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": 0.01}


@pytest.fixture
def run(tiny_data):
    """A run on the tiny data; without further words one with the cache in features/."""

    def _run(*args, config="map", cache="features", **keys):
        keys = {"DATALOADER__FEATURE_CACHE__FOLDER": tiny_data / cache if cache else "''", **keys}
        return call(arguments(tiny_data, "output", *args, config=config, **keys))

    return _run


def call(args):
    return train_net.main(default_argument_parser().parse_args(args))


def folders(folder):
    return sorted(x.name for x in (folder / "features").iterdir() if x.is_dir())


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """An evaluation detects, but draws no curves, which would take most of the time here."""
    monkeypatch.setattr(APEvaluator, "evaluate", lambda self: {"bbox": {"AP50": 0.0}})


@pytest.fixture
def outputs(monkeypatch):
    """Losses of each iteration, and detections of each image that is evaluated."""
    seen = {"losses": [], "scores": [], "boxes": []}
    after_step, process = train_net.Trainer.after_step, APEvaluator.process

    def watch_step(trainer):
        seen["losses"].append(trainer.storage.history("total_loss").latest())
        after_step(trainer)

    def watch_detections(self, inputs, found):
        instances = [x["instances"] for x in found]
        seen["scores"] += [x.scores.sort().values for x in instances]
        seen["boxes"] += [x.pred_boxes.tensor.sum() for x in instances]
        process(self, inputs, found)

    monkeypatch.setattr(train_net.Trainer, "after_step", watch_step)
    monkeypatch.setattr(APEvaluator, "process", watch_detections)
    return seen


@pytest.fixture
def forwards(monkeypatch):
    """One entry for each call of the tiny backbone."""
    calls = []
    forward = SmallConvNet.forward

    def watch(self, x):
        calls.append(x.shape)
        return forward(self, x)

    monkeypatch.setattr(SmallConvNet, "forward", watch)
    return calls


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ("map", HEADS | {"DATALOADER__NUM_WORKERS": 2}),
        ("softmax", HEADS | {"SOLVER__IMS_PER_BATCH": 1, "INPUT__MIN_SIZE_TRAIN": (48, 60, 48)}),
        ("map", HEADS | {"SOLVER__ACCUMULATE_STEPS": 2, "SOLVER__IMS_PER_BATCH": 1}),
        ("faster_rcnn", FPN),
        ("faster_rcnn", FPN | {"MODEL__META_ARCHITECTURE": "MAPRCNN"}),
        ("retinanet_parameterized_ap", RETINANET),
    ],
)
def test_losses_and_detections_are_those_of_images(run, outputs, config, keys):
    keys = {**keys, **SGD, "TEST__EVAL_PERIOD": 4, "SOLVER__MAX_ITER": 6}
    run(config=config, cache="", **keys)
    expected = {key: value[:] for key, value in outputs.items()}
    for value in outputs.values():
        value.clear()
    run(config=config, **keys)
    assert len(outputs["losses"]) == 6
    assert outputs["losses"] == pytest.approx(expected["losses"], rel=2e-3)
    assert len(outputs["scores"]) == len(expected["scores"]) == 16
    for name in ("scores", "boxes"):
        for found, wanted in zip(outputs[name], expected[name], strict=True):
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


def test_the_backbone_runs_once_for_each_view_in_all_runs_together(run, forwards, tiny_data):
    keys = HEADS | {"TEST__EVAL_PERIOD": 2, "SOLVER__MAX_ITER": 4}
    run(**keys)
    assert len(forwards) == 8 * 2  # mirrored too in training
    first = folders(tiny_data)
    run("--resume", config="map", **keys | {"SOLVER__MAX_ITER": 6})
    run("--eval-only", **HEADS)
    run(config="softmax", **keys)
    run(INPUT__RANDOM_FLIP="none", **keys)
    assert len(forwards) == 16
    assert folders(tiny_data) == first
    assert len(first) == 2
    run(INPUT__RANDOM_FLIP="none", INPUT__MIN_SIZE_TRAIN=(48, 24), **keys)
    assert len(forwards) == 16 + 16


def test_resuming_reads_what_the_run_without_a_stop_reads(run, outputs, tiny_data):
    run(**HEADS)
    expected = outputs["losses"][4:]
    outputs["losses"].clear()
    (tiny_data / "output/last_checkpoint").write_text("model_0000003.pth")
    run("--resume", **HEADS)
    assert outputs["losses"] == expected


@pytest.mark.parametrize(
    "keys",
    [
        {"SEED": 2},  # other weights of the backbone
        {"MODEL__PIXEL_STD": [1.0, 1.0, 1.0]},
        {"INPUT__FORMAT": "RGB"},
        {"MODEL__SMALL_CONVNET__STRIDES": [2, 1, 2, 1]},
        {"INPUT__MIN_SIZE_TRAIN": (24,), "INPUT__MIN_SIZE_TEST": 24},
    ],
)
def test_other_weights_and_inputs_have_a_cache_of_their_own(run, forwards, tiny_data, keys):
    run(**HEADS, SOLVER__MAX_ITER=1)
    run(**HEADS, SOLVER__MAX_ITER=1, **keys)
    assert len(forwards) == 2 * 16
    assert len(folders(tiny_data)) == 4


def test_an_image_that_has_changed_is_computed_anew(run, forwards, tiny_data):
    run(**HEADS, SOLVER__MAX_ITER=1)
    image = tiny_data / "JPEGImages/0.png"
    shutil.copy(tiny_data / "JPEGImages/1.png", image)
    run(**HEADS, SOLVER__MAX_ITER=1)
    assert len(forwards) == 2 * 16


def test_the_cache_says_what_it_was_made_of(run, tiny_data):
    run(**HEADS, SOLVER__MAX_ITER=1)
    about = [
        json.loads((tiny_data / "features" / x / "cache.json").read_text())
        for x in folders(tiny_data)
    ]
    assert sorted(x["is_flipped"] for x in about) == [False, True]
    for part in about:
        assert part["data_set"] == "tiny"
        assert part["backbone"] == "build_small_convnet_backbone"
        assert part["images"] == 8
        assert part["features"] == ["conv4"]
        assert len(part["weights"]) == len(part["records"]) == 64


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__TRAIN_ONLY": []}, r"expected backbone to be frozen, got backbone\.stages\.0\."),
        (
            FPN | {"MODEL__TRAIN_ONLY": ["roi_heads", "backbone.bottom_up.res5"]},
            r"expected backbone\.bottom_up to be frozen, got backbone\.bottom_up\.res5\.",
        ),
        (
            HEADS | {"MODEL__SMALL_CONVNET__NORM": "BN"},
            r"got backbone\.stages\.0\.norm, a BatchNorm",
        ),
        (HEADS | {"INPUT__RANDOM_FLIP": "vertical"}, "INPUT.RANDOM_FLIP: expected 'none' or 'hor"),
        (HEADS | {"INPUT__MIN_SIZE_TRAIN_SAMPLING": "range"}, "TRAIN_SAMPLING: expected 'choice'"),
        (HEADS | {"DATALOADER__UNREADABLE_IMAGES": "skip"}, "UNREADABLE_IMAGES: expected 'stop'"),
        (HEADS | {"TEST__PYRAMID__SIZES": [32]}, r"TEST.PYRAMID.SIZES: expected \[\]"),
        (HEADS | {"VIS_PERIOD": 5}, "VIS_PERIOD: expected 0 with DATALOADER.FEATURE_CACHE, got 5"),
        (
            HEADS | {"DATALOADER__FEATURE_CACHE__MAX_GIB": 1e-5},
            r"FEATURE_CACHE.MAX_GIB = 1e-05 GiB, got 3\.43e-05 GiB",
        ),
    ],
)
def test_what_does_not_go_with_the_cache_stops_a_run_with_one_line(
    run, forwards, tiny_data, keys, message
):
    config = "faster_rcnn" if "MODEL__META_ARCHITECTURE" in keys else "map"
    with pytest.raises(SystemExit, match=rf"\Aerror: .*{message}.*\Z"):
        run(config=config, **keys)
    assert not forwards
    assert not (tiny_data / "features").exists()


def test_features_that_half_precision_cannot_hold_stop_a_run(run, tiny_data):
    with pytest.raises(SystemExit, match=r"expected features of at most 65504.* got .*in conv4\Z"):
        run(**HEADS, MODEL__PIXEL_STD=[1e-5] * 3)
    assert not folders(tiny_data)


def test_an_image_that_cannot_be_read_stops_a_run(run, tiny_data):
    (tiny_data / "JPEGImages/5.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"\Aerror: Cannot read image .*5\.png.*\Z"):
        run(**HEADS)
    assert not folders(tiny_data)


@pytest.mark.parametrize("name", ["features.f16", "shapes.npy", "cache.json"])
def test_a_file_that_is_cut_is_computed_anew(run, forwards, outputs, tiny_data, name):
    run(**HEADS, SOLVER__MAX_ITER=2)
    expected = outputs["losses"][:]
    for folder in folders(tiny_data):
        path = tiny_data / "features" / folder / name
        path.write_bytes(path.read_bytes()[:-40])
    run(**HEADS, SOLVER__MAX_ITER=2)
    assert len(forwards) == 2 * 16
    assert outputs["losses"] == expected * 2
    assert "files are missing or too short" in (tiny_data / "output/log.txt").read_text()


def stop_at_image(folder, number):
    """A run that waits forever at an image."""
    from maploss.engine import feature_cache

    compute = feature_cache.compute_features
    calls = []

    def wait(model, image):
        calls.append(image)
        if len(calls) == number:
            (folder / "waits").touch()
            time.sleep(1000)
        return compute(model, image)

    feature_cache.compute_features = wait
    cache = {"DATALOADER__FEATURE_CACHE__FOLDER": folder / "features"}
    call(arguments(folder, "killed", config="map", **HEADS, **cache))


def test_a_cache_whose_process_was_killed_is_made_by_the_next(run, forwards, tiny_data):
    process = start_fresh(stop_at_image, tiny_data, 12)  # in that of mirrored images
    while not (tiny_data / "waits").exists():
        time.sleep(0.05)
        assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(".tmp-" in x for x in folders(tiny_data))
    run(**HEADS, SOLVER__MAX_ITER=1)
    assert len(forwards) == 8  # the other one was whole
    assert not any(".tmp-" in x for x in folders(tiny_data))


def losses_of_this_rank(folder):
    """And how many images its backbone has seen."""
    calls, seen = [], []
    forward, after_step = SmallConvNet.forward, train_net.Trainer.after_step
    SmallConvNet.forward = lambda self, x: calls.append(x) or forward(self, x)

    def watch(trainer):
        seen.append(float(trainer.storage.history("total_loss").latest()))
        after_step(trainer)

    if torch.distributed.get_rank() == 0:
        train_net.Trainer.after_step = watch
    cache = {"DATALOADER__FEATURE_CACHE__FOLDER": folder / "features"}
    call(arguments(folder, "ranks", config="softmax", **HEADS, **cache, SOLVER__MAX_ITER=2))
    return len(calls), seen


def test_two_processes_compute_each_view_once(run, outputs, tiny_data):
    (first, losses), (second, _) = run_ranks(losses_of_this_rank, 2, tiny_data)
    assert first + second == 16
    run(config="softmax", cache="", **HEADS, SOLVER__MAX_ITER=2)
    assert losses == pytest.approx(outputs["losses"], rel=2e-3)


def test_pictures_of_the_loss_show_the_image_that_is_not_read(run, monkeypatch, tiny_data):
    from maploss.engine import loss_pictures

    shown, draw = [], loss_pictures.gradient_picture
    monkeypatch.setattr(
        loss_pictures, "gradient_picture", lambda image, *x: shown.append(image) or draw(image, *x)
    )
    keys = HEADS | {"SOLVER__MAX_ITER": 3, "MODEL__MAP_LOSS__VIS_PERIOD": 1, "SEED": 4}
    keys |= {"INPUT__MIN_SIZE_TRAIN": (60,)}
    for cache in ("", "features"):
        run(cache=cache, **keys)
    without, cached = shown[:3], shown[3:]
    assert len(without) == len(cached) == 3
    assert all(torch.equal(a, b) for a, b in zip(without, cached, strict=True))
