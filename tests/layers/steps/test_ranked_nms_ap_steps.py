# SPDX-License-Identifier: Apache-2.0
"""All classes and overlaps at once against one class and one overlap after the other."""

import sys
from typing import NamedTuple

import pytest
import torch
from maploss.layers import match_detections, nms_ap_steps, nms_record, pseudo_gradient
from maploss.layers.average_precision import AP_TYPES, recall_weights, recall_weights_table
from maploss.layers.nms import find_overlaps
from maploss.layers.steps.nms_ap_steps import TRANSITIVITIES, ranked_nms_ap_steps
from maploss.layers.steps.pseudo_gradient import (
    ESTIMATORS,
    PAIRINGS,
    ranked_pseudo_gradient,
)
from maploss.layers.steps.ranked_windows import RankedSteps, RankedWindows
from maploss.layers.steps.steps import Steps
from torch.utils._python_dispatch import TorchDispatchMode

from tests.scenes import NMS_THRESH, Scene, differing, oracle_steps

OVERLAPS = (0.3, 0.5, 0.55, 0.75)


class Minibatch(NamedTuple):
    """
    scenes: [overlap][class]. windows: the same in one list. rows: (P, R), position of each class's
    windows in that list.
    """

    scenes: list[list[Scene]]
    windows: RankedWindows
    rows: torch.Tensor

    @property
    def scores(self) -> torch.Tensor:
        """(n,) by position."""
        scores = torch.empty(self.rows.numel(), dtype=torch.float64)
        for scene, rows in zip(self.scenes[0], self.rows, strict=True):
            scores[rows] = scene.scores
        return scores


