# SPDX-License-Identifier: Apache-2.0
"""Runs whose processes are killed, whose disk is full, whose ranks end: what is said, and lost."""

import multiprocessing
import os
import re
import resource
import signal
import time
from datetime import timedelta

import pytest
import torch
from detectron2.engine import DefaultTrainer, default_argument_parser
from detectron2.utils import comm
from torch.distributed import distributed_c10d

import train_net
from tests.distributed import rank_outcomes, run_ranks, start_fresh
from tests.tiny import arguments


def train(args):
    train_net.main(default_argument_parser().parse_args(args))


def train_twice(args, output):
    """Without a stop, and from the middle on; returns both models and optimizers."""
    trained = []
    for resume in ([], ["--resume"]):
        train([*args, *resume][:2] + resume + args[2:])
        comm.synchronize()
        state = torch.load(output / "model_final.pth", map_location="cpu", weights_only=False)
        trained.append((state["model"], state["trainer"]["_trainer"]["optimizer"]["state"]))
        comm.synchronize()
        if comm.is_main_process():
            (output / "last_checkpoint").write_text("model_0000003.pth")
        comm.synchronize()
    return trained


def fail_in_iteration_3(args, how):
    step = DefaultTrainer.run_step

    def fail(trainer):
        if trainer.iter == 3 and how == "hangs":
            # As the timeout of Detectron2's launch(), in which processes may be slow to start.
            distributed_c10d._set_pg_timeout(timedelta(seconds=1))
        if trainer.iter == 3 and comm.get_rank() == 1:
            if how == "hangs":
                time.sleep(6)
            if how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise LookupError("something of rank 1 failed")
        step(trainer)

    DefaultTrainer.run_step = fail
    train(args)


def models(path):
    return torch.load(path, map_location="cpu", weights_only=False)["model"]


def run_until(path, args, delay):
    """Kills a run so many seconds after the file is there."""
    process = start_fresh(train, args)
    end = time.monotonic() + 120
    while not path.exists() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(tiny_data):
    keys = {"SOLVER__MAX_ITER": 60, "SOLVER__CHECKPOINT_PERIOD": 4, "DATALOADER__NUM_WORKERS": 1}
    killed, resumed = tiny_data / "killed", arguments(tiny_data, "killed", "--resume", **keys)
    run_until(killed / "model_0000007.pth", arguments(tiny_data, "killed", **keys), 0.0)
    run_until(killed / "model_0000031.pth", resumed, 0.07)
    assert not (killed / "model_final.pth").exists()
    train(resumed)
    train(arguments(tiny_data, "whole", **keys))
    whole = models(tiny_data / "whole/model_final.pth")
    ended = models(killed / "model_final.pth")
    assert whole.keys() == ended.keys()
    assert all(torch.equal(whole[key], ended[key]) for key in whole)


def test_a_worker_that_is_killed_stops_with_iteration_and_checkpoint(tiny_data, monkeypatch):
    step = DefaultTrainer.run_step
    # Workers of an earlier test may still be about to end.
    before = set(multiprocessing.active_children())

    def kill_worker(trainer):
        if trainer.iter == 3:
            (worker,) = set(multiprocessing.active_children()) - before
            worker.kill()
            time.sleep(1)
        step(trainer)

    monkeypatch.setattr(DefaultTrainer, "run_step", kill_worker)
    with pytest.raises(SystemExit) as stop:
        train(arguments(tiny_data, "output", DATALOADER__NUM_WORKERS=1, SOLVER__MAX_ITER=200))
    assert re.fullmatch(
        r"error: training stopped in iteration 3: a process that reads images has died: DataLoader "
        r"worker \(pid.*\) .* \(last checkpoint: .*/output/model_0000001\.pth\)",
        str(stop.value),
    )


def train_until_the_disk_is_full(args, iteration, output):
    """From `iteration` on no file can have more than 100 bytes; `output` is the pipe for prints."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    step = DefaultTrainer.run_step

    def fill(trainer):
        if trainer.iter == iteration:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        step(trainer)

    DefaultTrainer.run_step = fill
    train(args)


@pytest.mark.parametrize(
    ("iteration", "period", "what", "last"),
    [
        (3, 2, r"Cannot save .*/output/model_0000003\.pth", r"model_0000001\.pth"),
        (19, 9, r"cannot write .*/output/metrics\.json", r"model_0000017\.pth"),
    ],
)
def test_a_full_disk_stops_with_file_iteration_and_checkpoint(
    tiny_data, iteration, period, what, last
):
    keys = {"SOLVER__CHECKPOINT_PERIOD": period, "SOLVER__MAX_ITER": 40}
    args = arguments(tiny_data, "output", **keys)
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = start_fresh(train_until_the_disk_is_full, args, iteration, writer)
    writer.close()
    with os.fdopen(os.dup(reader.fileno())) as output:
        said = [line for line in output.read().splitlines() if line.startswith("error: ")]
    process.join()
    assert process.exitcode == 1
    message = (
        f"error: training stopped in iteration {iteration}: {what}: .*"
        rf" \(last checkpoint: .*/output/{last}\)"
    )
    assert len(said) == 1
    assert re.fullmatch(message, said[0])


def test_two_ranks_resume_exactly(tiny_data):
    args = arguments(tiny_data, "output")
    (whole, resumed), _ = run_ranks(train_twice, 2, args, tiny_data / "output")
    for a, b in zip(whole, resumed, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["fails", "is killed", "hangs"])
def test_a_rank_that_ends_or_hangs_ends_the_other_with_iteration_and_checkpoint(tiny_data, how):
    args = arguments(tiny_data, "output", SOLVER__MAX_ITER=1000)
    other, ended = rank_outcomes(fail_in_iteration_3, 2, args, how)
    said = other.output.splitlines()[-1]
    assert re.fullmatch(
        r"error: training stopped in iteration 3: another process of this training has died or "
        r"does not answer: .* \(last checkpoint: .*/output/model_0000001\.pth\)",
        said,
    )
    assert other.status == 1
    if how == "fails":
        assert "LookupError: something of rank 1 failed" in ended.output
    if how == "hangs":
        assert other.seconds < ended.seconds
    else:
        assert other.seconds - ended.seconds < 15
