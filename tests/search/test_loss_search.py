# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
import operator
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from maploss.engine import load_config
from maploss.search import (
    LossSearch,
    Range,
    Record,
    SearchSettings,
    SearchSpace,
    make_sampler,
    read_search_file,
    search_loss,
)

from tests.distributed import start_fresh

TARGET = torch.tensor([0.8, 0.2, 0.5, 0.65, 0.35, 0.9, 0.1, 0.5], dtype=torch.float64)


class FunctionProxy:
    """Stands for a training: 100 less 100 times the squared distance to the target."""

    def __init__(self):
        self.calls, self.most_at_once, self._running = [], 0, set()
        self.is_stopped = False

    def __call__(self, sample, worker):
        if worker in self._running:
            raise SystemError("two samples of one worker")
        self._running.add(worker)
        self.most_at_once = max(self.most_at_once, len(self._running))
        self.calls.append((sample.round, sample.index))
        time.sleep(0.002 * ((sample.index * 7) % 3))
        try:
            return self.reward(sample)
        finally:
            self._running.remove(worker)

    def reward(self, sample):
        return 100 - 100 * float(((sample.theta - TARGET) ** 2).sum())

    def stop(self):
        self.is_stopped = True


def settings_of(rounds, samples, seed=0):
    space = SearchSpace([Range(f"K{i}", 0.0, 1.0, is_log=False) for i in range(len(TARGET))])
    start = torch.full((len(TARGET),), 0.5, dtype=torch.float64)
    path = Path("p.yaml")
    return SearchSettings(path, path, "AP", rounds, samples, space, start, seed=seed)


def search(settings, path, proxy=None, workers=1, report=lambda result: None):
    search = LossSearch(
        settings, make_sampler(settings), proxy or FunctionProxy(), Record(path), workers
    )
    return search.run(report)


def record_of(path):
    """All samples in order, without their times."""
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    samples = [{key: x for key, x in s.items() if key != "seconds"} for s in samples]
    keys = [(s["round"], s["index"]) for s in samples]
    assert len(set(keys)) == len(keys)
    return sorted(samples, key=lambda s: (s["round"], s["index"]))


def test_the_search_approaches_the_best_numbers_within_40_rounds_of_8(tmp_path):
    results = []
    best = search(settings_of(40, 8), tmp_path / "r.jsonl", report=results.append)
    start = results[0]
    assert (start.round, len(start.samples)) == (-1, 1)
    assert start.samples[0].theta == [0.5] * 8
    first, last = ((r.mean - TARGET).norm() for r in (start, results[-1]))
    assert last < 0.35 * first
    assert best.reward > start.samples[0].reward + 30
    last_mean = sum(s.reward for s in results[-1].samples) / 8
    assert last_mean > start.samples[0].reward + 30
    assert [r.round for r in results] == list(range(-1, 40))


def test_a_search_cut_anywhere_goes_on_as_if_it_were_not(tmp_path):
    path, settings = tmp_path / "whole.jsonl", settings_of(3, 3)
    search(settings, path)
    content, expected = path.read_bytes(), record_of(path)
    rng = random.Random(0)
    for cut in [0, 1, len(content) - 1, len(content), *rng.choices(range(len(content)), k=6)]:
        rest, proxy, means = tmp_path / "rest.jsonl", FunctionProxy(), []
        rest.write_bytes(content[:cut])
        search(settings, rest, proxy, report=lambda result, means=means: means.append(result.mean))
        assert record_of(rest) == expected
        assert len(proxy.calls) == 10 - content[:cut].count(b"\n")


def test_several_workers_give_the_same_record_as_one(tmp_path):
    one, three, proxy = tmp_path / "one.jsonl", tmp_path / "three.jsonl", FunctionProxy()
    search(settings_of(3, 7), one)
    search(settings_of(3, 7), three, proxy, workers=3)
    assert record_of(one) == record_of(three)
    assert 1 < proxy.most_at_once <= 3


class FailingProxy(FunctionProxy):
    def reward(self, sample):
        if sample.index == 1:
            raise ValueError(f"sample of round {sample.round} broke")
        return super().reward(sample)