def random_minibatch(
    seed: int, num_images: int = 2, num_windows: int = 12, crowd: int = 0, num_classes: int = 4
) -> Minibatch:
    """
    The first class has `crowd` more objects in each image; the last one has none.

    One object in five is difficult; every third minibatch has tied scores.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    gts, gt_ids, gt_classes, windows = [], [], [], []
    for image in range(num_images):
        num_objects = 3 + crowd
        corner, size = rand(num_objects, 2) * (60 + 8 * crowd), 15 + rand(num_objects, 2) * 30
        objects = torch.cat([corner, corner + size], 1)
        classes = torch.randint(0, num_classes - 1, (num_objects,), generator=generator)
        classes[3:] = 0
        which = torch.randint(0, num_objects, (num_windows,), generator=generator)
        windows.append(objects[which] + (rand(num_windows, 4) - 0.5) * 16)
        gts.append(objects)
        gt_classes.append(classes)
        gt_ids.append(torch.full((num_objects,), 7 * image))
    boxes, image_ids = torch.cat(windows), torch.arange(num_images).repeat_interleave(num_windows)
    mix = torch.randperm(len(boxes), generator=generator)
    boxes, image_ids = boxes[mix].float().double(), 7 * image_ids[mix]
    objects, object_ids, classes = torch.cat(gts), torch.cat(gt_ids), torch.cat(gt_classes)
    is_difficult = rand(len(objects)) < 0.2
    scores = torch.randn(len(boxes), num_classes, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        scores = (scores * 3).round() / 3

    scenes: list[list[Scene]] = [[] for _ in OVERLAPS]
    for c in range(num_classes):
        own = (classes == c).nonzero().squeeze(1)
        for per_class, thresh in zip(scenes, OVERLAPS, strict=True):
            matched = match_detections(
                boxes, image_ids, objects[own], object_ids[own], is_difficult[own], thresh
            )
            matched[matched >= 0] = own[matched[matched >= 0]]
            num_gt = int((~is_difficult[own]).sum())
            per_class.append(Scene(scores[:, c], boxes, image_ids, matched, num_gt))
    return in_one_list(scenes)


def in_one_list(scenes: list[list[Scene]]) -> Minibatch:
    columns: dict[str, list[torch.Tensor]] = {}
    rows, first, limit = [], 0, 0.0
    for c, scene in enumerate(scenes[0]):
        overlaps = find_overlaps(scene.boxes, scene.image_ids, NMS_THRESH)
        record = nms_record(scene.boxes, scene.scores, scene.image_ids, NMS_THRESH, overlaps)
        order = record.rank.argsort()
        suppressor = record.suppressor[order]
        found = {
            "classes": torch.full_like(order, c),
            "image_ids": scene.image_ids[order],
            "boxes": overlaps.boxes[order],
            "is_kept": record.is_kept[order],
            "suppressor": torch.where(suppressor < 0, -1, record.rank[suppressor] + first),
            "higher": record.rank[record.higher] + first,
            "lower": record.rank[record.lower] + first,
            "gt": torch.stack([of[c].matched_gt[order] for of in scenes], 1),
        }
        for name, column in found.items():
            columns.setdefault(name, []).append(column)
        rows.append(record.rank + first)
        first, limit = first + len(order), overlaps.limit
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    joined["gt"] = joined["gt"].t().contiguous()
    num_gt = torch.tensor([scene.num_gt for scene in scenes[0]])
    return Minibatch(scenes, RankedWindows(**joined, limit=limit, num_gt=num_gt), torch.stack(rows))


def part(steps: RankedSteps, minibatch: Minibatch, overlap: int, c: int) -> Steps:
    """Those of one class at one overlap in the order of the input."""
    scores, rows = minibatch.scenes[overlap][c].scores, minibatch.rows[c]
    sides = []
    for value, partner in (
        (steps.up_value, steps.up_partner),
        (steps.down_value, steps.down_partner),
    ):
        partner = partner[overlap, rows]
        passed = torch.where(partner < 0, -1, rows.argsort()[(partner - rows.min()).clamp(min=0)])
        at = torch.where(partner < 0, float("nan"), scores[passed])
        sides.append((at, value[overlap, rows], passed))
    (up_at, up_value, up_partner), (down_at, down_value, down_partner) = sides
    return Steps(
        steps.value[overlap, c], up_at, up_value, down_at, down_value, up_partner, down_partner
    )


def assert_same(found: Steps, expected: Steps, where: tuple) -> None:
    assert not differing(found, expected).any(), where
    assert torch.isclose(found.value, expected.value, rtol=0, atol=1e-12, equal_nan=True), where


@pytest.mark.parametrize("ap_type", AP_TYPES)
def test_exact_equals_the_oracle_for_each_class_and_overlap(ap_type):
    for seed in range(5):
        minibatch = random_minibatch(seed)
        steps = ranked_nms_ap_steps(minibatch.windows, ap_type, "exact")
        for t, scenes in enumerate(minibatch.scenes):
            for c, scene in enumerate(scenes):
                if scene.num_gt == 0:
                    assert steps.value[t, c].isnan()
                    assert not (part(steps, minibatch, t, c).up_partner >= 0).any()
                    continue
                expected = oracle_steps(scene, ap_type)
                assert_same(part(steps, minibatch, t, c), expected, (seed, t, c))


@pytest.mark.parametrize("transitivity", TRANSITIVITIES)
@pytest.mark.parametrize("ap_type", AP_TYPES)
@pytest.mark.parametrize("crowd", [0, 25])
def test_equals_one_class_and_overlap_after_the_other(ap_type, transitivity, crowd):
    for seed in range(6):
        minibatch = random_minibatch(seed, num_windows=40, crowd=crowd, num_classes=5)
        steps = ranked_nms_ap_steps(minibatch.windows, ap_type, transitivity)
        for t, scenes in enumerate(minibatch.scenes):
            for c, scene in enumerate(scenes):
                alone = nms_ap_steps(*scene, ap_type=ap_type, transitivity=transitivity)
                assert_same(part(steps, minibatch, t, c), alone, (seed, t, c))


@pytest.mark.parametrize("transitivity", TRANSITIVITIES)
def test_the_work_for_all_classes_may_be_done_in_parts(transitivity, monkeypatch):
    minibatch = random_minibatch(1, num_windows=30, crowd=20)
    whole = ranked_nms_ap_steps(minibatch.windows, "area", transitivity)
    for module in ("incremental_nms", "counterfactual_ap", "first_steps"):
        monkeypatch.setattr(sys.modules[f"maploss.layers.steps.{module}"], "_CHUNK", 40)
    parts = ranked_nms_ap_steps(minibatch.windows, "area", transitivity)
    for x, y in zip(parts, whole, strict=True):
        assert torch.allclose(x, y, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("transitivity", TRANSITIVITIES)
def test_windows_in_images_of_their_own_have_the_steps_of_the_kept_list(transitivity):
    # As detections of other processes: what was kept there, among all windows of here.
    minibatch = random_minibatch(4, num_classes=2)
    scene = minibatch.scenes[1][0]
    kept = nms_record(scene.boxes, scene.scores, scene.image_ids, NMS_THRESH).is_kept
    apart = torch.arange(1000, 1000 + int(kept.sum()))
    alone = scene._replace(
        scores=scene.scores[kept],
        boxes=scene.boxes[kept],
        image_ids=apart,
        matched_gt=scene.matched_gt[kept],
    )
    steps = ranked_nms_ap_steps(in_one_list([[alone]]).windows, "area", transitivity)
    none = ranked_nms_ap_steps(minibatch.windows, "area", "none")
    assert steps.value[0, 0] == none.value[1, 0]
    is_kept = minibatch.windows.is_kept & (minibatch.windows.classes == 0)
    for name in ("up_value", "down_value"):
        expected = getattr(none, name)[1, is_kept]
        assert torch.allclose(getattr(steps, name)[0], expected, equal_nan=True)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("chunk", [1 << 20, 1])
def test_the_gradient_is_the_mean_over_overlaps(estimator, pairing, chunk, monkeypatch):
    monkeypatch.setattr(sys.modules["maploss.layers.steps.pseudo_gradient"], "_CHUNK", chunk)
    for seed in range(4):
        minibatch = random_minibatch(seed, num_windows=20)
        windows, scores = minibatch.windows, minibatch.scores
        steps = ranked_nms_ap_steps(windows, "area", "label_aware")
        is_moving = torch.arange(len(scores)) % 3 > 0
        for mask in (None, is_moving):
            found = ranked_pseudo_gradient(
                steps, windows.classes, scores, estimator, 0.1, pairing, mask
            )
            expected = torch.zeros_like(found)
            for t in range(len(OVERLAPS)):
                for c, rows in enumerate(minibatch.rows):
                    alone = part(steps, minibatch, t, c)
                    if mask is not None:
                        alone = alone.only(mask[rows])
                    gradient = pseudo_gradient(alone, scores[rows], estimator, 0.1, pairing)
                    expected[rows] += gradient / len(OVERLAPS)
            assert expected.any()
            assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ap_type", AP_TYPES)
def test_each_row_of_the_weights_table_is_that_of_its_class(ap_type):
    num_gt = torch.tensor([*range(130), 500, 1000])
    table = recall_weights_table(num_gt, ap_type, 300)
    for row, count in zip(table, num_gt.tolist(), strict=True):
        size = min(count, 300)
        expected = recall_weights(count, size, ap_type)
        assert torch.allclose(row[:size], expected, rtol=0, atol=1e-15)
        assert not row[size:].any()


class Count(TorchDispatchMode):
    """Tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


def operations(windows: RankedWindows, transitivity: str) -> int:
    with Count() as count:
        ranked_nms_ap_steps(windows, "area", transitivity)
    return count.operations


@pytest.mark.parametrize(("transitivity", "at_most"), [("label_aware", 1000), ("exact", 5000)])
def test_operations_hardly_grow_with_classes_and_overlaps(transitivity, at_most):
    minibatch = random_minibatch(0, num_windows=60, num_classes=12)
    # NMS in rounds: as many as the longest chain of the classes has.
    longest = max(
        operations(in_one_list([[scenes[c]] for scenes in minibatch.scenes]).windows, transitivity)
        for c in range(12)
    )
    together = operations(minibatch.windows, transitivity)
    assert together <= 1.02 * longest
    assert together <= at_most
