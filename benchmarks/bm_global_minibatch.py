# SPDX-License-Identifier: Apache-2.0
"""
What one mAP over several processes costs: bytes sent, and the time of each part of the loss.

    python benchmarks/bm_global_minibatch.py [--processes 1 2 4] [--images 4] [--windows 2000] \
        [--classes 20] [--max-objects 4] [--memory 0] [--repeats 5]

Processes over gloo on this machine, each with --images images of the windows of `bm_map_loss.py`,
loss and backward pass. Prints for each number of processes: what a process sends and gets
in one step (counted at torch.distributed's calls), what all scores would be, the median time, and
what it and its parts take of a core, which leaves out waiting for others.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from bm_map_loss import NMS_THRESH, Minibatch, make_minibatch
from detectron2.layers import batched_nms
from maploss.layers import DetectionMemory, map_loss
from report import Row, machine
from tabulate import tabulate

PARTS = ("match", "nms", "ap", "gradient", "exchange")


class Setting(NamedTuple):
    """What each process has, the minibatches of its memory, and how often it is run."""

    images: int = 4
    windows: int = 2000
    classes: int = 20
    max_objects: int = 4
    memory: int = 0
    repeats: int = 5


class Result(NamedTuple):
    """
    Of the first process, one step. wall, cpu, parts: median seconds, the parts' of CPU. sent, got,
    score_bytes: bytes. present: classes with an object. detections: told by all processes, longest:
    by the one that tells most.
    """

    wall: float
    cpu: float
    parts: dict[str, float]
    sent: int
    got: int
    score_bytes: int
    present: int
    detections: int
    longest: int


@contextlib.contextmanager
def counted_bytes() -> Iterator[dict[str, int]]:
    """What goes through torch.distributed's collective calls meanwhile."""
    count = {"sent": 0, "got": 0}
    gather, reduce = dist.all_gather, dist.all_reduce

    def all_gather(rows: list[torch.Tensor], own: torch.Tensor, **kwargs):
        count["sent"] += own.nbytes
        count["got"] += sum(x.nbytes for x in rows) - own.nbytes
        return gather(rows, own, **kwargs)

    def all_reduce(own: torch.Tensor, **kwargs):
        count["sent"] += own.nbytes
        count["got"] += own.nbytes
        return reduce(own, **kwargs)

    dist.all_gather, dist.all_reduce = all_gather, all_reduce
    try:
        yield count
    finally:
        dist.all_gather, dist.all_reduce = gather, reduce


def images_of(batch: Minibatch, first: int, last: int) -> Minibatch:
    """What belongs to images first .. last - 1."""
    windows = (batch.image_ids >= first) & (batch.image_ids < last)
    objects = (batch.gt_image_ids >= first) & (batch.gt_image_ids < last)
    return Minibatch(*(x[windows] for x in batch[:3]), *(x[objects] for x in batch[3:]))


def count_detections(own: Minibatch, classes: Sequence[int], num_ranks: int) -> list[int]:
    """What Detectron2's NMS keeps of each process's windows, in all classes."""
    kept = sum(
        len(batched_nms(own.boxes, own.scores[:, c], own.image_ids, NMS_THRESH)) for c in classes
    )
    numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(num_ranks)]
    dist.all_gather(numbers, torch.tensor([kept]))
    return [int(x) for x in numbers]


def run_rank(rank: int, num_ranks: int, folder: str, setting: Setting) -> None:
    """In a process of its own: the first writes what was measured."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store{num_ranks}", rank=rank, world_size=num_ranks
    )
    whole = make_minibatch(
        setting.images * num_ranks,
        torch.device("cpu"),
        num_windows=setting.windows,
        num_classes=setting.classes,
        max_objects=setting.max_objects,
    )
    own = images_of(whole, rank * setting.images, (rank + 1) * setting.images)
    group = dist.group.WORLD if num_ranks > 1 else None
    memory = DetectionMemory(setting.memory) if setting.memory else None
    walls, cpus, parts = [], [], []
    for _ in range(setting.repeats + 1 + setting.memory):
        scores = own.scores.clone().requires_grad_()
        dist.barrier()
        wall, cpu = time.monotonic(), time.process_time()
        # Processes share cores: the parts of the loss are timed by what they use, not by the wall.
        with counted_bytes() as count, mock.patch.object(time, "perf_counter", time.process_time):
            loss, stats = map_loss(scores, *own[1:], group=group, memory=memory)
            loss.backward()
        walls.append(time.monotonic() - wall)
        cpus.append(time.process_time() - cpu)
        parts.append(stats.seconds)
    warm = 1 + setting.memory
    seconds = {part: statistics.median(x.get(part, 0.0) for x in parts[warm:]) for part in PARTS}
    numbers = count_detections(own, list(stats.curves), num_ranks)
    result = Result(
        statistics.median(walls[warm:]),
        statistics.median(cpus[warm:]),
        seconds,
        count["sent"],
        count["got"],
        own.scores.nbytes,
        len(stats.curves),
        sum(numbers),
        max(numbers),
    )
    if rank == 0:
        torch.save(result._asdict(), Path(folder) / f"result{num_ranks}")
    dist.destroy_process_group()


def run_processes(num_ranks: int, setting: Setting) -> Result:
    """Starts them, waits for them, and tells what the first has measured."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run_rank, (num_ranks, folder, setting), num_ranks)
        return Result(**torch.load(Path(folder) / f"result{num_ranks}"))


def measure(
    device: str = "cpu", *, processes: Sequence[int] = (1, 2, 4), **settings: int
) -> list[Row]:
    """Each number of processes; always on the CPU, whatever the device. settings: of Setting."""
    rows, base, setting = [], None, Setting(**settings)
    for num_ranks in processes:
        result = run_processes(num_ranks, setting)
        base = base or result.wall
        rows.append(
            Row(
                Path(__file__).stem,
                f"{num_ranks} processes x {setting.images} images",
                1e3 * result.wall,
                result.wall / base,
                f"{processes[0]} processes",
                (result.sent + result.got) / 2**20,
                "sent and got",
                "cpu, ms: " + ", ".join(f"{k} {1e3 * x:.0f}" for k, x in result.parts.items()),
            )
        )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    for name, default in Setting._field_defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = vars(parser.parse_args())
    processes, setting = args.pop("processes"), Setting(**args)
    print(f"{machine('cpu')}; 1 thread a process; in each {setting}")
    rows = []
    for num_ranks in processes:
        result = run_processes(num_ranks, setting)
        kib = [f"{x / 1024:.0f}" for x in (result.sent, result.got, result.score_bytes)]
        times = [f"{1e3 * x:.0f}" for x in (result.wall, result.cpu, *result.parts.values())]
        rows.append([num_ranks, *kib, *times])
    headers = ["processes", "KiB sent", "KiB got", "KiB of scores", "ms", "ms of CPU", *PARTS]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
