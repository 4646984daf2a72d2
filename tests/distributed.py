# SPDX-License-Identifier: Apache-2.0
"""Fresh processes; and ranks over gloo on the CPU, as Detectron2's launch() starts them on GPUs."""

import contextlib
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from detectron2.engine import defaults
from detectron2.utils import comm
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

# As fresh as spawned processes, but forked from one that has imported all that takes seconds.
_FRESH = multiprocessing.get_context("forkserver")
_FRESH.set_forkserver_preload(["maploss", "train_net", "matplotlib.pyplot", "scipy.optimize"])


class Outcome(NamedTuple):
    """How a rank ended: exit status (-9: killed), what it returned, what it printed."""

    status: int | None
    result: Any
    output: str
    seconds: float


def start_fresh(function: Callable, *args: Any) -> BaseProcess:
    """
    A process that has begun to call `function(*args)`, one of a module and what can be pickled.

    Nothing that is patched or registered here is known there.
    """
    process = _FRESH.Process(target=_call, args=(function, *args))
    process.start()
    return process


def _call(function: Callable, *args: Any) -> None:
    # As in a process that a user starts. Else workers of data loaders would come from a fork server
    # that does not notice when this process is killed.
    multiprocessing.set_start_method("fork", force=True)
    function(*args)


def run_ranks(function: Callable, world_size: int, *args: Any, limit: float = 120.0) -> list:
    """
    Calls `function(*args)` in each of `world_size` processes; their results in order of ranks.

    detectron2.utils.comm and torch.distributed (gloo) know the ranks, and Detectron2's trainer
    wraps its model in DistributedDataParallel for the CPU. Results can be pickled, and what
    start_fresh says of `function` and its arguments holds.

    Raises:
        AssertionError: a rank failed or was killed after `limit` seconds, with all output.
    """
    outcomes = rank_outcomes(function, world_size, *args, limit=limit)
    if any(x.status != 0 for x in outcomes):
        told = [f"rank {i}: status {x.status}\n{x.output}" for i, x in enumerate(outcomes)]
        raise AssertionError("\n".join(told))
    return [x.result for x in outcomes]


def rank_outcomes(
    function: Callable, world_size: int, *args: Any, limit: float = 120.0
) -> list[Outcome]:
    """As run_ranks, for ranks that are expected to fail; whatever lasts is killed at the limit."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        ranks = [
            start_fresh(_rank, folder, i, world_size, function, args) for i in range(world_size)
        ]
        ended = {}
        try:
            while len(ended) < world_size and time.monotonic() - start < limit:
                for i, process in enumerate(ranks):
                    if process.exitcode is not None:
                        ended.setdefault(i, time.monotonic() - start)
                time.sleep(0.02)
        finally:
            for process in ranks:
                # With workers of data loaders, which may not notice.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join()
        return [
            Outcome(x.exitcode, *_told(folder, i), ended.get(i, limit)) for i, x in enumerate(ranks)
        ]


def _told(folder: str, rank: int) -> tuple[Any, str]:
    result = None
    if os.path.exists(path := os.path.join(folder, f"result{rank}")):
        with open(path, "rb") as f:
            result = pickle.load(f)
    with open(os.path.join(folder, f"output{rank}"), errors="replace") as f:
        return result, f.read()


def _rank(folder: str, rank: int, world_size: int, function: Callable, args: tuple) -> None:
    os.setsid()
    with open(os.path.join(folder, f"output{rank}"), "w") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    _create_local_group(world_size)
    # Detectron2 gives the number of a GPU.
    defaults.create_ddp_model = lambda model, **kwargs: (
        DistributedDataParallel(model, **kwargs) if world_size > 1 else model
    )
    try:
        result = function(*args)
    except BaseException as error:
        if isinstance(error, SystemExit):
            sys.stderr.write(f"{error}\n")
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # others may be waiting for this one, and it for them
    path = os.path.join(folder, f"result{rank}")
    with open(f"{path}.tmp", "wb") as f:
        pickle.dump(result, f)
    os.replace(f"{path}.tmp", path)
    distributed.barrier()
    distributed.destroy_process_group()


def _create_local_group(world_size: int) -> None:
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(world_size)
    else:  # Detectron2 0.5, whose launch() does so itself
        comm._LOCAL_PROCESS_GROUP = distributed.new_group(list(range(world_size)))