def test_a_sample_that_fails_gets_0_its_error_is_kept_and_the_search_goes_on(tmp_path, caplog):
    path = tmp_path / "r.jsonl"
    best = search(settings_of(3, 3), path, FailingProxy())
    samples = record_of(path)
    failed = [s for s in samples if s["error"]]
    assert [(s["round"], s["reward"]) for s in failed] == [(0, 0), (1, 0), (2, 0)]
    assert failed[2]["error"] == "sample of round 2 broke"
    assert "Round 2, sample 1 failed: sample of round 2 broke" in caplog.text
    assert best.reward == max(s["reward"] for s in samples if not s["error"])
    assert search(settings_of(3, 3), path, FailingProxy()) == best


class BrokenProxy(FunctionProxy):
    def reward(self, sample):
        if sample.round >= 0:
            raise RuntimeError
        return 0.5


def test_without_any_other_result_the_start_is_the_best(tmp_path):
    best = search(settings_of(2, 2), tmp_path / "r.jsonl", BrokenProxy())
    assert (best.round, best.reward) == (-1, 0.5)
    assert [s["error"] for s in record_of(tmp_path / "r.jsonl")] == [None] + 4 * ["RuntimeError"]


class InterruptedProxy(FunctionProxy):
    def reward(self, sample):
        if sample.round == 1 and not self.is_stopped:
            if sample.index == 0:
                os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 20
            while not self.is_stopped and time.monotonic() < deadline:
                time.sleep(0.01)
            raise RuntimeError("stopped" if self.is_stopped else "not stopped")
        return super().reward(sample)


