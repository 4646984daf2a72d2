# SPDX-License-Identifier: Apache-2.0
"""
How the time of the mAP loss grows: the measurements of docs/scaling.md.

    python benchmarks/scaling.py [--repeats 3]

Forward and backward of the default settings around 8 images x 1,000 windows x 20 classes of which
8 are present (the windows of `bm_map_loss.py`, 1 to 14 objects an image), one factor at a time,
beside `batched_nms`; then, for COCO, 2 images with many classes to list, and the ranking of one
class with the detections of many GPUs. Times are of one thread's CPU, so that other processes on
the machine count as little as they can; medians, the cases of a factor by turns. The exponent is
the slope of time over the factor in log-log.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import torch
from bm_global_minibatch import PARTS, Setting, run_processes
from bm_map_loss import Minibatch, make_minibatch, peak_mebibytes, run_nms
from maploss.layers import (
    DetectionMemory,
    average_precision,
    error_driven_gradient,
    map_loss,
    match_detections,
)
from maploss.layers.map_loss.rankings import ClassCurve
from report import machine
from tabulate import tabulate

CPU = torch.device("cpu")
CENTER = {"images": 8, "windows": 1000, "classes": 20, "memory": 0}
MAX_OBJECTS = 14
FACTORS = {
    "images": (2, 4, 8, 16, 32),
    "windows": (250, 500, 1000, 2000, 4000),
    "classes": (10, 20, 40, 80, 160),
    "memory": (0, 1, 4, 16),
}
PROCESSES = (1, 2, 4)
NUM_GPUS = (1, 8, 64)
# Of one class and GPU of 2 images: windows that NMS keeps, and windows over an object.
GPU_CASES = {"assumed": (800, 5), "all kept": (2000, 25)}


class Case(NamedTuple):
    """What is run again and again. loss, nms, parts: CPU seconds of each run."""

    batch: Minibatch
    memory: DetectionMemory | None
    loss: list[float]
    nms: list[float]
    parts: list[dict[str, float]]


def make_case(images: int, windows: int, classes: int, memory: int) -> Case:
    """Two fifths of the classes have objects, each about as many; the memory is full."""
    batch = make_minibatch(
        images, CPU, num_windows=windows, num_classes=classes, max_objects=MAX_OBJECTS
    )
    present = torch.arange(len(batch.gt_classes)) % round(0.4 * classes)
    batch = batch._replace(gt_classes=present)
    case = Case(batch, DetectionMemory(memory) if memory else None, [], [], [])
    for _ in range(memory):
        map_loss(*batch, memory=case.memory)
    return case


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def run_loss(case: Case) -> dict[int, ClassCurve]:
    """Forward and backward; the curves."""
    scores = case.batch.scores.clone().requires_grad_()
    loss, stats = map_loss(scores, *case.batch[1:], memory=case.memory)
    loss.backward()
    case.parts.append(stats.seconds)
    return stats.curves


def count(batch: Minibatch, curves: dict[int, ClassCurve]) -> tuple[int, int]:
    """Detections ranked, and pairs of a window over an object and a false positive."""
    detections = pairs = 0
    for c, (scores, matched, _) in curves.items():
        mine = batch.gt_classes == c
        over = match_detections(
            batch.boxes, batch.image_ids, batch.gt_boxes[mine], batch.gt_image_ids[mine]
        )
        num_tps = len(matched[matched >= 0].unique())
        num_hidden = int((over >= 0).sum()) - int((matched >= 0).sum())
        detections += len(scores)
        pairs += (num_tps + max(num_hidden, 0)) * (len(scores) - num_tps)
    return detections, pairs


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
        parts = [1e3 * statistics.median(x.get(part, 0.0) for x in case.parts) for part in PARTS]
        loss, nms = (1e3 * statistics.median(x) for x in (case.loss, case.nms))
        peak = peak_mebibytes(lambda case=case: run_loss(case), CPU)
        detections, pairs = count(case.batch, run_loss(case))
        columns.append([loss, nms, *parts[:4]])
        per_pair = f"{1e6 * parts[PARTS.index('gradient')] / pairs:.1f}"
        present = len(case.batch.gt_classes.unique())
        times = [f"{x:.1f}" for x in (loss, nms, *parts)]
        rows.append(
            [
                value,
                present,
                *times,
                f"{loss / nms:.2f}",
                f"{peak:.0f}",
                detections,
                pairs,
                per_pair,
            ]
        )
    fits = [exponents(list(values), list(column)) for column in zip(*columns, strict=True)]
    rows.append(["exponent", "", *(x[0] for x in fits)])
    rows.append(["last step", "", *(x[1] for x in fits)])
    headers = [name, "present", "loss", "batched_nms", *PARTS, "of nms", "MiB"]
    headers += ["detections", "pairs", "gradient, ns a pair"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def remembered_bytes() -> str:
    """What the memory holds of one minibatch of the center."""
    memory = make_case(**{**CENTER, "memory": 1}).memory
    scores, matched_gt, is_kept, *_ = memory.state_dict()["minibatches"][0]
    held = sum(x.nbytes for x in (scores, matched_gt, is_kept))
    return f"remembered of a minibatch: {len(scores)} detections, {held} bytes"


def measure_processes(repeats: int) -> str:
    """Each with as much as the center has; the bytes beside the formula's."""
    setting = Setting(
        images=CENTER["images"],
        windows=CENTER["windows"],
        classes=CENTER["classes"],
        max_objects=MAX_OBJECTS,
        repeats=repeats,
    )
    rows = []
    for n in PROCESSES:
        found = run_processes(n, setting)
        formula = ["", ""]
        if n > 1:
            small, lists = 2 * 8 * (setting.classes + 1), 8 * found.longest
            back = 4 * found.detections
            formula = [small + lists + back, (n - 1) * (small + lists) + back]
        times = [f"{1e3 * x:.0f}" for x in (found.wall, found.cpu, *found.parts.values())]
        rows.append([n, found.present, found.detections, found.sent, formula[0]])
        rows[-1] += [found.got, formula[1], found.score_bytes, *times]
    headers = ["processes", "present", "detections", "sent", "formula", "got", "formula"]
    headers += ["bytes of scores", "ms", "ms of CPU", *PARTS]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def rank_class(num_gpus: int, num_kept: int, num_over: int) -> list[Callable[[], object]]:
    """AP and gradient of a class on one GPU: 2 x 1,000 windows and what the others keep."""
    generator = torch.Generator().manual_seed(0)
    size = 2000 + (num_gpus - 1) * num_kept
    scores = torch.randn(size, generator=generator)
    matched = torch.full((size,), -1)
    matched[:num_over] = 0
    matched[2000::num_kept] = torch.arange(1, num_gpus)
    is_kept = torch.ones(size, dtype=torch.bool)
    is_kept[num_kept:2000] = False
    is_kept[1:num_over] = False
    is_moving = torch.arange(size) < 2000
    return [
        lambda: average_precision(scores[is_kept].double(), matched[is_kept], num_gpus),
        lambda: error_driven_gradient(scores, matched, num_gpus, is_kept, is_moving=is_moving),
    ]


