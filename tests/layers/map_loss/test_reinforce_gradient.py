# SPDX-License-Identifier: Apache-2.0
"""REINFORCE on mAP: what its mean is, what a sample is, and who draws it."""

import itertools
import math

import numpy as np
import pytest
import torch
from maploss.layers import DetectionMemory, MAPLoss, MAPLossSettings, map_loss
from maploss.layers.map_loss import reinforce_gradient as module

from tests.distributed import run_ranks
from tests.layers.map_loss.test_global_minibatch import (
    NUM_IMAGES,
    gradient_of,
    images_of,
    minibatch,
)
from tests.layers.map_loss.test_map_loss import loss_and_gradient, random_batch
from tests.reference import map_loss as reference

REINFORCE = {"gradient": "reinforce", "log_space": False}
BOX = [0.0, 0.0, 10.0, 10.0]


def replicas(scores, boxes, gt_boxes, num):
    """The same windows of one image as each of `num` classes, all with the same objects."""
    return {
        "scores": torch.tensor(scores, dtype=torch.float64)[:, None].repeat(1, num),
        "boxes": torch.tensor(boxes),
        "image_ids": torch.zeros(len(scores), dtype=torch.int64),
        "gt_boxes": torch.tensor(gt_boxes).repeat(num, 1),
        "gt_classes": torch.arange(num).repeat_interleave(len(gt_boxes)),
        "gt_image_ids": torch.zeros(num * len(gt_boxes), dtype=torch.int64),
    }


def ascent(batch, **settings):
    """(R, K) what raises each class's expected AP."""
    torch.manual_seed(0)
    _, gradient, _ = loss_and_gradient(batch, **REINFORCE, **settings)
    return -gradient * batch["scores"].shape[1]


def mean_and_error(gradient):
    """Over classes, which are independent: (R,) each."""
    return gradient.mean(1), gradient.std(1) / math.sqrt(gradient.shape[1])


def normal_density(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


# The object's window and another; the threshold of overlap; how much AP is lost where the other has
# the better score: half the precision, or, where NMS leaves the other only, all.
TWO_WINDOWS = {
    "a false positive above": ([20.0, 20, 30, 30], 0.5, 0.5),
    "a loose window that suppresses the tight one": ([0.0, 0, 10, 6], 0.7, 1.0),
}


@pytest.mark.parametrize("num_samples", [2, 5])
@pytest.mark.parametrize("noise", [0.5, 2.0])
@pytest.mark.parametrize("case", TWO_WINDOWS)
def test_the_mean_is_the_derivative_of_the_expected_ap_of_two_windows(case, noise, num_samples):
    other, iou_thresh, loss = TWO_WINDOWS[case]
    d = 0.4
    batch = replicas([1.0 + d, 1.0], [BOX, other], [BOX], 1500)
    mean, error = mean_and_error(
        ascent(batch, noise=noise, num_samples=num_samples, iou_threshs=[iou_thresh])
    )
    # E[AP] = 1 - loss P(the other is above); the difference of scores has variance 2 noise^2.
    width = noise * math.sqrt(2)
    expected = loss * normal_density(d / width) / width
    assert expected > 10 * error[0]
    assert mean[0].item() == pytest.approx(expected, abs=4 * error[0].item())
    assert mean[1].item() == pytest.approx(-expected, abs=4 * error[1].item())


def test_the_mean_is_the_slope_of_the_smoothed_map_after_nms():
    # Two objects; a pair of windows around each that suppress each other, and two over nothing.
    scores, noise, num = [0.2, 0.5, -0.3, 0.1, 0.4, 0.0], 0.5, 1000
    boxes = [
        BOX,
        [0, 0, 10, 6.5],
        [30, 0, 40, 10],
        [30, 3, 40, 10],
        [50, 50, 60, 60],
        [0, 50, 9, 59],
    ]
    boxes = [[float(x) for x in box] for box in boxes]
    gt_boxes = [BOX, [30.0, 0, 40, 10]]
    batch, overlaps = replicas(scores, boxes, gt_boxes, num), {"iou_threshs": [0.5, 0.68]}
    mean, error = mean_and_error(ascent(batch, noise=noise, num_samples=50, **overlaps))
    # Finite differences of the mean AP of many noisy copies, the same noise on both sides.
    generator = torch.Generator().manual_seed(7)
    slopes = torch.zeros(6, num, dtype=torch.float64)
    for _ in range(10):
        draws = noise * torch.randn(6, num, generator=generator, dtype=torch.float64)
        for i in range(6):
            step = 0.1 * (torch.arange(6) == i).double()[:, None]
            up, down = (
                map_loss(
                    **batch | {"scores": batch["scores"] + draws + side},
                    settings=MAPLossSettings(**overlaps),
                )[1].ap_per_class
                for side in (step, -step)
            )
            slopes[i] += (up - down) / 0.2 / 10
    slope, slope_error = mean_and_error(slopes)
    both = (error.square() + slope_error.square()).sqrt()
    assert ((mean - slope).abs() < 4 * both).all()
    # All but the tightest of them far from 0, in both directions.
    assert (slope[[0, 2]] > 8 * both[[0, 2]]).all()
    assert (slope[[4, 5]] < -5 * both[[4, 5]]).all()


@pytest.fixture
def drawn(monkeypatch):
    """The noise of each sample, as it is drawn."""
    noises, draw = [], module._draw

    def record(*args):
        noises.append(draw(*args))
        return noises[-1]

    monkeypatch.setattr(module, "_draw", record)
    return noises


@pytest.mark.parametrize("per_class_boxes", [False, True])
def test_each_sample_is_ranked_by_the_definition_and_compared_with_the_others(
    drawn, per_class_boxes
):
    batch = random_batch(dtype=torch.float64)
    if per_class_boxes:
        batch["boxes"] = torch.stack([batch["boxes"] + 2 * c for c in range(4)], 1)
    threshs, noise = (0.5, 0.7), 0.8
    settings = {"iou_threshs": threshs, "ap_type": "voc07", "noise": noise, "num_samples": 3}
    _, gradient, stats = loss_and_gradient(batch, **REINFORCE, **settings)
    assert len(drawn) == 3
    plain = reference.map_loss(batch, threshs, ap_type="voc07", log_space=False)
    np.testing.assert_allclose(stats.ap.numpy(), plain.ap, atol=1e-12)
    rewards = []
    for z in drawn:
        # The fourth class has no object and is not ranked.
        noisy = batch["scores"].clone()
        noisy[:, :3] += noise * z
        slow = reference.map_loss(batch | {"scores": noisy}, threshs, ap_type="voc07")
        rewards.append(slow.ap[:, :3].mean(0))
    expected = np.zeros((120, 4))
    for k, z in enumerate(drawn):
        others = np.mean([r for i, r in enumerate(rewards) if i != k], axis=0)
        expected[:, :3] += (rewards[k] - others) * z.numpy() / noise / 3
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient.numpy(), -expected / 4, atol=1e-12)


