# SPDX-License-Identifier: Apache-2.0
"""Random scenes of a few images and windows, and what the slow reference says of them."""

from typing import NamedTuple

import torch
from maploss.layers import Steps, match_detections

from tests.reference import ap_after_nms as reference

NMS_THRESH = 0.3


class Scene(NamedTuple):
    scores: torch.Tensor
    boxes: torch.Tensor
    image_ids: torch.Tensor
    matched_gt: torch.Tensor
    num_gt: int


def random_scene(seed: int, num_images: int = 3, num_windows: int = 14) -> Scene:
    """
    Windows at random and jittered around 1 to 3 objects an image, one object in eight difficult.

    Every fifth scene has tied scores, every second one scores that favour objects.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    gts, gt_ids, windows, ids = [], [], [], []
    for image in range(num_images):
        num_objects = int(torch.randint(1, 4, (), generator=generator))
        corner, size = rand(num_objects, 2) * 60, 15 + rand(num_objects, 2) * 30
        objects = torch.cat([corner, corner + size], 1)
        which = torch.randint(0, num_objects, (num_windows,), generator=generator)
        near = objects[which] + (rand(num_windows, 4) - 0.5) * 24
        corner = rand(num_windows, 2) * 70
        far = torch.cat([corner, corner + 10 + rand(num_windows, 2) * 30], 1)
        boxes = torch.where(rand(num_windows, 1) < 0.6, near, far)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 4)
        gts.append(objects)
        gt_ids.append(torch.full((num_objects,), image))
        windows.append(boxes)
        ids.append(torch.full((num_windows,), image))
    gt_boxes, gt_image_ids = torch.cat(gts), torch.cat(gt_ids)
    boxes, image_ids = torch.cat(windows), torch.cat(ids)
    is_difficult = rand(len(gt_boxes)) < 0.125
    is_difficult[0] = False
    mix = torch.randperm(len(boxes), generator=generator)
    boxes, image_ids = boxes[mix], image_ids[mix]
    matched = match_detections(boxes, image_ids, gt_boxes, gt_image_ids, is_difficult)
    scores = torch.randn(len(boxes), generator=generator, dtype=torch.float64)
    if seed % 5 == 0:
        scores = (scores * 4).round() / 4
    if seed % 2:
        scores = scores + 0.75 * (matched >= 0).double()
    return Scene(scores, boxes, image_ids, matched, int((~is_difficult).sum()))


def oracle_steps(scene: Scene, ap_type: str) -> Steps:
    """NMS and AP run anew at every place between two other scores."""
    overlaps = reference.overlap_masks(
        scene.boxes.float().numpy(), scene.image_ids.numpy(), NMS_THRESH
    )
    matched_gt = scene.matched_gt.tolist()

    def f(order: list[int]) -> float:
        kept = reference.greedy_nms(order, overlaps)
        return reference.average_precision(kept, matched_gt, scene.num_gt, ap_type)

    return as_steps(*reference.nearest_steps(f, scene.scores.numpy()))


def as_steps(value: float, steps: list[tuple[reference.Step, reference.Step]]) -> Steps:
    """The reference's steps as the layers give them."""
    columns = [[getattr(x[side], name) for x in steps] for side in (0, 1) for name in _FIELDS]
    up_at, up_value, up_partner, down_at, down_value, down_partner = columns
    values = [torch.tensor(c, dtype=torch.float64) for c in (up_at, up_value, down_at, down_value)]
    partners = [torch.tensor(c, dtype=torch.int64) for c in (up_partner, down_partner)]
    return Steps(torch.tensor(value, dtype=torch.float64), *values, *partners)


_FIELDS = reference.Step._fields


def differing(a: Steps, b: Steps) -> torch.Tensor:
    """(R,) bool, where two Steps are not the same to 1e-9, partners included."""
    differs = torch.zeros(len(a.up_at), dtype=torch.bool)
    for x, y in zip(a[1:], b[1:], strict=True):
        differs |= ~torch.isclose(x.double(), y.double(), rtol=0.0, atol=1e-9, equal_nan=True)
    return differs
