# SPDX-License-Identifier: Apache-2.0
"""Gradients by the overlap of boxes, and AP of all classes in one list, against slow loops."""

import numpy as np
import pytest
import torch
from maploss.layers import MAPLossSettings, map_loss
from maploss.layers.map_loss.detection_memory import DetectionMemory

from tests.layers.map_loss.test_several_overlaps import (
    COCO,
    assert_as_by_the_loops,
    random_minibatch,
    random_overlaps,
)
from tests.reference import map_loss as slow


def compute(batch: dict, **settings):
    """Loss, gradient by the scores, gradient by overlap or None, and what is watched."""
    scores = batch["scores"].clone().requires_grad_()
    loss, stats = map_loss(
        **{**batch, "scores": scores}, settings=MAPLossSettings(**{"pooled": 0.0} | settings)
    )
    loss.backward()
    boxes = stats.box_gradient
    by_overlap = None if boxes is None else boxes.by_overlap.numpy()
    return loss.item(), scores.grad.numpy(), by_overlap, stats


def assert_with_boxes(batch: dict, iou_threshs: tuple, **settings) -> None:
    expected = assert_as_by_the_loops(batch, iou_threshs, **settings)
    _, _, by_overlap, _ = compute(batch, iou_threshs=iou_threshs, **settings)
    if by_overlap is not None:
        np.testing.assert_allclose(by_overlap, expected.by_overlap, atol=1e-6)
        assert expected.by_overlap.any()


@pytest.mark.parametrize("pooled", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("box_gradient", ["error_driven", "mee", "sde"])
@pytest.mark.parametrize("seed", range(8))
def test_gradients_by_overlap_are_those_of_trying_every_overlap(seed, box_gradient, pooled):
    settings = {
        "box_gradient": box_gradient,
        "pooled": pooled,
        "ap_type": ["area", "voc07", "coco101"][seed % 3],
        "nms_thresh": [0.3, 0.5, 0.7][seed % 3],
        "log_space": seed % 2 == 0,
        "transitivity": ["label_aware", "none"][seed % 2],
    }
    assert_with_boxes(random_minibatch(seed), random_overlaps(seed), **settings)


@pytest.mark.parametrize("pooled", [0.4, 1.0])
@pytest.mark.parametrize("transitivity", ["exact", "none"])
@pytest.mark.parametrize("box_gradient", ["none", "error_driven", "mee"])
@pytest.mark.parametrize("seed", range(3))
def test_steps_of_one_list_of_all_classes_are_those_of_trying_every_place(
    seed, box_gradient, transitivity, pooled
):
    settings = {
        "gradient": ["mee", "sde"][seed % 2],
        "box_gradient": box_gradient,
        "transitivity": transitivity,
        "pooled": pooled,
        "ap_type": ["area", "voc07", "coco101"][seed % 3],
    }
    batch = random_minibatch(seed, num_windows=5)
    assert_with_boxes(batch, random_overlaps(seed)[:3], **settings)


@pytest.mark.parametrize("box_gradient", ["error_driven", "mee", "sde"])
def test_a_rising_overlap_never_lowers_ap(box_gradient):
    for seed in range(6):
        _, _, by_overlap, stats = compute(
            random_minibatch(seed), iou_threshs=COCO, box_gradient=box_gradient
        )
        assert (by_overlap >= 0).all()
        assert (by_overlap[stats.box_gradient.objects.numpy() < 0] == 0).all()


def test_boxes_are_pulled_to_the_object_that_they_overlap_most():
    batch = random_minibatch(1)
    _, _, _, stats = compute(batch, iou_threshs=COCO, box_gradient="error_driven")
    arrays = {name: value.numpy() for name, value in batch.items()}
    for c in range(3):
        best = slow.best_objects(arrays["boxes"][:, c], c, arrays)
        has_objects = (arrays["gt_classes"] == c).any()
        expected = [i if has_objects else -1 for i, _ in best]
        assert stats.box_gradient.objects[:, c].tolist() == expected


def test_the_worked_example_of_three_windows():
    # IoU 0, .6 and .9 with the object; NMS keeps all.
    batch = {
        "scores": torch.tensor([[3.0], [2.0], [1.0]], dtype=torch.float64),
        "boxes": torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 6], [0, 0, 10, 9]]),
        "image_ids": torch.zeros(3, dtype=torch.int64),
        "gt_boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "gt_classes": torch.zeros(1, dtype=torch.int64),
        "gt_image_ids": torch.zeros(1, dtype=torch.int64),
        "gt_difficult": torch.tensor([False]),
    }
    settings = {"iou_threshs": (0.5, 0.75), "nms_thresh": 0.7, "log_space": False}
    loss, _, by_overlap, _ = compute(batch, box_gradient="mee", **settings)
    assert loss == pytest.approx(1 - 5 / 12)
    second = ((1 / 2 - 5 / 12) + (5 / 12 - 1 / 3)) / 2 / 0.25
    third = (5 / 12 - 1 / 4) / 2 / (0.9 - 0.75)
    np.testing.assert_allclose(by_overlap[:, 0], [0, second, third], atol=1e-6)


def test_pooling_one_class_changes_nothing():
    batch = random_minibatch(2)
    batch["scores"], batch["gt_classes"] = batch["scores"][:, :1], 0 * batch["gt_classes"]
    plain = compute(batch, iou_threshs=COCO, box_gradient="error_driven")
    for pooled in (0.3, 1.0):
        other = compute(batch, iou_threshs=COCO, box_gradient="error_driven", pooled=pooled)
        assert other[0] == pytest.approx(plain[0], abs=1e-9)
        np.testing.assert_allclose(other[1], plain[1], atol=1e-9)
        np.testing.assert_allclose(other[2], plain[2], atol=1e-9)


def test_pooled_classes_push_down_what_an_absent_class_detects():
    batch = random_minibatch(4)
    present = compute(batch, iou_threshs=COCO)[1]
    pooled = compute(batch, iou_threshs=COCO, pooled=1.0)[1]
    assert not present[:, 2].any()
    assert (pooled[:, 2] >= 0).all()
    assert pooled[:, 2].any()
    assert pooled.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("gradient", ["error_driven", "mee"])
@pytest.mark.parametrize("box_gradient", ["none", "error_driven", "mee"])
def test_pooling_takes_a_class_that_has_difficult_objects_only(gradient, box_gradient):
    batch = random_minibatch(3)
    batch["gt_difficult"] = batch["gt_difficult"] | (batch["gt_classes"] == 0)
    settings = {"gradient": gradient, "box_gradient": box_gradient, "pooled": 0.5}
    if gradient == "mee":
        settings["transitivity"] = "exact"
    assert_with_boxes(batch, random_overlaps(3)[:3], **settings)


def test_a_memory_takes_a_class_that_has_difficult_objects_only():
    batch = random_minibatch(3)
    batch["gt_difficult"] = batch["gt_difficult"] | (batch["gt_classes"] == 0)
    scores = batch["scores"].clone().requires_grad_()
    loss, _ = map_loss(
        **{**batch, "scores": scores},
        settings=MAPLossSettings(pooled=0.0),
        memory=DetectionMemory(1),
    )
    loss.backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[:, 1].any()
    assert not scores.grad[:, 0].any()