@pytest.mark.parametrize("pooled", [0.4, 1.0])
def test_pooled_ap_of_a_sample_is_the_reward_of_all_its_scores(drawn, pooled):
    batch = random_batch(dtype=torch.float64)
    threshs, noise = (0.5, 0.7), 0.8
    settings = {"iou_threshs": threshs, "noise": noise, "num_samples": 3, "pooled": pooled}
    _, gradient, stats = loss_and_gradient(batch, **REINFORCE, **settings)
    assert len(drawn) == 3

    def slow(scores):
        """AP of each class, none for the fourth without an object, and of all in one list."""
        found = reference.map_loss(
            batch | {"scores": scores}, threshs, pooled=1.0, transitivity="none", log_space=False
        )
        return np.nan_to_num(found.ap).mean(0), 1 - found.loss

    assert stats.pooled_ap.item() == pytest.approx(slow(batch["scores"])[1], abs=1e-12)
    rewards = []
    for z in drawn:
        ap, pooled_ap = slow(batch["scores"] + noise * z)
        rewards.append((1 - pooled) / 4 * ap + pooled * pooled_ap)
    expected = np.zeros((120, 4))
    for k, z in enumerate(drawn):
        others = np.mean([r for i, r in enumerate(rewards) if i != k], axis=0)
        expected += (rewards[k] - others) * z.numpy() / noise / 3
    assert (np.abs(expected).max(0) > 0.001).all()
    np.testing.assert_allclose(gradient.numpy(), -expected, atol=1e-12)


def test_in_log_space_the_same_samples_have_the_gradient_of_the_logarithm():
    batch = random_batch(dtype=torch.float64)
    torch.manual_seed(3)
    _, plain, _ = loss_and_gradient(batch, **REINFORCE)
    torch.manual_seed(3)
    loss, gradient, stats = loss_and_gradient(batch, gradient="reinforce", eps=0.1)
    torch.testing.assert_close(gradient, plain / (stats.map + 0.1))
    assert loss.item() == pytest.approx(-math.log((stats.map + 0.1) / 1.1))


def test_samples_follow_from_the_seed_of_torch():
    batch, found = random_batch(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(loss_and_gradient(batch, **REINFORCE)[1])
        # The next step draws others.
        assert not torch.equal(loss_and_gradient(batch, **REINFORCE)[1], found[-1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].abs().max() > 0


@pytest.mark.parametrize("num_samples", [2, 3])
def test_where_noise_cannot_change_ap_there_is_no_gradient(num_samples):
    batch = random_batch(dtype=torch.float64)
    # No window is near an object of class 1, and class 3 has none.
    far = batch["gt_classes"] == 1
    batch["gt_boxes"][far] += 1000
    _, gradient, stats = loss_and_gradient(batch, num_samples=num_samples, **REINFORCE)
    assert stats.ap_per_class[1] == 0
    assert gradient[:, 0].abs().max() > 1e-3
    assert gradient[:, [1, 3]].abs().max() < 1e-12


def test_value_and_statistics_are_those_of_the_scores_without_noise():
    batch = random_batch()
    loss, _, stats = loss_and_gradient(batch, gradient="reinforce")
    other, _, other_stats = loss_and_gradient(batch)
    assert torch.equal(loss, other)
    assert torch.equal(stats.ap.nan_to_num(), other_stats.ap.nan_to_num())
    for c in range(3):
        for x, y in zip(stats.class_detections(c), other_stats.class_detections(c), strict=True):
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))


