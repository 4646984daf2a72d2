# SPDX-License-Identifier: Apache-2.0
"""The reward of a sample: a short training run with its values, and the AP that comes of it."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

# What a training logs this high, or as nan, for so many iterations, will not fall any more
# (Tao et al., NeurIPS 2021: at nan or at loss 1, 50 iterations).
_STUCK_FROM = 0.999
_STUCK_ITERATIONS = 50
_POLL_SECONDS = 0.5
# Asks Linux to kill this process with its parent, then becomes the command.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Sample:
    """Numbers theta (d,) in [0, 1] to evaluate, and the KEY VALUE .. that they stand for."""

    round: int
    index: int
    theta: torch.Tensor
    overrides: list[str]


class ProxyError(RuntimeError):
    """A sample has no reward; the message says why."""


class Proxy(Protocol):
    """Evaluates samples, several at once in threads."""

    def __call__(self, sample: Sample, worker: int) -> float:
        """
        The reward, not below 0; `worker`, from 0, is no other's meanwhile.

        Raises:
            Exception: there is none.
        """

    def stop(self) -> None:
        """Ends what is being evaluated, at once."""


class TrainingProxy:
    """Runs train_net.py for each sample, in a process and a folder of its own."""

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        reward: str,
        stuck_loss: str = "",
        num_workers: int = 1,
    ) -> None:
        """
        Args:
            command: of the run, without what a sample adds: its KEY VALUE .. and OUTPUT_DIR.
            output: folder of all samples.
            reward: of "bbox" in the run's inference/ap.json, such as "AP50".
            stuck_loss: name in metrics.json, see :func:`is_stuck`; "" stops no run.
            num_workers: how many runs share the machine.
        """
        self._command = list(command)
        self._output = output.resolve()
        self._reward = reward
        self._stuck_loss = stuck_loss
        self._num_workers = num_workers
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def __call__(self, sample: Sample, worker: int) -> float:
        """
        AP of the sample's run, in percent.

        Raises:
            ProxyError: the run failed, was stopped, or has no finite result. The message has the
                last lines that it said.
        """
        folder = self._folder(sample)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = [*self._command, *sample.overrides, "OUTPUT_DIR", str(folder)]
        try:
            self._run(command, folder, worker)
            return self._read_reward(folder)
        finally:
            for checkpoint in folder.glob("*.pth"):
                checkpoint.unlink()

    def _folder(self, sample: Sample) -> Path:
        if sample.round < 0:
            return self._output / "start"
        return self._output / f"round_{sample.round:03}" / f"sample_{sample.index}"

    def _run(self, command: list[str], folder: Path, worker: int) -> None:
        wrapper = [sys.executable, "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        executable = shutil.which(command[0]) or command[0]
        # Not log.txt, which the run writes itself.
        with open(folder / "console.txt", "wb") as console:
            process = subprocess.Popen(
                [*wrapper, executable, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=self._environment(worker),
                # A group of its own, to be killed with the processes that read its images.
                start_new_session=True,
            )
            try:
                status = self._wait(process, folder)
            except BaseException:
                _kill_group(process)
                raise
        if status != 0:
            raise ProxyError(f"exit status {status}: {_last_lines(folder / 'console.txt')}")

    def _wait(self, process: subprocess.Popen, folder: Path) -> int:
        while True:
            try:
                return process.wait(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if self._stopped.is_set():
                    raise ProxyError("the search was stopped") from None
                if self._stuck_loss and is_stuck(folder / "metrics.json", self._stuck_loss):
                    raise ProxyError(
                        f"stopped: {self._stuck_loss} nan or at least {_STUCK_FROM} for "
                        f"{_STUCK_ITERATIONS} iterations"
                    ) from None

    def _environment(self, worker: int) -> dict[str, str]:
        environment = dict(os.environ)
        num_gpus = torch.cuda.device_count()
        if num_gpus:
            devices = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_gpus)))
            environment["CUDA_VISIBLE_DEVICES"] = devices.split(",")[worker % num_gpus]
        # Else each run takes all cores, and they wait for each other.
        cores = os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // self._num_workers)))
        return environment

    def _read_reward(self, folder: Path) -> float:
        path = folder / "inference" / "ap.json"
        try:
            results = json.loads(path.read_text())["bbox"]
        except (OSError, ValueError, KeyError) as error:
            last = _last_lines(folder / "console.txt")
            raise ProxyError(f"{path}: no result ({error!r}): {last}") from error
        reward = results.get(self._reward)
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise ProxyError(
                f"{path}: expected a finite number for {self._reward}, got {reward}; there are "
                f"{', '.join(results)}"
            )
        return float(reward)


def is_stuck(metrics: Path, name: str) -> bool:
    """
    Whether a loss was nan or at least .999 in all that was logged of the last 50 iterations.

    Args:
        metrics: metrics.json of a run that may be writing it.
        name: of the loss.
    """
    try:
        lines = metrics.read_text().splitlines()
    except OSError:
        return False
    since = last = None
    for line in lines:
        try:
            logged = json.loads(line)
            value, last = logged[name], logged["iteration"]
        except (ValueError, KeyError):  # a line half written, or one of other things
            continue
        if not (math.isnan(value) or value >= _STUCK_FROM):
            since = None
        elif since is None:
            since = last
    return since is not None and last - since + 1 >= _STUCK_ITERATIONS


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_lines(path: Path, num: int = 5) -> str:
    text = path.read_text(errors="replace").strip()
    return "\n".join(text.splitlines()[-num:])[-1000:]
