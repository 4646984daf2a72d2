# SPDX-License-Identifier: Apache-2.0
"""
Wrote golden.npz, beside this file, by the code of version 0.1.0 at commit 06cc00f, which looped
over classes:

    git worktree add before 06cc00f
    PYTHONPATH=before/projects/MAPLoss python -m tests.layers.map_loss.record_golden

It needs the keywords of that code and cannot run on this one.

The file holds 200 cases. A case has settings, and one minibatch or, with a memory, three in a row,
each of one process or two. Parts of all cases stand one after another in one array; `blocks` has a
row of each minibatch and process: case, turn, rank, R windows, K classes, G objects, and whether
boxes are by class. The last turn has results. Scores are in units of 1 / 4096, boxes in half
pixels, so both are the same numbers in float32 and float64.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from maploss.layers import DetectionMemory, map_loss

from tests.distributed import run_ranks

PATH = Path(__file__).with_name("golden.npz")
AP_TYPES = ["area", "voc07", "coco101"]
# How many cases, largest memory and processes.
KINDS = [(120, 0, 1), (36, 2, 1), (30, 0, 2), (14, 2, 2)]
GRADIENTS = [
    *[("error_driven", "label_aware", "paired")] * 3,
    *[("error_driven", "none", "paired")] * 2,
    *(
        (gradient, transitivity, pairing)
        for transitivity in ("exact", "label_aware", "paper", "none")
        for gradient in ("mee", "sde")
        for pairing in ("paired", "none")
    ),
]
# Shapes of a minibatch that have something missing; three quarters have nothing missing.
MISSING = ["windows", "objects", "image of windows", "image of objects", "classes", "both"]


def make_settings(rng: np.random.Generator) -> list[dict]:
    cases: list[dict] = []
    seen: Counter = Counter()
    for count, largest_memory, num_ranks in KINDS:
        for i in range(count):
            choice = GRADIENTS[len(cases) % len(GRADIENTS)]
            gradient, transitivity, pairing = choice
            is_steps = gradient != "error_driven"
            seen[choice] += 1
            # Six in a row of each choice are all six of these.
            log_space, ap_type = bool(seen[choice] % 2), AP_TYPES[seen[choice] % 3]
            cases.append(
                {
                    "gradient": gradient,
                    "transitivity": transitivity,
                    "pairing": pairing,
                    "ap_type": ap_type,
                    "nms_thresh": rng.choice([0.3, 0.5]),
                    "iou_thresh": rng.choice([0.5, 0.5, 0.3, 0.7]),
                    "margin": 1.0 if is_steps else rng.choice([0.1, 1.0, 5.0]),
                    "min_delta": rng.choice([0.5, 0.1]) if is_steps else 0.5,
                    "grad_clip": rng.choice([np.nan, np.nan, np.nan, 0.05, 0.02]),
                    "log_space": log_space,
                    "eps": rng.choice([1.0, 1.0, 0.1]) if log_space else 1.0,
                    "memory_size": 1 + i % largest_memory if largest_memory else 0,
                    "num_ranks": num_ranks,
                    "dtype": ["float64", "float32"][int(rng.integers(2))],
                }
            )
    return cases


def make_minibatch(rng: np.random.Generator, num_classes: int, is_by_class: bool) -> dict:
    """Boxes in half pixels, scores times 4096, both integers."""
    missing = rng.choice(MISSING) if rng.random() < 0.25 else ""
    num_images = int(rng.integers(2, 4))
    num_windows, num_objects = int(rng.integers(8, 14)), int(rng.integers(3, 8))
    gt_boxes = _boxes(rng, num_objects)
    gt_image_ids = rng.integers(0, num_images, num_objects)
    present = 1 + num_classes // 2 if missing == "classes" else num_classes
    gt_classes = rng.integers(0, present, num_objects)
    image_ids = np.repeat(np.arange(num_images), num_windows)
    boxes = _boxes(rng, len(image_ids))
    for i in range(len(image_ids)):
        near = np.flatnonzero(gt_image_ids == image_ids[i])
        if len(near) and rng.random() < 0.65:
            boxes[i] = gt_boxes[rng.choice(near)] + rng.integers(-8, 9, 4)
    if rng.random() < 0.2:  # some windows twice
        boxes[1::4] = boxes[: len(boxes[1::4])]
    if is_by_class:
        boxes = boxes[:, None] + rng.integers(-4, 5, (len(boxes), num_classes, 4))
    scores = np.rint(4096 * rng.standard_normal((len(image_ids), num_classes)))
    if rng.random() < 0.25:
        scores = 1024 * np.rint(scores / 1024)
    has_window = np.ones(len(image_ids), dtype=bool)
    has_object = np.ones(num_objects, dtype=bool)
    if missing in ("windows", "both"):
        has_window[:] = False
    if missing in ("objects", "both"):
        has_object[:] = False
    if missing == "image of windows":
        has_window = image_ids != 0
    if missing == "image of objects":
        has_object = gt_image_ids != 0
    return {
        "scores": scores[has_window],
        "boxes": boxes.clip(0, 255)[has_window],
        "image_ids": image_ids[has_window],
        "gt_boxes": gt_boxes.clip(0, 255)[has_object],
        "gt_classes": gt_classes[has_object],
        "gt_image_ids": gt_image_ids[has_object],
        "gt_difficult": (rng.random(num_objects) < 0.15)[has_object],
    }


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.integers(8, 150, (count, 2))
    return np.concatenate([corner, corner + rng.integers(24, 90, (count, 2))], 1)


def is_clear(batch: dict) -> bool:
    """No overlap is so close to a threshold that rounding decides."""
    boxes, gt_boxes = batch["boxes"].reshape(-1, 4), batch["gt_boxes"]
    for other in (boxes, gt_boxes):
        size = np.minimum(boxes[:, None, 2:], other[:, 2:]) - np.maximum(
            boxes[:, None, :2], other[:, :2]
        )
        inter = size.clip(0).prod(2)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None] - inter
        iou = inter / (union + (other[:, 2:] - other[:, :2]).prod(1)).clip(1)
        if any((np.abs(iou - thresh) < 1e-5).any() for thresh in (0.3, 0.7)):
            return False
    return True


def make_cases() -> list[tuple[dict, list[list[dict]]]]:
    """Settings, and by turn and process a minibatch."""
    rng = np.random.default_rng(17)
    cases = []
    for settings in make_settings(rng):
        num_classes = int(rng.choice([1, 3, 3, 4, 5]))
        is_by_class = bool(rng.random() < 0.25)
        turns: list[list[dict]] = []
        while len(turns) < (3 if settings["memory_size"] else 1):
            ranks: list[dict] = []
            while len(ranks) < settings["num_ranks"]:
                batch = make_minibatch(rng, num_classes, is_by_class)
                if is_clear(batch):
                    ranks.append(batch)
            turns.append(ranks)
        cases.append((settings, turns))
    return cases


def results(settings: dict, turns: list[list[dict]], rank: int, group=None) -> tuple:
    """Loss, AP of each class and gradient of the last turn."""
    s = dict(settings)
    s["estimator"] = {"error_driven": "pairs"}.get(s["gradient"], s["gradient"])
    s["match_iou_thresh"] = s.pop("iou_thresh")
    s["grad_clip"] = None if np.isnan(s["grad_clip"]) else s["grad_clip"]
    memory = DetectionMemory(s["memory_size"]) if s["memory_size"] else None
    dtype = getattr(torch, s["dtype"])
    for name in ("gradient", "memory_size", "num_ranks", "dtype"):
        del s[name]
    for ranks in turns:
        batch = {name: torch.from_numpy(value) for name, value in ranks[rank].items()}
        scores = (batch["scores"] / 4096).to(dtype).requires_grad_()
        halves = {name: batch[name].to(dtype) / 2 for name in ("boxes", "gt_boxes")}
        loss, stats = map_loss(
            **{**batch, "scores": scores, **halves}, **s, group=group, memory=memory
        )
        loss.backward()
    return loss.item(), stats.ap_per_class.numpy(), scores.grad.numpy()


def of_this_rank() -> list[tuple]:
    group, rank = torch.distributed.group.WORLD, torch.distributed.get_rank()
    return [results(*case, rank, group) for case in make_cases() if case[0]["num_ranks"] == 2]


def main() -> None:
    cases = make_cases()
    of_ranks = [iter(x) for x in run_ranks(of_this_rank, 2)]
    columns = {name: np.array([case[0][name] for case in cases]) for name in cases[0][0]}
    types = {"scores": np.int16, "gt_difficult": np.bool_}
    blocks, parts = [], {name: [] for name in cases[0][1][0][0]}
    found: tuple[list, list, list] = ([], [], [])
    for i, (settings, turns) in enumerate(cases):
        for turn, ranks in enumerate(turns):
            for rank, batch in enumerate(ranks):
                shape = batch["scores"].shape
                is_by_class = batch["boxes"].ndim == 3
                blocks.append((i, turn, rank, *shape, len(batch["gt_classes"]), is_by_class))
                for name, value in batch.items():
                    parts[name].append(value.astype(types.get(name, np.uint8)).ravel())
        for rank in range(settings["num_ranks"]):
            own = next(of_ranks[rank]) if len(ranks) > 1 else results(settings, turns, 0)
            for part, value in zip(found, own, strict=True):
                part.append(np.ravel(value))
    loss, ap_per_class, gradient = (np.concatenate(part) for part in found)
    np.savez_compressed(
        PATH,
        **columns,
        **{name: np.concatenate(part) for name, part in parts.items()},
        blocks=np.array(blocks),
        loss=loss,
        ap_per_class=ap_per_class,
        score_gradient=gradient.astype(np.float32),
    )


if __name__ == "__main__":
    main()