def test_descent_with_few_samples_raises_map():
    torch.manual_seed(0)
    batch = random_batch()
    scores = batch["scores"].requires_grad_()
    loss = MAPLoss(MAPLossSettings(gradient="reinforce", num_samples=4, noise=0.5))
    optimizer = torch.optim.Adam([scores], lr=0.05)
    values = []
    for _ in range(300):
        optimizer.zero_grad()
        losses, stats = loss(**batch)
        losses["loss_map"].backward()
        optimizer.step()
        values.append(stats.map.item())
    assert np.mean(values[-20:]) > np.mean(values[:20]) + 0.2


@pytest.mark.parametrize("missing", ["windows", "objects", "both"])
def test_nothing_to_sample_has_no_gradient(missing):
    batch = random_batch()
    for name in batch:
        if missing == "both" or name.startswith("gt") == (missing == "objects"):
            batch[name] = batch[name][:0]
    _, gradient, stats = loss_and_gradient(batch, gradient="reinforce")
    assert stats.map == 0
    assert not gradient.any()


SETTINGS = [{}, {"iou_threshs": "coco", "ap_type": "coco101", "num_samples": 3}, {"pooled": 0.6}]


def with_noise_of_windows(own=(0, NUM_IMAGES), group=None):
    """
    Minibatches in a row, with a memory and without, by the images own[0] .. own[1] - 1.

    The noise of a window follows from its scores, so that it is the same whoever draws it.
    """
    turn = itertools.count()
    module._draw = lambda scores, _: torch.sin(100 * scores + next(turn))
    results = []
    for settings in SETTINGS:
        for memory in (None, DetectionMemory(1)):
            for seed in range(2):
                batch = images_of(minibatch(seed), *own)
                results.append(
                    gradient_of(batch, group=group, memory=memory, **REINFORCE, **settings)
                )
    return results


def of_this_rank(bounds):
    group, rank = torch.distributed.group.WORLD, torch.distributed.get_rank()
    return with_noise_of_windows(bounds[rank : rank + 2], group)


@pytest.mark.parametrize("bounds", [(0, 4, 8), (0, 0, 5, 8)], ids=["2 ranks", "3 ranks"])
def test_processes_and_memory_have_the_gradient_of_one_process_with_all_images(bounds, monkeypatch):
    monkeypatch.setattr(module, "_draw", module._draw)  # put back afterwards
    # Of three ranks one has no window.
    ranks = run_ranks(of_this_rank, len(bounds) - 1, bounds)
    for i, (loss, gradient, ap) in enumerate(with_noise_of_windows()):
        assert gradient.abs().sum() > 0
        joined = torch.cat([rank[i][1] for rank in ranks])
        torch.testing.assert_close(joined, gradient, atol=1e-9, rtol=1e-9, msg=str(i))
        for own_loss, _, own_ap in (rank[i] for rank in ranks):
            assert own_loss == pytest.approx(loss, abs=1e-9)
            torch.testing.assert_close(own_ap, ap, equal_nan=True)


def noise_of_this_rank():
    torch.manual_seed(0)
    generator = module._generator(torch.device("cpu"), torch.distributed.group.WORLD)
    return module._draw(torch.zeros(1000, 1), generator)[:, 0]


def test_processes_of_the_same_seed_draw_other_noise():
    noises = torch.stack(run_ranks(noise_of_this_rank, 2))
    assert abs(torch.corrcoef(noises)[0, 1]) < 0.2
    torch.manual_seed(0)
    generator = module._generator(torch.device("cpu"), None)
    alone = module._draw(torch.zeros(1000, 1), generator)
    assert torch.equal(noises[0], alone[:, 0])


def test_samples_are_not_remembered():
    memory, expected = DetectionMemory(3), DetectionMemory(3)
    for seed in range(2):
        gradient_of(minibatch(seed), memory=memory, **REINFORCE)
        # The same detections: what NMS keeps of scores without noise.
        gradient_of(minibatch(seed), memory=expected, transitivity="none")
    states = [x.state_dict()["minibatches"] for x in (memory, expected)]
    assert len(states[0]) == 2
    for own, other in zip(*states, strict=True):
        for x, y in zip(own, other, strict=True):
            assert x == y if not isinstance(x, torch.Tensor) else torch.equal(x, y)


def test_what_is_remembered_takes_part_without_noise():
    batch, memory = minibatch(1), DetectionMemory(1)
    gradient_of(minibatch(0), memory=memory, **REINFORCE)
    torch.manual_seed(0)
    _, gradient, _ = gradient_of(batch, memory=memory, **REINFORCE)
    torch.manual_seed(0)
    _, alone, _ = gradient_of(batch, **REINFORCE)
    assert not torch.allclose(gradient, 2 * alone)
    # Class 3 has its one object in image 7 of both minibatches.
    assert gradient[:, 3].abs().max() > 0
