# SPDX-License-Identifier: Apache-2.0
"""
Cost of the mAP loss, forward and backward, beside Detectron2's `batched_nms` on the same scores.

    python -m benchmarks.bm_map_loss [--device cuda] [--before CHECKOUT]

With --before the loss of one overlap by the code of another checkout (version 0.1.0 or later) takes
turns with the loss of this code. Prints ratios and peak memory; never fails on a slow machine.

Windows are made at random with the statistics of selective search (many sizes, about 1% of the
pairs of an image overlap by more than .3 IoU, 1 to 4 objects an image). Scores are smooth in the
window's place and size, as a network's are, and higher on objects.

Classes are ranked one by one and windows that NMS suppresses are pushed alike (`pooled` 0,
"label_aware"), as the default was when the goals were set.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from maploss.layers import MAPLossSettings, map_loss

from benchmarks.report import Row, machine, table

NAME = Path(__file__).stem
NUM_WINDOWS, NUM_CLASSES, NUM_PRESENT, NMS_THRESH = 2000, 20, 8, 0.3
ONE = MAPLossSettings(nms_thresh=NMS_THRESH, transitivity="label_aware", pooled=0.0)
TEN = replace(ONE, iou_threshs="coco")


class Minibatch(NamedTuple):
    """The tensors that map_loss takes, in its order."""

    scores: torch.Tensor
    boxes: torch.Tensor
    image_ids: torch.Tensor
    gt_boxes: torch.Tensor
    gt_classes: torch.Tensor
    gt_image_ids: torch.Tensor


def make_minibatch(
    num_images: int,
    device: torch.device,
    seed: int = 0,
    *,
    num_windows: int = NUM_WINDOWS,
    num_classes: int = NUM_CLASSES,
    max_objects: int = 4,
    num_present: int | None = None,
) -> Minibatch:
    """
    Windows of 500 x 375 images, a tenth of them jittered around the objects, 1 to max_objects in
    each. With `num_present` the first so many classes each have an object, and no others; else the
    objects are of the first two fifths of the classes, of which some may have none.
    """
    num_drawn = num_present or max(1, round(num_classes * NUM_PRESENT / NUM_CLASSES))
    generator = torch.Generator().manual_seed(seed)
    frame = torch.tensor([500.0, 375.0])
    parts: list[list[torch.Tensor]] = [[], [], [], [], [], []]
    frequencies = torch.randn(4, 64, generator=generator) * 3
    phases = torch.rand(64, generator=generator) * 6.28
    readout = torch.randn(64, num_classes, generator=generator) / 8
    for image in range(num_images):
        num_objects = int(torch.randint(1, max_objects + 1, (), generator=generator))
        center = torch.rand(num_objects, 2, generator=generator) * frame
        size = (3.9 + torch.rand(num_objects, 2, generator=generator) * 1.9).exp()
        objects = torch.cat([center - size / 2, center + size / 2], 1)
        classes = torch.randint(0, num_drawn, (num_objects,), generator=generator)
        center = torch.rand(num_windows, 2, generator=generator) * frame
        size = (2.7 + torch.rand(num_windows, 2, generator=generator) * 3.0).exp()
        boxes = torch.cat([center - size / 2, center + size / 2], 1)
        near = objects[torch.randint(0, num_objects, (num_windows // 10,), generator=generator)]
        extent = (near[:, 2:] - near[:, :2]).repeat(1, 2)
        boxes[: len(near)] = near + torch.randn(near.shape, generator=generator) * extent * 0.12
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 8)
        boxes = boxes.round()
        features = torch.cat([boxes[:, :2] + boxes[:, 2:], boxes[:, 2:] - boxes[:, :2]], 1) / 250
        scores = torch.sin(features @ frequencies + phases) @ readout
        scores += 0.3 * torch.randn(scores.shape, generator=generator)
        for part, new in zip(
            parts,
            (
                scores,
                boxes,
                torch.full((num_windows,), image),
                objects,
                classes,
                torch.full((num_objects,), image),
            ),
            strict=True,
        ):
            part.append(new)
    batch = Minibatch(*(torch.cat(part).to(device) for part in parts))
    if num_present is not None:
        num_objects = len(batch.gt_classes)
        if num_objects < num_present:
            raise ValueError(f"num_present: expected at most {num_objects}, got {num_present}")
        # Each class once, in places at random.
        places = torch.randperm(num_objects, generator=generator)[:num_present]
        batch.gt_classes[places.to(device)] = torch.arange(num_present, device=device)
    return batch


def run_loss(batch: Minibatch, settings: MAPLossSettings) -> None:
    """Forward and backward."""
    scores = batch.scores.clone().requires_grad_()
    loss, _ = map_loss(scores, *batch[1:], settings=settings)
    loss.backward()


def run_nms(batch: Minibatch) -> None:
    """Of the classes present, as inference runs it: one call for all classes and images."""
    present = batch.gt_classes.unique()
    scores = batch.scores[:, present].t().reshape(-1)
    num_images = int(batch.image_ids.max()) + 1
    groups = (
        batch.image_ids + num_images * torch.arange(len(present), device=scores.device)[:, None]
    )
    batched_nms(batch.boxes.repeat(len(present), 1), scores, groups.reshape(-1), NMS_THRESH)


def seconds(work: Callable[[], None], device: torch.device, repeats: int = 7) -> float:
    """Median wall time after one warm-up."""
    return take_turns({"": partial(timed, work, device)}, repeats)[""]


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Wall time of one call, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def take_turns(runs: Mapping[str, Callable[[], float]], repeats: int = 7) -> dict[str, float]:
    """
    Median of what each returns after one warm-up. They run one after the other, again and again,
    so that a machine that slows down slows all.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            run()  # threads of the one before may still be spinning
            times[name].append(run())
    return {name: statistics.median(x[1:]) for name, x in times.items()}