def measure_own(repeats: int) -> str:
    """2 images by themselves: what the number of classes to list costs, that others may have."""
    rows = []
    for windows in (256, 1000):
        whole = make_minibatch(2, CPU, num_windows=windows, num_classes=80, max_objects=MAX_OBJECTS)
        for present in (7, 56, 80):
            objects = torch.arange(present) % len(whole.gt_classes)
            batch = whole._replace(
                gt_boxes=whole.gt_boxes[objects],
                gt_classes=torch.arange(present),
                gt_image_ids=whole.gt_image_ids[objects],
            )
            case = Case(batch, None, [], [], [])
            times = [cpu_seconds(lambda case=case: run_loss(case)) for _ in range(repeats + 1)]
            parts = [statistics.median(x.get(part, 0.0) for x in case.parts[1:]) for part in PARTS]
            seconds = [statistics.median(times[1:]), *parts[:4]]
            rows.append([windows, present, *(f"{1e3 * x:.0f}" for x in seconds)])
    headers = ["windows", "classes", "loss", *PARTS[:4]]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def measure_gpus(repeats: int) -> str:
    """The table of one class, for each number of GPUs."""
    rows = []
    for name, (num_kept, num_over) in GPU_CASES.items():
        for n in NUM_GPUS:
            works = rank_class(n, num_kept, num_over)
            runs = [[cpu_seconds(work) for work in works] for _ in range(repeats + 1)][1:]
            times = [1e3 * statistics.median(column) for column in zip(*runs, strict=True)]
            pairs = num_over * n * num_kept
            rows.append([name, n, n * num_kept, pairs, *(f"{x:.2f}" for x in times)])
            rows[-1].append(f"{80 * sum(times):.0f}")
    headers = ["case", "GPUs", "detections of a class", "pairs", "ap", "gradient", "80 classes"]
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
    print(f"\n{measure_processes(repeats)}", flush=True)
    print(f"\n{measure_gpus(repeats)}", flush=True)


if __name__ == "__main__":
    main()
