# SPDX-License-Identifier: Apache-2.0
"""
What one mAP over several processes costs: bytes sent, and the time of each part of the loss.

    python -m benchmarks.bm_global_minibatch [--processes 1 2 4 8] [--images 4] [--windows 2000] \
        [--classes 20] [--max-objects 4] [--gradient error_driven] [--memory 0] [--repeats 5]

Processes over gloo on this machine, each with --images images of the windows of `bm_map_loss.py`,
loss and backward pass. Prints for each number of processes: what the first process sends and gets
in one step (counted at torch.distributed's calls) beside the formula of docs/scaling.md, how many
detections it ranks, its tensor operations and synchronisations (as `bm_operations.py` counts them),
and the median time that it and its parts take of a core, which leaves out waiting for others.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, pairwise_iou
from maploss.layers import DetectionMemory, MAPLossSettings, MAPLossStats, map_loss
from tabulate import tabulate

from benchmarks.bm_map_loss import NMS_THRESH, ONE, Minibatch, make_minibatch
from benchmarks.bm_operations import count_operations
from benchmarks.report import Row, machine

PARTS = ("match", "nms", "ap", "gradient", "exchange")


class Setting(NamedTuple):
    """What each process has, the minibatches of its memory, and how often it is run."""

    images: int = 4
    windows: int = 2000
    classes: int = 20
    max_objects: int = 4
    gradient: str = "error_driven"
    memory: int = 0
    repeats: int = 5

    @property
    def loss_settings(self) -> MAPLossSettings:
        """Of `map_loss`."""
        return replace(ONE, gradient=self.gradient)

    @property
    def shares_classes(self) -> bool:
        """Each class is ranked by one process; else all rank all."""
        return self.gradient == "error_driven" and not self.memory


class Bytes(NamedTuple):
    """That one process sends to the others and gets from them."""

    sent: int
    got: int


class Result(NamedTuple):
    """
    Of one process and one step.

    Args:
        wall, cpu: median seconds.
        parts: median seconds of CPU.
        sent, got, formula_sent, formula_got: bytes, counted and by the formula.
        score_bytes: of all its scores.
        told: detections of it that others may get.
        ranked: detections that it ranks.
        operations, waiting: of tensors, and those that synchronise.
    """

    wall: float
    cpu: float
    parts: dict[str, float]
    sent: int
    got: int
    formula_sent: int
    formula_got: int
    score_bytes: int
    told: int
    ranked: int
    operations: int
    waiting: int


@contextlib.contextmanager
def counted_bytes() -> Iterator[list[Bytes]]:
    """
    The bytes of each collective call meanwhile, to and from other processes. An all_gather sends
    its own part to each of them, an all_reduce goes round a ring.
    """
    calls: list[Bytes] = []
    gather, reduce, exchange = dist.all_gather, dist.all_reduce, dist.all_to_all_single

    def all_gather(rows: list[torch.Tensor], own: torch.Tensor, **kwargs: Any) -> Any:
        others = (len(rows) - 1) * own.nbytes
        calls.append(Bytes(others, others))
        return gather(rows, own, **kwargs)

    def all_reduce(own: torch.Tensor, **kwargs: Any) -> Any:
        size = ring_bytes(own.nbytes, dist.get_world_size())
        calls.append(Bytes(size, size))
        return reduce(own, **kwargs)

    def all_to_all_single(
        output: torch.Tensor, own: torch.Tensor, gets: list[int], sends: list[int], **kwargs: Any
    ) -> Any:
        rank, row = dist.get_rank(), own[:1].nbytes or output[:1].nbytes
        calls.append(Bytes((sum(sends) - sends[rank]) * row, (sum(gets) - gets[rank]) * row))
        return exchange(output, own, gets, sends, **kwargs)

    replaced = {f.__name__: f for f in (all_gather, all_reduce, all_to_all_single)}
    with mock.patch.multiple(dist, **replaced):
        yield calls


def ring_bytes(size: int, num_ranks: int) -> int:
    """That each process of a ring sends, and gets, to sum a tensor of `size` bytes."""
    return 2 * (num_ranks - 1) * size // num_ranks


def formula_bytes(told: torch.Tensor, rank: int, setting: Setting) -> Bytes:
    """
    What docs/scaling.md says that a process sends and gets: float32 scores, one overlap.

    Args:
        told: (N, P), detections of each process and class that is ranked.
        rank: the process.
        setting: of the run.
    """
    num_ranks, num_ranked = told.shape
    # What must agree, objects of each class and their number; then lengths of the lists.
    small = (num_ranks - 1) * 8 * (setting.classes + 4 + num_ranked)
    own, others = int(told[rank].sum()), int(told.sum() - told[rank].sum())
    if setting.shares_classes:
        is_mine = torch.arange(num_ranked) % num_ranks == rank
        away = own - int(told[rank, is_mine].sum())
        here = int(told[:, is_mine].sum()) - (own - away)
        small += ring_bytes(8 * num_ranked, num_ranks)  # AP
        return Bytes(small + 8 * away + 4 * here, small + 8 * here + 4 * away)
    away = (num_ranks - 1) * own
    if setting.gradient == "error_driven":
        return Bytes(small + 8 * away, small + 8 * others)
    return Bytes(small + 8 * away + 4 * others, small + 8 * others + 4 * away)


def images_of(batch: Minibatch, first: int, last: int) -> Minibatch:
    """What belongs to images first .. last - 1."""
    windows = (batch.image_ids >= first) & (batch.image_ids < last)
    objects = (batch.gt_image_ids >= first) & (batch.gt_image_ids < last)
    return Minibatch(*(x[windows] for x in batch[:3]), *(x[objects] for x in batch[3:]))


def count_told(own: Minibatch, classes: Sequence[int], settings: MAPLossSettings) -> list[int]:
    """
    Of each class, what Detectron2's NMS keeps, and the windows over an object that it suppresses
    where these are ranked.
    """
    iou = pairwise_iou(Boxes(own.boxes), Boxes(own.gt_boxes))
    is_over = (iou > settings.iou_threshs[0]) & (own.image_ids[:, None] == own.gt_image_ids)
    numbers = []
    for c in classes:
        is_told = torch.zeros(len(own.boxes), dtype=torch.bool)
        if settings.includes_suppressed:
            is_told = is_over[:, own.gt_classes == c].any(1)
        is_told[batched_nms(own.boxes, own.scores[:, c], own.image_ids, NMS_THRESH)] = True
        numbers.append(int(is_told.sum()))
    return numbers


class Run:
    """One process of a group, which has its images and its memory."""

    def __init__(self, rank: int, num_ranks: int, setting: Setting) -> None:
        self.rank, self.num_ranks, self.setting = rank, num_ranks, setting
        whole = make_minibatch(
            setting.images * num_ranks,
            torch.device("cpu"),
            num_windows=setting.windows,
            num_classes=setting.classes,
            max_objects=setting.max_objects,
        )
        self.own = images_of(whole, rank * setting.images, (rank + 1) * setting.images)
        self.classes = (
            list(range(setting.classes)) if setting.memory else whole.gt_classes.unique().tolist()
        )
        self.group = dist.group.WORLD if num_ranks > 1 else None
        self.memory = DetectionMemory(setting.memory) if setting.memory else None

    def step(self) -> tuple[MAPLossStats, dict[str, float]]:
        """Forward and backward; the seconds of the parts."""
        scores = self.own.scores.clone().requires_grad_()
        loss, stats = map_loss(
            scores,
            *self.own[1:],
            settings=self.setting.loss_settings,
            group=self.group,
            memory=self.memory,
        )
        parts = stats.seconds()
        loss.backward()
        return stats, parts

    def measure(self) -> Result:
        """All processes together."""
        for _ in range(1 + self.setting.memory):  # warms up and fills the memory
            stats, _ = self.step()
        walls, cpus, parts = [], [], []
        for _ in range(self.setting.repeats):
            dist.barrier()
            wall, cpu = time.monotonic(), time.process_time()
            # Processes share cores: parts are timed by what they use, not by the wall.
            with mock.patch.object(time, "perf_counter", time.process_time):
                parts.append(self.step()[1])
            walls.append(time.monotonic() - wall)
            cpus.append(time.process_time() - cpu)
        with counted_bytes() as calls:
            self.step()
        operations = count_operations(self.step)
        told = torch.tensor(count_told(self.own, self.classes, self.setting.loss_settings))
        rows = [torch.empty_like(told) for _ in range(self.num_ranks)]
        dist.all_gather(rows, told)
        return Result(
            statistics.median(walls),
            statistics.median(cpus),
            {part: statistics.median(x.get(part, 0.0) for x in parts) for part in PARTS},
            sum(x.sent for x in calls),
            sum(x.got for x in calls),
            *formula_bytes(torch.stack(rows), self.rank, self.setting),
            self.own.scores.nbytes,
            int(told.sum()),
            len(stats.minibatch.ranking.order),
            operations.all.total(),
            operations.waiting.total(),
        )


def run_rank(rank: int, num_ranks: int, folder: str, setting: Setting) -> None:
    """In a process of its own, which writes what it has measured."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks
    )
    result = Run(rank, num_ranks, setting).measure()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def run_processes(num_ranks: int, setting: Setting) -> list[Result]:
    """Starts them, waits for them, and tells what each has measured."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run_rank, (num_ranks, folder, setting), num_ranks)
        files = [Path(folder) / f"{rank}.json" for rank in range(num_ranks)]
        return [Result(*json.loads(file.read_text())) for file in files]


def measure(
    device: str = "cpu", *, processes: Sequence[int] = (1, 2, 4), **settings: Any
) -> list[Row]:
    """Each number of processes; always on the CPU, whatever the device. settings: of Setting."""
    rows, base, setting = [], None, Setting(**settings)
    for num_ranks in processes:
        result = run_processes(num_ranks, setting)[0]
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
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    for name, default in Setting._field_defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = vars(parser.parse_args())
    processes, setting = args.pop("processes"), Setting(**args)
    print(f"{machine('cpu')}; 1 thread a process; in each {setting}")
    rows = []
    for num_ranks in processes:
        found = run_processes(num_ranks, setting)[0]
        numbers = [num_ranks, found.told, found.ranked]
        numbers += [found.sent, found.formula_sent, found.got, found.formula_got]
        numbers += [found.score_bytes, found.operations, found.waiting]
        times = [f"{1e3 * x:.1f}" for x in (found.cpu, *found.parts.values())]
        rows.append([*(f"{x:,}" for x in numbers), *times])
    headers = ["processes", "told", "ranked", "sent", "formula", "got", "formula"]
    headers += ["bytes of scores", "operations", "synchronisations", "ms of CPU", *PARTS]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