def peak_mebibytes(work: Callable[[], None], device: torch.device) -> float:
    """Largest memory beside what was there, from the allocator's own record."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        work()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak / 2**20


@contextmanager
def loss_before(checkout: Path, batch: Minibatch) -> Iterator[Callable[[], float]]:
    """
    A function that times the loss of one overlap by the code of another checkout, in a process of
    its own that has read the minibatch.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tuple(batch), path := Path(folder) / "minibatch.pt")
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", Path(__file__).with_name("loss_before.py"), path],
            env={**os.environ, "PYTHONPATH": str(checkout.resolve() / "projects" / "MAPLoss")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def run() -> float:
            process.stdin.write("\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        with process:  # ends when its input does
            yield run


def measure_many_classes(
    device: torch.device, before: Path | None, repeats: int, num_windows: int
) -> list[Row]:
    """Few windows of many classes, beside the code before."""
    batch = make_minibatch(
        2, device, num_windows=num_windows, num_classes=80, max_objects=60, num_present=55
    )
    works = {
        "ten overlaps": partial(run_loss, batch, TEN),
        "one overlap": partial(run_loss, batch, ONE),
    }
    runs = {name: partial(timed, work, device) for name, work in works.items()}
    with ExitStack() as stack:
        if before is not None:
            runs["before"] = stack.enter_context(loss_before(before, batch))
        times = take_turns(runs, repeats)
    shape = f"2 images x {num_windows} windows x 80 classes, 55 present"
    rows = []
    for name, work in works.items():
        rows.append(
            Row(
                NAME,
                f"{name}; {shape}",
                1e3 * times[name],
                times[name] / times["before"] if before else None,
                "before" if before else "",
                peak_mebibytes(work, device),
                "peak",
            )
        )
    growth = times["ten overlaps"] / times["one overlap"]
    note = f"{growth:.2f} x one; goals .25 x, 256 MiB, 1.3 x one"
    rows[0] = rows[0]._replace(note=note)
    if before is not None:
        rows.append(Row(NAME, f"before: one overlap; {shape}", 1e3 * times["before"]))
    return rows


# Settings, and how many times the time of `batched_nms` each may take.
VARIANTS = {
    "ten overlaps": (TEN, ".45"),
    "one overlap": (ONE, ".45"),
    "exact, ten overlaps": (replace(TEN, gradient="mee", transitivity="exact"), "2"),
    "exact, one overlap": (replace(ONE, gradient="mee", transitivity="exact"), "2"),
}


def measure_many_windows(
    device: torch.device, repeats: int, num_images: int, num_windows: int
) -> list[Row]:
    """Many windows of few classes, beside `batched_nms`."""
    batch = make_minibatch(num_images, device, num_windows=num_windows, num_present=NUM_PRESENT)
    works = {name: partial(run_loss, batch, settings) for name, (settings, _) in VARIANTS.items()}
    runs = {
        name: partial(timed, work, device)
        for name, work in {"nms": partial(run_nms, batch), **works}.items()
    }
    times = take_turns(runs, repeats)
    shape = (
        f"{num_images} images x {num_windows} windows x {NUM_CLASSES} classes, "
        f"{NUM_PRESENT} present"
    )
    rows = [Row(NAME, "batched_nms, classes present", 1e3 * times["nms"], note=shape)]
    for name, work in works.items():
        note = f"goals {VARIANTS[name][1]} x, 256 MiB"
        if name.endswith("ten overlaps"):
            one = times[name.replace("ten overlaps", "one overlap")]
            note = f"{times[name] / one:.2f} x one; {note}"
            if name == "ten overlaps":
                note += ", 1.3 x one"
        rows.append(
            Row(
                NAME,
                name,
                1e3 * times[name],
                times[name] / times["nms"],
                "batched_nms",
                peak_mebibytes(work, device),
                "peak",
                note,
            )
        )
    return rows


def measure(
    device: str = "cpu",
    *,
    before: Path | None = None,
    repeats: int = 7,
    num_images: int = 16,
    num_windows: int = NUM_WINDOWS,
) -> list[Row]:
    """Few windows of many classes, then many windows of few classes."""
    where = torch.device(device)
    return [
        *measure_many_classes(where, before, repeats, min(num_windows, 256)),
        *measure_many_windows(where, repeats, num_images, num_windows),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(machine(args.device))
    print(table(measure(args.device, before=args.before, repeats=args.repeats)))


if __name__ == "__main__":
    main()
