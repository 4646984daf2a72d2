# SPDX-License-Identifier: Apache-2.0
"""
Cost of the mAP loss beside Detectron2's `batched_nms` on the same scores, in one run.

    python benchmarks/bm_map_loss.py [--device cuda]

Prints ratios and peak memory; never fails on a slow machine. Windows are made at random with the
statistics of selective search (many sizes, about 1% of the pairs of an image overlap by more than
.3 IoU, 8 of 20 classes present, 1 to 4 objects an image). Scores are smooth in the window's place
and size, as a network's are, and higher on objects.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from maploss.layers import map_loss
from report import Row, machine, table

NUM_WINDOWS, NUM_CLASSES, NUM_PRESENT, NMS_THRESH = 2000, 20, 8, 0.3


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
) -> Minibatch:
    """
    Windows of 500 x 375 images, a tenth of them jittered around the objects, 1 to max_objects in
    each, which are of the first two fifths of the classes.
    """
    num_present = max(1, round(num_classes * NUM_PRESENT / NUM_CLASSES))
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
        classes = torch.randint(0, num_present, (num_objects,), generator=generator)
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
    return Minibatch(*(torch.cat(part).to(device) for part in parts))


# Estimator, transitivity, and how many times the time of `batched_nms` it may take.
VARIANTS = (
    ("pairs", "label_aware", 2.0),
    ("mee", "exact", 4.0),
    ("mee", "label_aware", 2.0),
    ("mee", "paper", 2.0),
    ("mee", "none", 2.0),
)


def run_loss(batch: Minibatch, estimator: str, transitivity: str) -> None:
    """Forward and backward."""
    scores = batch.scores.clone().requires_grad_()
    loss, _ = map_loss(
        scores,
        *batch[1:],
        nms_thresh=NMS_THRESH,
        estimator=estimator,
        transitivity=transitivity,
    )
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
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


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


def measure(
    device: str = "cpu", *, num_images: int = 16, num_windows: int = NUM_WINDOWS
) -> list[Row]:
    """`batched_nms`, and each estimator and transitivity beside it."""
    where = torch.device(device)
    batch, quarter = (
        make_minibatch(n, where, num_windows=num_windows) for n in (num_images, num_images // 4)
    )
    name = Path(__file__).stem
    shape = (
        f"{num_images} images x {num_windows} windows x {NUM_CLASSES} classes, "
        f"{len(batch.gt_classes.unique())} present"
    )
    nms = seconds(partial(run_nms, batch), where)
    rows = [Row(name, "batched_nms, classes present", 1e3 * nms, note=shape)]
    for estimator, level, limit in VARIANTS:
        run, run_small = (partial(run_loss, x, estimator, level) for x in (batch, quarter))
        # Beside its own baseline, so that a machine that slows down slows both.
        loss, nms, small = (seconds(f, where) for f in (run, partial(run_nms, batch), run_small))
        rows.append(
            Row(
                name,
                f"{estimator}, {level}",
                1e3 * loss,
                loss / nms,
                "batched_nms",
                peak_mebibytes(run, where),
                "peak",
                f"{loss / small:.1f} x of {num_images // 4} images; "
                f"goals {limit:g} x, 5 x, 1024 MiB",
            )
        )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    print(machine(device))
    print(table(measure(device)))


if __name__ == "__main__":
    main()
