# SPDX-License-Identifier: Apache-2.0
"""
How the time of the mAP loss grows: the measurements of docs/scaling.md on one process.

    python -m benchmarks.scaling [--repeats 3]

Forward and backward of the default settings around 8 images x 1,000 windows x 20 classes of which
8 are present (the windows of `bm_map_loss.py`, 1 to 14 objects an image), one factor at a time,
beside `batched_nms`; then, for COCO and ten overlaps, 2 images with many classes, and the ranking
of the detections of many GPUs. Times are of one thread's CPU, so that other processes on the
machine count as little as they can; medians, the cases of a factor by turns. The exponent is the
slope of time over the factor in log-log.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import torch
from maploss.layers import DetectionMemory, MAPLossSettings, map_loss
from maploss.layers.map_loss.detections import Detections
from maploss.layers.map_loss.error_driven_gradient import find_errors, gradient_of_errors
from maploss.layers.map_loss.rankings import Ranking, average_precisions
from tabulate import tabulate

from benchmarks.bm_global_minibatch import PARTS
from benchmarks.bm_map_loss import TEN, Minibatch, make_minibatch, peak_mebibytes, run_nms
from benchmarks.report import machine

CPU = torch.device("cpu")
CENTER = {"images": 8, "windows": 1000, "classes": 20, "overlaps": 1, "objects": 14, "memory": 0}
FACTORS = {
    "images": (2, 4, 8, 16, 32),
    "windows": (250, 500, 1000, 2000, 4000),
    "classes": (10, 20, 40, 80, 160),
    "overlaps": (1, 2, 5, 10),
    "objects": (4, 14, 50, 150),
    "memory": (0, 1, 4, 16),
}
NUM_COCO_CLASSES, NUM_GPUS = 80, (1, 8, 64)
# Windows of a class that NMS keeps on a GPU of 2 images, of 256 and of 1,000 windows an image.
NUM_KEPT = (310, 800)
NUM_OVER = 5  # of them over an object


class Case(NamedTuple):
    """What is run again and again. loss, nms, parts: CPU seconds of each run."""

    batch: Minibatch
    settings: MAPLossSettings
    memory: DetectionMemory | None
    loss: list[float]
    nms: list[float]
    parts: list[dict[str, float]]


def make_case(
    images: int, windows: int, classes: int, overlaps: int, objects: int, memory: int
) -> Case:
    """Two fifths of the classes have objects, each about as many; the memory is full."""
    batch = make_minibatch(
        images, CPU, num_windows=windows, num_classes=classes, max_objects=objects
    )
    present = torch.arange(len(batch.gt_classes)) % round(0.4 * classes)
    batch = batch._replace(gt_classes=present)
    threshs = [round(0.5 + 0.05 * i, 2) for i in range(overlaps)]
    settings = replace(TEN, iou_threshs=threshs)
    case = Case(batch, settings, DetectionMemory(memory) if memory else None, [], [], [])
    for _ in range(memory):
        map_loss(*batch, settings=settings, memory=case.memory)
    return case


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def run_loss(case: Case) -> int:
    """Forward and backward; how many detections were ranked."""
    scores = case.batch.scores.clone().requires_grad_()
    loss, stats = map_loss(scores, *case.batch[1:], settings=case.settings, memory=case.memory)
    case.parts.append(stats.seconds())
    loss.backward()
    return len(stats.minibatch.ranking.order)


def exponents(factor: list[float], times: list[float]) -> list[str]:
    """Of the whole range by least squares, and of the last step."""
    if min(factor) == 0 or len(factor) < 2:
        return ["", ""]
    x, y = ([math.log(v) for v in values] for values in (factor, times))
    return [
        f"{statistics.linear_regression(x, y).slope:.2f}",
        f"{(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f}",
    ]


def measure_factor(name: str, values: tuple[int, ...], repeats: int) -> str:
    """The table of one factor, with a line of exponents for each range."""
    cases = [make_case(**{**CENTER, name: value}) for value in values]
    for turn in range(repeats + 1):
        for case in cases:
            case.loss.append(cpu_seconds(lambda case=case: run_loss(case)))
            case.nms.append(cpu_seconds(lambda case=case: run_nms(case.batch)))
            if not turn:  # warms up
                for times in (case.loss, case.nms, case.parts):
                    times.clear()
    rows, columns = [], []
    for value, case in zip(values, cases, strict=True):
        loss, nms = (1e3 * statistics.median(x) for x in (case.loss, case.nms))
        parts = _medians(case.parts)
        peak = peak_mebibytes(lambda case=case: run_loss(case), CPU)
        columns.append([loss, nms, *parts])
        present = len(case.batch.gt_classes.unique())
        numbers = [f"{len(case.batch.gt_classes):,}", f"{run_loss(case):,}"]
        times = [f"{x:.1f}" for x in (loss, nms, *parts)]
        rows.append([f"{value:,}", present, *numbers, *times, f"{loss / nms:.2f}", f"{peak:.0f}"])
    fits = [exponents(list(values), list(column)) for column in zip(*columns, strict=True)]
    for i, title in enumerate(("exponent", "of the last step")):
        rows.append([title, "", "", "", *(x[i] for x in fits)])
    headers = [name, "present", "all objects", "ranked", "loss", "batched_nms", *PARTS[:4]]
    return tabulate(rows, [*headers, "of nms", "MiB"], tablefmt="github", disable_numparse=True)


def _medians(parts: list[dict[str, float]]) -> list[float]:
    """Milliseconds of all but the exchange."""
    return [1e3 * statistics.median(x.get(part, 0.0) for x in parts) for part in PARTS[:4]]


def remembered_bytes() -> str:
    """What the memory holds of one minibatch of the center."""
    memory = make_case(**{**CENTER, "memory": 1}).memory
    detections = memory.state_dict()["minibatches"][0][: len(Detections._fields)]
    held = sum(x.nbytes for x in detections)
    return f"remembered of a minibatch: {len(detections[0]):,} detections, {held:,} bytes"


def measure_own(repeats: int) -> str:
    """2 images by themselves: what classes cost of which only other GPUs may have objects."""
    rows = []
    for windows in (256, 1000):
        whole = make_minibatch(
            2, CPU, num_windows=windows, num_classes=NUM_COCO_CLASSES, max_objects=14
        )
        for present in (7, 56, 80):
            objects = torch.arange(present) % len(whole.gt_classes)
            batch = whole._replace(
                gt_boxes=whole.gt_boxes[objects],
                gt_classes=torch.arange(present),
                gt_image_ids=whole.gt_image_ids[objects],
            )
            case = Case(batch, TEN, None, [], [], [])
            times = [cpu_seconds(lambda case=case: run_loss(case)) for _ in range(repeats + 1)]
            milliseconds = [1e3 * statistics.median(times[1:]), *_medians(case.parts[1:])]
            rows.append([windows, present, *(f"{x:.1f}" for x in milliseconds)])
    headers = ["windows", "classes", "loss", *PARTS[:4]]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def make_detections(num_gpus: int, num_classes: int, num_kept: int) -> Detections:
    """So many of each class and GPU, NUM_OVER of them over one object."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_classes, num_gpus, num_kept)
    objects = torch.full(shape, -1)
    levels = torch.zeros(shape, dtype=torch.int64)
    of_objects = torch.arange(num_classes * num_gpus).view(num_classes, num_gpus, 1)
    objects[..., :NUM_OVER] = of_objects
    levels[..., :NUM_OVER] = torch.randint(1, 11, levels[..., :NUM_OVER].shape, generator=generator)
    is_kept = torch.ones(shape, dtype=torch.bool)
    is_kept[..., 1:NUM_OVER] = False
    return Detections(
        torch.randn(shape, generator=generator).flatten(),
        torch.arange(num_classes).repeat_interleave(num_gpus * num_kept),
        *(x.flatten() for x in (objects, levels, is_kept)),
    )