@pytest.fixture
def interruptible():
    """What was begun in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_what_runs_and_records_nothing_of_it(tmp_path):
    path, settings, proxy = tmp_path / "r.jsonl", settings_of(3, 4), InterruptedProxy()
    with pytest.raises(KeyboardInterrupt):
        search(settings, path, proxy, workers=2)
    assert {s["round"] for s in record_of(path)} == {-1, 0}
    search(settings, path)
    search(settings, tmp_path / "whole.jsonl")
    assert record_of(path) == record_of(tmp_path / "whole.jsonl")


def test_a_record_of_another_search_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    search(settings_of(2, 3), path)
    with pytest.raises(ValueError, match="Round 0, sample 0: the record has other numbers"):
        search(settings_of(2, 3, seed=1), path)
    path.write_text('{"round": 0}\n')
    with pytest.raises(
        ValueError, match=r"r.jsonl, line 1: expected a sample, got '{\"round\": 0}'"
    ):
        Record(path)


def test_a_whole_search_leaves_configs_and_pictures(search_file, stand_in, tmp_path):
    settings = read_search_file(search_file(), ["SEED", "5"])
    output = tmp_path / "a/out"
    best = search_loss(settings, output, stand_in)
    samples = record_of(output / "samples.jsonl")
    assert len(samples) == 1 + 4 * 3
    assert best.reward == max(s["reward"] for s in samples) > samples[0]["reward"]
    failed = [s for s in samples if s["error"]]
    assert failed
    assert all("error: this margin is not to my taste" in s["error"] for s in failed)
    cfg = load_config(str(output / "best.yaml"), [])
    values = settings.space.values(torch.tensor(best.theta, dtype=torch.float64))
    assert {key: operator.attrgetter(key)(cfg) for key in values} == values
    assert cfg.SEED == 5
    assert Path(cfg.OUTPUT_DIR) == output / "best"
    assert cfg.MODEL.ROI_HEADS.NAME == "MAPROIHeads"
    assert yaml.safe_load((output / "best.yaml").read_text())["_BASE_"] == "../../proxy.yaml"
    mean = load_config(str(output / "mean.yaml"), [])
    assert mean.MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN != cfg.MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN
    assert cv2.imread(str(output / "rewards.png")) is not None
    assert not list(output.glob("functions_round_*.png"))
    assert list((output / "tensorboard").iterdir())
    assert not list(output.rglob("*.pth"))


def test_the_folder_of_a_search_is_of_one_search_file_and_one_process(
    search_file, stand_in, tmp_path
):
    output = tmp_path / "out"
    search_loss(read_search_file(search_file(ROUNDS=1), []), output, stand_in)
    other = read_search_file(search_file(ROUNDS=2), [])
    with pytest.raises(ValueError, match=r"search.yaml: the search here began with another"):
        search_loss(other, output, stand_in)
    same = search_file(ROUNDS=1)
    with pytest.raises(ValueError, match=r"proxy_config.yaml: the search here began with another"):
        search_loss(read_search_file(same, ["SEED", "5"]), output, stand_in)
    started = threading.Event()
    slow = [sys.executable, "-c", "import time; time.sleep(0.4)"]
    other = tmp_path / "other"
    thread = threading.Thread(target=lambda: (started.set(), search_once(same, other, slow)))
    thread.start()
    started.wait()
    while not (other / "start").exists():
        time.sleep(0.01)
    with pytest.raises(BlockingIOError, match="other: another process is searching here"):
        search_loss(read_search_file(same, []), other, slow)
    thread.join()


def search_once(path, output, command):
    with contextlib.suppress(ValueError):  # its start has no result
        search_loss(read_search_file(path, []), output, command, num_workers=2)


def test_a_start_that_fails_ends_the_search_and_is_not_recorded(search_file, stand_in, tmp_path):
    output, settings = tmp_path / "out", read_search_file(search_file(ROUNDS=1), [])
    failing = [sys.executable, "-c", "raise SystemExit('no such data set')"]
    with pytest.raises(ValueError, match=r"The start has no result.*no such data set"):
        search_loss(settings, output, failing)
    assert count_lines(output / "samples.jsonl") == 0
    # Mended, the same search runs.
    assert search_loss(settings, output, stand_in).reward > 0
    assert count_lines(output / "samples.jsonl") == 1 + 3


def test_a_record_of_other_numbers_is_refused(search_file, stand_in, tmp_path):
    output, settings = tmp_path / "out", read_search_file(search_file(ROUNDS=1), [])
    search_loss(settings, output, stand_in)
    lines = (output / "samples.jsonl").read_text().splitlines()
    sample = json.loads(lines[2])
    sample["theta"][0] += 1e-6
    lines[2] = json.dumps(sample)
    (output / "samples.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"Round 0, sample \d: the record has other numbers or ov"):
        search_loss(settings, output, stand_in)


def test_there_is_at_least_one_worker(search_file, stand_in, tmp_path):
    with pytest.raises(ValueError, match="num_workers: expected at least 1, got 0"):
        search_loss(read_search_file(search_file(), []), tmp_path / "out", stand_in, 0)


def search_in_two_workers(path, output, command):
    search_loss(read_search_file(path, []), output, command, 2)


def is_running(text):
    """Whether a process has this in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_after_kill_9_the_same_further_rounds_are_run(search_file, stand_in, tmp_path):
    path, output = search_file(), tmp_path / "killed"
    search_loss(read_search_file(path, []), tmp_path / "whole", stand_in)
    expected = record_of(tmp_path / "whole/samples.jsonl")
    samples = output / "samples.jsonl"
    process = start_fresh(search_in_two_workers, path, output, stand_in)
    while count_lines(samples) < 6:
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    # The trainings have ended with it.
    deadline = time.monotonic() + 5
    while is_running(f"OUTPUT_DIR\0{output}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(f"OUTPUT_DIR\0{output}")
    assert 6 <= count_lines(samples) < len(expected)
    best = search_loss(read_search_file(path, []), output, stand_in)
    assert record_of(samples) == [
        {**s, "error": s["error"] and s["error"].replace("whole", "killed")} for s in expected
    ]
    assert best.reward == max(s["reward"] for s in expected)
    assert not list(output.glob(".*"))
    for name in ("best.yaml", "mean.yaml"):
        text = (tmp_path / "whole" / name).read_text()
        assert (output / name).read_text() == text.replace(str(tmp_path / "whole"), str(output))


def test_the_best_config_extends_the_target_without_what_is_the_proxys_own(
    search_file, stand_in, tmp_path
):
    (tmp_path / "whole.yaml").write_text('_BASE_: "proxy.yaml"\nSOLVER:\n  MAX_ITER: 77\n')
    path = search_file(TARGET="whole.yaml", OVERRIDES=["SOLVER.MAX_ITER", 3], ROUNDS=1)
    best = search_loss(read_search_file(path, []), tmp_path / "out", stand_in)
    cfg = load_config(str(tmp_path / "out/best.yaml"), [])
    assert cfg.SOLVER.MAX_ITER == 77
    found = dict(zip(best.overrides[::2], best.overrides[1::2], strict=True))
    assert found["SOLVER.MAX_ITER"] == "3"
    margin = float(found["MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN"])
    assert margin == cfg.MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN
