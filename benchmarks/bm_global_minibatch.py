# SPDX-License-Identifier: Apache-2.0
"""
What one mAP over several processes costs: bytes sent, and the time of each part of the loss.

    python benchmarks/bm_global_minibatch.py [--processes 1 2 4] [--images 4] [--windows 2000] \
        [--classes 20] [--memory 0]

Processes over gloo on this machine, each with --images images of the windows of `bm_map_loss.py`,
loss and backward pass. Prints for each number of processes: what a process sends and gets
in one step (counted at torch.distributed's calls), what all scores would be, and the median time of
the loss and of its parts, which share the machine's cores.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from bm_map_loss import Minibatch, make_minibatch
from maploss.layers import DetectionMemory, map_loss
from tabulate import tabulate

PARTS = ("match", "nms", "ap", "gradient", "exchange")


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


def run_rank(rank: int, num_ranks: int, folder: str, args: argparse.Namespace) -> None:
    """In a process of its own: the first writes what was measured."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store{num_ranks}", rank=rank, world_size=num_ranks
    )
    whole = make_minibatch(
        args.images * num_ranks,
        torch.device("cpu"),
        num_windows=args.windows,
        num_classes=args.classes,
    )
    own = images_of(whole, rank * args.images, (rank + 1) * args.images)
    group = dist.group.WORLD if num_ranks > 1 else None
    memory = DetectionMemory(args.memory) if args.memory else None
    times, parts = [], []
    for _ in range(args.repeats + 1 + args.memory):
        scores = own.scores.clone().requires_grad_()
        dist.barrier()
        with counted_bytes() as count:
            start = time.perf_counter()
            loss, stats = map_loss(scores, *own[1:], group=group, memory=memory)
            loss.backward()
            times.append(time.perf_counter() - start)
        parts.append(stats.seconds)
    warm = 1 + args.memory
    seconds = {part: statistics.median(x.get(part, 0.0) for x in parts[warm:]) for part in PARTS}
    result = {"time": statistics.median(times[warm:]), "parts": seconds, **count}
    result["scores"] = own.scores.nbytes
    if rank == 0:
        torch.save(result, Path(folder) / f"result{num_ranks}")
    dist.destroy_process_group()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(
        f"cpu, torch {torch.__version__}, 1 thread a process; in each {args.images} images x "
        f"{args.windows} windows x {args.classes} classes, memory {args.memory}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for num_ranks in args.processes:
            torch.multiprocessing.spawn(run_rank, (num_ranks, folder, args), num_ranks)
            result = torch.load(Path(folder) / f"result{num_ranks}")
            kib = [f"{result[key] / 1024:.0f}" for key in ("sent", "got", "scores")]
            times = [f"{1e3 * x:.0f}" for x in (result["time"], *result["parts"].values())]
            rows.append([num_ranks, *kib, *times])
    headers = ["processes", "KiB sent", "KiB got", "KiB of scores", "ms loss", *PARTS]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
