# SPDX-License-Identifier: Apache-2.0
"""Several overlaps at once, against loops in tests/reference and against calls one by one."""

import math

import numpy as np
import pytest
import torch
from maploss.layers import MAPLossSettings, map_loss

from tests.reference import map_loss as slow
from tests.reference.ap_after_nms import greedy_nms, overlap_masks

COCO = tuple(round(0.05 * i, 2) for i in range(10, 20))
ALL = [
    *(("error_driven", level) for level in ("label_aware", "object_aware", "none")),
    *(
        (gradient, transitivity)
        for gradient in ("mee", "sde")
        for transitivity in ("exact", "label_aware", "paper", "none")
    ),
]


def random_minibatch(seed: int, num_windows: int = 12, num_images: int = 2) -> dict:
    """
    Windows near objects; class 2 of 3 has no object. Of the seeds, odd ones have boxes by class,
    every third ties, every fifth each window twice.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    num_objects = 4 * num_images
    corner = rand(num_objects, 2) * 40
    gt_boxes = torch.cat([corner, corner + 20 + rand(num_objects, 2) * 20], 1)
    gt_image_ids = torch.arange(num_objects) % num_images
    image_ids = torch.arange(num_windows * num_images) % num_images
    # An object of the window's image, with its sides moved by 0 to 10 pixels.
    which = (rand(len(image_ids)) * 4).long() * num_images + image_ids
    boxes = gt_boxes[which] + (rand(len(image_ids), 4) - 0.5) * 20 * rand(len(image_ids), 1)
    scores = torch.randn(len(boxes), 3, generator=generator, dtype=torch.float64)
    if seed % 5 == 0:
        boxes[1::2], image_ids[1::2] = boxes[0::2], image_ids[0::2]
        scores[1::4] = scores[0::4]
    if seed % 3 == 0:
        scores = (scores * 2).round() / 2
    if seed % 2:
        boxes = boxes[:, None] + (rand(len(boxes), 3, 4) - 0.5) * 4
    is_difficult = rand(num_objects) < 0.2
    is_difficult[::num_images] = False
    return {
        "scores": scores,
        "boxes": boxes,
        "image_ids": image_ids,
        "gt_boxes": gt_boxes,
        "gt_classes": torch.arange(num_objects) // num_images % 2,
        "gt_image_ids": gt_image_ids,
        "gt_difficult": is_difficult,
    }


def random_overlaps(seed: int) -> tuple[float, ...]:
    """2 to 10 of them, or COCO's."""
    if seed % 4 == 0:
        return COCO
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 11))
    return tuple(sorted((rng.choice(np.arange(2, 19), count, replace=False) / 20).tolist()))


