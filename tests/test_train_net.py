# SPDX-License-Identifier: Apache-2.0
"""Whole runs of train_net.py on a tiny data set, on the CPU, in this process."""

import contextlib
import json
import os
import re

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser
from maploss.data.proposals import write_proposals

import train_net
from tests.tiny import arguments, as_list, data_settings

AT_ONCE = {"SOLVER__WARMUP_ITERS": 0, "SOLVER__STEPS": ()}


@pytest.fixture
def run(tiny_data):
    """Runs train_net.py with a config and further arguments, in one output folder."""

    def _run(config, *args, opts=()):
        args = [*arguments(tiny_data, "output", *args, config=config, **AT_ONCE), *opts]
        return train_net.main(default_argument_parser().parse_args(args))

    return _run


@contextlib.contextmanager
def one_line(says):
    """The process ends with status 1 and one line."""
    with pytest.raises(SystemExit, match=f"^error: {says}") as stop:
        yield
    assert "\n" not in stop.value.code


def read_metrics(tmp_path):
    lines = (tmp_path / "output/metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.parametrize("config", ["map", "softmax"])
def test_a_run_trains_resumes_and_evaluates(run, tmp_path, config):
    output = tmp_path / "output"
    run(config, opts=["SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "0"])
    assert (output / "config.yaml").is_file()
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    first = torch.load(output / "model_final.pth", map_location="cpu")
    assert first["iteration"] == 2

    run(config, "--resume", opts=["SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "5"])
    second = torch.load(output / "model_final.pth", map_location="cpu")
    assert second["iteration"] == 4
    assert second["trainer"]["_trainer"]["optimizer"]["state"]
    metrics = read_metrics(tmp_path)
    assert metrics["iteration"] >= 4
    assert "bbox/AP50" in metrics
    assert ("map/minibatch_map" in metrics) == (config == "map")

    results = run(config, "--eval-only")
    assert results["bbox"]["AP50"] == pytest.approx(metrics["bbox/AP50"], abs=1e-4)


@pytest.mark.parametrize("args", [(), ("--eval-only",)])
def test_expected_results_pass_and_a_mismatch_ends_a_run_with_status_1(run, args):
    short = ["SOLVER.MAX_ITER", "2", "SEED", "1"]
    results = run("map", opts=short)

    def expect(ap, *others):
        expected = [["bbox", "AP50", ap, 0.01], *others]
        return run("map", *args, opts=[*short, "TEST.EXPECTED_RESULTS", str(expected)])

    assert expect(results["bbox"]["AP50"])["bbox"]["AP50"] == results["bbox"]["AP50"]
    for wrong in (
        [results["bbox"]["AP50"] + 0.02],
        [results["bbox"]["AP50"], ["bbox", "AP-of-nothing", 0.0, 100.0]],
    ):
        with pytest.raises(SystemExit) as stop:
            expect(*wrong)
        assert stop.value.code == 1


def test_box_regression_is_learned_with_either_loss_and_stage_by_stage(run, tmp_path):
    regression = ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "1.0"]
    short = ["SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0"]
    for boxes, gradient, loss in (
        ("windows", "error_driven", "loss_map_box"),
        ("regressed", "error_driven", "loss_map_box"),
        ("windows", "none", "loss_box_reg"),
        ("regressed", "none", "loss_box_reg"),
    ):
        keys = ["MODEL.MAP_LOSS.BOX_REG.BOXES", boxes, "MODEL.MAP_LOSS.BOX_REG.GRADIENT", gradient]
        run("map", opts=[*short, *regression, *keys])
        assert read_metrics(tmp_path)[loss] > 0
    run("softmax", opts=short)
    stage = tmp_path / "stage.pth"
    os.rename(tmp_path / "output/model_final.pth", stage)
    before = torch.load(stage, map_location="cpu")["model"]
    only = [
        "MODEL.TRAIN_ONLY",
        "['roi_heads.box_predictor.bbox_pred']",
        "MODEL.WEIGHTS",
        str(stage),
    ]
    run("softmax", opts=[*short, *regression, *only])
    after = torch.load(tmp_path / "output/model_final.pth", map_location="cpu")["model"]
    assert all(torch.equal(after[key], value) for key, value in before.items())
    own = {key.rpartition(".")[2]: after[key] for key in after if key not in before}
    assert set(own) == {"weight", "bias", "target_mean", "target_std"}
    assert own["bias"].any()
    assert own["target_mean"].any()


def test_passes_of_few_images_make_the_update_of_many_and_go_on_when_resumed(run, tmp_path):
    final, trained, losses = tmp_path / "output/model_final.pth", [], []
    opts = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "4", "TEST.EVAL_PERIOD", "0"]
    one_by_one = ["SOLVER.IMS_PER_BATCH", "1", "SOLVER.ACCUMULATE_STEPS", "2"]
    for passes in ([], one_by_one):
        run("softmax", opts=[*opts, *passes, "SOLVER.MAX_ITER", "3"])
        trained.append(torch.load(final, map_location="cpu")["model"])
        losses.append(read_metrics(tmp_path)["total_loss"])
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, msg=key)
    assert losses[1] == pytest.approx(losses[0])
    run("softmax", "--resume", opts=[*opts, *one_by_one, "SOLVER.MAX_ITER", "4"])
    saved = torch.load(final, map_location="cpu")
    assert saved["iteration"] == 3
    assert saved["trainer"]["_trainer"]["optimizer"]["state"]
    with one_line("num_passes: expected at least 1, got 0"):
        run("softmax", opts=["SOLVER.ACCUMULATE_STEPS", "0"])


def test_resuming_keeps_the_momentum(run, tmp_path, monkeypatch):
    run("softmax", opts=["SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "0"])
    saved = torch.load(tmp_path / "output/model_final.pth", map_location="cpu")
    buffers = saved["trainer"]["_trainer"]["optimizer"]["state"]
    seen = {}

    def watch(trainer):
        seen.update(trainer.optimizer.state_dict()["state"])
        raise KeyboardInterrupt

    monkeypatch.setattr(train_net.Trainer, "run_step", watch)
    with pytest.raises(KeyboardInterrupt):
        run("softmax", "--resume", opts=["SOLVER.MAX_ITER", "5"])
    assert len(seen) == len(buffers) > 0
    for key, state in buffers.items():
        assert torch.equal(seen[key]["exp_avg"], state["exp_avg"])


def test_the_predictor_does_not_change_which_windows_train(run, monkeypatch):
    from maploss.modeling.roi_heads import BoxROIHeads

    seen = []
    sample = BoxROIHeads.label_and_sample_proposals

    def watch(self, *args):
        windows = sample(self, *args)
        seen[-1].append(torch.cat([x.proposal_boxes.tensor for x in windows]))
        return windows

    monkeypatch.setattr(BoxROIHeads, "label_and_sample_proposals", watch)
    opts = ["SOLVER.MAX_ITER", "3", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "6", "SEED", "3"]
    for config in ("map", "softmax"):
        seen.append([])
        run(config, opts=[*opts, "DATALOADER.NUM_WORKERS", "1"])
    assert len(seen[0]) == len(seen[1]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_scores_that_are_not_finite_stop_with_iteration_and_checkpoint(run, tmp_path, monkeypatch):
    step = DefaultTrainer.run_step

    def spoil(trainer):
        if trainer.iter == 3:
            with torch.no_grad():
                trainer.model.roi_heads.box_predictor.cls_score.bias[0] = float("nan")
        step(trainer)

    monkeypatch.setattr(DefaultTrainer, "run_step", spoil)
    checkpoint = os.path.join(tmp_path, "output", "model_0000001.pth")
    with pytest.raises(FloatingPointError, match=f"iteration 3.*last checkpoint: {checkpoint}"):
        run("map", opts=["SOLVER.MAX_ITER", "6"])


def test_a_loss_that_is_not_finite_stops_with_the_iteration(run, monkeypatch):
    step = DefaultTrainer.run_step

    def spoil(trainer):
        with torch.no_grad():
            trainer.model.roi_heads.box_predictor.cls_score.bias[0] = float("inf")
        step(trainer)

    monkeypatch.setattr(DefaultTrainer, "run_step", spoil)
    with pytest.raises(FloatingPointError, match=r"(?s)iteration 0.*last checkpoint: none"):
        run("softmax", opts=["SOLVER.MAX_ITER", "6"])


@pytest.fixture
def spoil_evaluation(monkeypatch):
    """Makes a parameter infinite before an evaluation, as a step that diverges does."""

    def spoil(cls, cfg, model, evaluators=None):
        with torch.no_grad():
            model.roi_heads.box_predictor.cls_score.bias[0] = float("inf")
        return test.__func__(cls, cfg, model, evaluators)

    test = DefaultTrainer.test
    monkeypatch.setattr(DefaultTrainer, "test", classmethod(spoil))


@pytest.mark.parametrize(
    ("period", "iteration", "file"), [(2, 1, "model_0000001.pth"), (0, 3, "model_final.pth")]
)
def test_an_evaluation_during_training_stops_with_iteration_and_checkpoint(
    run, tmp_path, spoil_evaluation, period, iteration, file
):
    checkpoint = os.path.join(tmp_path, "output", file)
    message = f"iteration {iteration}: .*last checkpoint: {checkpoint}; .*may hold"
    with pytest.raises(FloatingPointError, match=message):
        run("map", opts=["SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", str(period)])


def test_the_checkpoint_of_an_older_run_is_named_only_when_resuming(run, spoil_evaluation):
    with pytest.raises(FloatingPointError, match=r"last checkpoint: .*model_final\.pth"):
        run("map", opts=["SOLVER.MAX_ITER", "1"])
    opts = ["SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "9", "TEST.EVAL_PERIOD", "2"]
    with pytest.raises(FloatingPointError, match="last checkpoint: none"):
        run("map", opts=opts)
    with pytest.raises(FloatingPointError, match=r"last checkpoint: .*model_final\.pth"):
        run("map", "--resume", opts=opts)


def test_proposals_of_another_data_set_stop_a_run_with_one_line(run, tmp_path):
    write_proposals(str(tmp_path / "other.npz"), ["elsewhere"], [[[0, 0, 5, 5]]])
    with pytest.raises(SystemExit) as stop:
        run("map", opts=["DATASETS.PROPOSAL_FILES_TRAIN", f"('{tmp_path / 'other.npz'}',)"])
    assert re.fullmatch(r"error: .*other\.npz: no proposals for image '0' .*", str(stop.value))


def test_evaluating_without_weights_is_an_error(run, tmp_path):
    with one_line(f"--eval-only: expected MODEL.WEIGHTS .*{tmp_path}"):
        run("map", "--eval-only")


LOSS = "MODEL.MAP_LOSS"
WRONG = [
    (f"{LOSS}.GRADIENT", "nonsense", f"{LOSS}: gradient: expected .* got 'nonsense'"),
    (f"{LOSS}.AP_TYPE", "nonsense", f"{LOSS}.AP_TYPE: expected .* got 'nonsense'"),
    (f"{LOSS}.TRANSITIVITY", "nonsense", f"{LOSS}: transitivity .* got 'nonsense'"),
    (f"{LOSS}.NEAREST_STEPS.PAIRING", "nonsense", f"{LOSS}.NEAREST_STEPS: .* got 'nonsense'"),
    (f"{LOSS}.IOU_THRESHS", "nonsense", f"{LOSS}: iou_threshs: .* got 'nonsense'"),  # a TypeError
    (f"{LOSS}.MEMORY", "-1", f"{LOSS}.MEMORY: expected 0 or more minibatches, got -1"),
    ("MODEL.ROI_HEADS.NAME", "nonsense", "No object named 'nonsense' found"),  # a KeyError
    ("MODEL.WEIGHTS", "/no/such.pth", "Checkpoint not found: /no/such.pth"),
    ("MODEL.NO_SUCH_KEY", "nonsense", "Config: .*MODEL.NO_SUCH_KEY nonsense"),
]


@pytest.mark.parametrize(
    ("args", "key", "value", "says"),
    [
        *((args, *wrong) for args in ((), ("--eval-only",)) for wrong in WRONG),
        ((), "SOLVER.OPTIMIZER", "nonsense", "SOLVER.OPTIMIZER: expected .* got 'nonsense'"),
    ],
)
def test_a_wrong_setting_stops_a_run_before_the_first_iteration_with_one_line(
    run, monkeypatch, args, key, value, says
):
    monkeypatch.setattr(train_net.Trainer, "run_step", lambda self: pytest.fail("it started"))
    with one_line(says):
        run("map", *args, opts=[key, value])


def test_what_fails_in_an_iteration_itself_keeps_its_traceback(run, monkeypatch):
    def fail(trainer):
        raise TypeError("a bug")

    monkeypatch.setattr(DefaultTrainer, "run_step", fail)
    with pytest.raises(TypeError, match="a bug"):
        run("map", opts=["SOLVER.MAX_ITER", "1"])


def test_a_key_error_that_no_name_of_the_config_made_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr(train_net.Trainer, "build_model", lambda cfg: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        run("map", "--eval-only")


def test_evaluating_leaves_the_config_of_the_training_and_without_one_writes_its_own(run, tmp_path):
    config = tmp_path / "output/config.yaml"
    run("map", opts=["SOLVER.MAX_ITER", "1"])
    trained = config.read_bytes()
    other = ["MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.45"]
    run("map", "--eval-only", opts=other)
    assert config.read_bytes() == trained
    log = re.sub("\x1b\\[[^m]*m", "", (tmp_path / "output/log.txt").read_text())
    assert "NMS_THRESH_TEST: 0.45" in log
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth")]
    elsewhere = ["OUTPUT_DIR", str(tmp_path / "elsewhere")]
    for threshold in ("0.45", "0.4"):
        other[1] = threshold
        run("map", "--eval-only", opts=[*other, *weights, *elsewhere])
        written = (tmp_path / "elsewhere/config.yaml").read_text()
        assert f"NMS_THRESH_TEST: {threshold}" in written
    run("map", "--resume", opts=[*other, "SOLVER.MAX_ITER", "2"])
    assert "NMS_THRESH_TEST: 0.4" in config.read_text()


def test_each_of_several_data_sets_has_a_folder_of_results(run, tmp_path):
    (declared,) = data_settings(tmp_path)["DATASETS.DECLARED"]
    keys = {
        "DATASETS.DECLARED": [declared, {**declared, "NAME": "again"}],
        "DATASETS.TEST": ("tiny", "again"),
        "DATASETS.PROPOSAL_FILES_TEST": (str(tmp_path / "tiny.npz"),) * 2,
        "SOLVER.MAX_ITER": 1,
    }
    try:
        run("map", opts=as_list(keys))
    finally:
        DatasetCatalog.remove("again")
    for name in ("tiny", "again"):
        folder = tmp_path / "output/inference" / name
        assert json.loads((folder / "ap.json").read_text())["dataset"] == name
        assert (folder / "pr_curves.png").is_file()


def warnings_of(tmp_path):
    """The warnings of the log since the call before."""
    log = tmp_path / "output/log.txt"
    lines = [x for x in log.read_text().splitlines() if "WARNING" in x and "MAP_LOSS" in x]
    log.write_text("")
    return lines


@pytest.mark.parametrize("memory", ["0", "2"])
def test_resuming_with_other_overlaps_or_memory_warns_and_with_the_same_does_not(
    run, tmp_path, memory
):
    overlaps = "MODEL.MAP_LOSS.IOU_THRESHS"
    opts = [overlaps, "[0.5, 0.75]", "MODEL.MAP_LOSS.MEMORY", memory]
    run("map", opts=[*opts, "SOLVER.MAX_ITER", "2"])
    run("map", "--resume", opts=[*opts, "SOLVER.MAX_ITER", "3"])
    assert warnings_of(tmp_path) == []
    run("map", "--resume", opts=[overlaps, "[0.5]", *opts[2:], "SOLVER.MAX_ITER", "4"])
    (line,) = warnings_of(tmp_path)
    assert f"{overlaps} is [0.5]: the checkpoint was trained with [0.5, 0.75]" in line
    left_out = "the detections that it remembers are left out"
    assert (left_out in line) == (memory == "2")
    run("map", "--resume", opts=[overlaps, "[0.5]", "SOLVER.MAX_ITER", "5", opts[2], "1"])
    (line,) = warnings_of(tmp_path)
    assert f"MODEL.MAP_LOSS.MEMORY is 1: the checkpoint was trained with {memory}" in line


def test_resuming_from_a_checkpoint_that_is_gone_names_it(run, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output/last_checkpoint").write_text("gone.pth")
    with one_line(r"Checkpoint not found: .*gone\.pth; delete .*last_checkpoint"):
        run("map", "--resume")


def test_resuming_goes_on_before_a_damaged_checkpoint_and_evaluating_names_it(run, tmp_path):
    opts = ["SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "0"]
    run("softmax", opts=opts)
    output = tmp_path / "output"
    whole = torch.load(output / "model_final.pth")
    for name in ("model_final.pth", "model_0000003.pth"):
        path = output / name
        path.write_bytes(path.read_bytes()[:-100])
    with one_line(r"Cannot load checkpoint .*model_final\.pth"):
        run("softmax", "--eval-only")
    run("softmax", "--resume", opts=opts)
    assert "going on from the one before it" in (output / "log.txt").read_text()
    again = torch.load(output / "model_final.pth")
    assert again["iteration"] == whole["iteration"] == 4
    assert torch.load(output / "model_0000003.pth")["iteration"] == 3