def rank(num_gpus: int, num_classes: int, num_kept: int) -> list[float]:
    """CPU seconds of sorting and AP, and of the gradient, at ten overlaps."""
    detections = make_detections(num_gpus, num_classes, num_kept)
    num_gt = torch.full((num_classes,), num_gpus)
    start = time.process_time()
    ranking = Ranking.of(detections, num_gt, num_classes * num_gpus, len(TEN.iou_threshs))
    average_precisions(ranking, TEN.ap_type)
    middle = time.process_time()
    ranking.by_input(
        gradient_of_errors(ranking, find_errors(ranking, TEN.margin), TEN.transitivity)
    )
    return [middle - start, time.process_time() - middle]


def measure_gpus(repeats: int) -> str:
    """What one GPU ranks of the detections of all: its share of the classes, and all classes."""
    rows = []
    for num_kept in NUM_KEPT:
        for n in NUM_GPUS:
            cells: list[str] = []
            for num_classes in (math.ceil(NUM_COCO_CLASSES / n), NUM_COCO_CLASSES):
                runs = [rank(n, num_classes, num_kept) for _ in range(repeats + 1)][1:]
                times = [1e3 * statistics.median(x) for x in zip(*runs, strict=True)]
                number = num_classes * n * num_kept
                cells += [str(num_classes), f"{number:,}", *(f"{x:.1f}" for x in times)]
            rows.append([num_kept, n, *cells])
    columns = ["classes", "detections", "ap", "gradient"]
    headers = ["kept", "GPUs", *columns, *(f"all {x}" for x in columns)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"{machine('cpu')}; ms of CPU; around {CENTER}")
    # The parts of the loss are timed by it.
    with mock.patch.object(time, "perf_counter", time.process_time):
        for name, values in FACTORS.items():
            print(f"\n{measure_factor(name, values, repeats)}", flush=True)
        print(f"\n{remembered_bytes()}\n\n{measure_own(repeats)}", flush=True)
    print(f"\n{measure_gpus(repeats)}", flush=True)


if __name__ == "__main__":
    main()