def compute(batch: dict, **settings) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, AP of each class and gradient."""
    scores = batch["scores"].clone().requires_grad_()
    loss, stats = map_loss(
        **{**batch, "scores": scores}, settings=MAPLossSettings(**{"pooled": 0.0} | settings)
    )
    loss.backward()
    return loss.item(), stats.ap_per_class.numpy(), scores.grad.numpy()


def assert_as_by_the_loops(batch: dict, iou_threshs: tuple, **settings) -> slow.SlowLoss:
    """Returns what the loops have."""
    loss, ap, gradient = compute(batch, iou_threshs=iou_threshs, **settings)
    expected = slow.map_loss(batch, iou_threshs, **settings)
    assert loss == pytest.approx(expected.loss, abs=1e-6)
    np.testing.assert_allclose(ap, expected.ap.mean(0), atol=1e-6)
    np.testing.assert_allclose(gradient, expected.gradient, atol=1e-6)
    assert expected.gradient.any()
    return expected


@pytest.mark.parametrize("transitivity", ["label_aware", "object_aware", "none"])
@pytest.mark.parametrize("seed", range(15))
def test_values_and_error_driven_gradients_are_those_of_the_loops(seed, transitivity):
    settings = {
        "transitivity": transitivity,
        "ap_type": ["area", "voc07", "coco101"][seed % 3],
        "margin": [1.0, 0.1, 5.0, 0.5][seed % 4],
        "nms_thresh": [0.3, 0.5, 0.7][seed % 3],
        "log_space": seed % 7 != 0,
    }
    assert_as_by_the_loops(random_minibatch(seed), random_overlaps(seed), **settings)


@pytest.mark.parametrize("transitivity", ["exact", "none"])
@pytest.mark.parametrize("gradient", ["mee", "sde"])
@pytest.mark.parametrize("seed", range(6))
def test_gradients_from_steps_are_those_of_trying_every_place(seed, gradient, transitivity):
    settings = {
        "gradient": gradient,
        "transitivity": transitivity,
        "ap_type": ["area", "voc07", "coco101"][seed % 3],
        "min_delta": [0.5, 0.1][seed % 2],
        "pairing": ["paired", "none"][seed // 2 % 2],
        "nms_thresh": [0.3, 0.6][seed % 2],
    }
    batch = random_minibatch(seed, num_windows=7)
    assert_as_by_the_loops(batch, random_overlaps(seed), **settings)


@pytest.mark.parametrize(("gradient", "transitivity"), ALL)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_several_overlaps_are_the_mean_of_one_by_one(gradient, transitivity, seed):
    batch, threshs = random_minibatch(seed), random_overlaps(seed)
    settings = {"gradient": gradient, "transitivity": transitivity, "log_space": False}
    loss, ap, own = compute(batch, iou_threshs=threshs, **settings)
    losses, aps, gradients = zip(
        *(compute(batch, iou_threshs=(t,), **settings) for t in threshs), strict=True
    )
    assert len(set(losses)) > 1
    assert loss == pytest.approx(np.mean(losses), abs=1e-6)
    np.testing.assert_allclose(ap, np.mean(aps, 0), atol=1e-6)
    np.testing.assert_allclose(own, np.mean(gradients, 0), atol=1e-6)


@pytest.mark.parametrize(("gradient", "transitivity"), ALL)
def test_log_space_and_clipping_come_after_the_mean(gradient, transitivity):
    settings = {"gradient": gradient, "transitivity": transitivity, "iou_threshs": COCO}
    loss, _, plain = compute(random_minibatch(1), **settings, log_space=False)
    bound = float(np.abs(plain).max()) / 4
    logarithm, _, clipped = compute(random_minibatch(1), **settings, eps=0.5, grad_clip=bound)
    mean_ap = 1 - loss
    assert logarithm == pytest.approx(-math.log((mean_ap + 0.5) / 1.5), abs=1e-6)
    expected = (plain / (mean_ap + 0.5)).clip(-bound, bound)
    np.testing.assert_allclose(clipped, expected, atol=1e-6)


def test_coco_means_the_ten_overlaps_of_its_evaluation():
    batch = random_minibatch(2)
    for one, other in zip(
        compute(batch, iou_threshs="coco"), compute(batch, iou_threshs=COCO), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_window_takes_the_first_of_two_objects_that_it_overlaps_alike():
    # The second window is a repetition for the first object and none for the second one.
    batch = {
        "scores": torch.tensor([[3.0], [2.0], [1.0]], dtype=torch.float64),
        "boxes": torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [30, 0, 40, 10]]),
        "image_ids": torch.zeros(3, dtype=torch.int64),
        "gt_boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [30, 0, 40, 10]]),
        "gt_classes": torch.zeros(3, dtype=torch.int64),
        "gt_image_ids": torch.zeros(3, dtype=torch.int64),
        "gt_difficult": torch.tensor([False, True, False]),
    }
    assert_as_by_the_loops(batch, (0.5, 0.75))
    _, ap, _ = compute(batch, iou_threshs=(0.5, 0.75))
    assert ap.item() == pytest.approx((1 + 2 / 3) / 2)


def only(batch: dict, windows: slice, objects: slice) -> dict:
    return {k: v[objects if k.startswith("gt") else windows] for k, v in batch.items()}


@pytest.mark.parametrize(("gradient", "transitivity"), ALL)
@pytest.mark.parametrize("seed", [1, 2])
def test_without_windows_or_objects_there_is_no_gradient(gradient, transitivity, seed):
    settings = {"gradient": gradient, "transitivity": transitivity, "iou_threshs": COCO}
    batch = random_minibatch(seed)
    batch["gt_difficult"][:] = False
    some, none = slice(None), slice(0, 0)
    for windows, objects in ((some, none), (none, some), (none, none)):
        loss, ap, own = compute(only(batch, windows, objects), **settings)
        assert loss == pytest.approx(math.log(2), abs=1e-6)  # mAP is 0
        assert own.shape == batch["scores"][windows].shape
        assert not own.any()
        absent = [True, True, True] if objects == none else [False, False, True]
        assert np.isnan(ap).tolist() == absent
    for count in (1, 2):  # one window, then one of each image
        one = only(batch, slice(0, count), slice(0, 3))
        loss, ap, own = compute(one, **settings)
        expected = slow.map_loss(one, COCO).loss
        assert loss == pytest.approx(expected, abs=1e-6)
        assert np.isfinite(own).all()


@pytest.mark.parametrize("transitivity", ["label_aware", "none"])
@pytest.mark.parametrize("seed", range(6))
def test_suppressed_windows_under_the_lowest_overlap_get_no_gradient(seed, transitivity):
    batch = random_minibatch(seed, num_windows=20)
    threshs = (0.6, 0.75, 0.9)
    _, _, gradient = compute(batch, iou_threshs=threshs, transitivity=transitivity)
    arrays = {name: value.numpy() for name, value in batch.items()}
    num_reached = num_under = 0
    for c in (0, 1):
        boxes = arrays["boxes"] if arrays["boxes"].ndim == 2 else arrays["boxes"][:, c]
        order = np.argsort(-arrays["scores"][:, c], kind="stable").tolist()
        kept = greedy_nms(order, overlap_masks(boxes, arrays["image_ids"], 0.3))
        best = slow.best_objects(boxes, c, arrays)
        suppressed = sorted(set(order) - set(kept))
        under = [i for i in suppressed if best[i][1] <= threshs[0]]
        assert not gradient[under, c].any()
        num_under += len(under)
        num_reached += np.count_nonzero(gradient[suppressed, c])
    assert num_under > 0
    assert (num_reached > 0) == (transitivity == "label_aware")


@pytest.mark.parametrize(("gradient", "transitivity"), ALL)
@pytest.mark.parametrize("seed", range(4))
def test_the_gradients_of_a_class_sum_to_zero(gradient, transitivity, seed):
    batch, threshs = random_minibatch(seed), random_overlaps(seed)
    _, ap, own = compute(batch, gradient=gradient, transitivity=transitivity, iou_threshs=threshs)
    assert np.abs(own.sum(0)).max() < 1e-9
    assert own.any()
    # The last class has no object.
    assert np.isfinite(ap).tolist() == [True, True, False]
    assert not own[:, 2].any()
