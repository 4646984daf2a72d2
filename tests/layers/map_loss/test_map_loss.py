# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest
import torch
from maploss.layers import (
    MAPLoss,
    MAPLossSettings,
    average_precision,
    error_driven_gradient,
    map_loss,
    match_detections,
    nms_ap_steps,
    nms_record,
    pseudo_gradient,
)

LEVELS = ["exact", "label_aware", "paper", "none"]
STEPS = {"gradient": "mee", "transitivity": "exact"}


def random_batch(seed: int = 0, num_classes: int = 4, dtype=torch.float32) -> dict:
    """Three images of 40 windows; the last class has no object, one object is difficult."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(9, 2, generator=generator) * 80
    gt_boxes = torch.cat([corner, corner + 12 + torch.rand(9, 2, generator=generator) * 20], 1)
    near = gt_boxes.repeat(9, 1)[:60] + torch.randn(60, 4, generator=generator) * 3
    corner = torch.rand(60, 2, generator=generator) * 80
    boxes = torch.cat([near, torch.cat([corner, corner + 20], 1)])
    return {
        "scores": torch.randn(120, num_classes, generator=generator, dtype=dtype),
        "boxes": boxes,
        "image_ids": torch.arange(120) % 3,
        "gt_boxes": gt_boxes,
        "gt_classes": torch.arange(9) % (num_classes - 1),
        "gt_image_ids": torch.arange(9) % 3,
        "gt_difficult": torch.arange(9) == 4,
    }


def loss_and_gradient(batch: dict, **settings):
    scores = batch["scores"].clone().requires_grad_()
    loss, stats = map_loss(
        **{**batch, "scores": scores}, settings=MAPLossSettings(**{"pooled": 0.0} | settings)
    )
    loss.backward()
    return loss.detach(), scores.grad, stats


def test_the_value_is_minus_log_of_map_after_nms_over_all_classes_and_0_at_1():
    batch = random_batch()
    loss, _, stats = loss_and_gradient(batch, eps=0.05)
    total = 0.0
    for c in range(3):
        mine = batch["gt_classes"] == c
        matched = match_detections(
            batch["boxes"],
            batch["image_ids"],
            batch["gt_boxes"][mine],
            batch["gt_image_ids"][mine],
            batch["gt_difficult"][mine],
        )
        scores = batch["scores"][:, c]
        kept = nms_record(batch["boxes"], scores, batch["image_ids"], 0.3).is_kept
        num_gt = int((mine & ~batch["gt_difficult"]).sum())
        ap = float(average_precision(scores[kept], matched[kept], num_gt))
        assert float(stats.ap_per_class[c]) == pytest.approx(ap, abs=1e-6)
        total += ap
    assert stats.ap_per_class[3].isnan()
    assert float(stats.map) == pytest.approx(total / 4, abs=1e-6)
    assert float(loss) == pytest.approx(math.log(1.05) - math.log(total / 4 + 0.05), abs=1e-5)


SETTINGS = [
    {},
    {"ap_type": "voc07"},
    {"ap_type": "coco101"},
    {"nms_thresh": 0.5},
    {"iou_threshs": (0.7,)},
    {"gradient": "sde"},
    {"gradient": "sde", "min_delta": 0.02},
    {"transitivity": "label_aware"},
    {"transitivity": "paper"},
    {"transitivity": "none"},
    {"pairing": "none"},
    {"eps": 0.3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_each_setting_reaches_the_layer_it_is_for(settings):
    batch = random_batch(dtype=torch.float64)
    _, gradient, _ = loss_and_gradient(batch, **{**STEPS, **settings})
    full = {
        "ap_type": "area",
        "nms_thresh": 0.3,
        "iou_threshs": (0.5,),
        **STEPS,
        "min_delta": 0.5,
        "pairing": "paired",
        "eps": 1.0,
        **settings,
    }
    expected, total = torch.zeros_like(gradient), 0.0
    for c in range(3):
        mine = batch["gt_classes"] == c
        columns = [batch[k][mine] for k in ("gt_boxes", "gt_image_ids", "gt_difficult")]
        windows = (batch["boxes"], batch["image_ids"])
        matched = match_detections(*windows, *columns, full["iou_threshs"][0])
        steps = nms_ap_steps(
            batch["scores"][:, c],
            *windows,
            matched,
            int((~columns[2]).sum()),
            **{k: full[k] for k in ("nms_thresh", "ap_type", "transitivity")},
        )
        how = (full[k] for k in ("gradient", "min_delta", "pairing"))
        ppd = pseudo_gradient(steps, batch["scores"][:, c], *how)
        expected[:, c] = -ppd
        total += float(steps.value) / 4
    torch.testing.assert_close(gradient, expected / (4 * (total + full["eps"])))
    if settings:
        assert not torch.allclose(gradient, loss_and_gradient(batch, **STEPS)[1])


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"transitivity": "none"},
        {"margin": 0.5},
        {"nms_thresh": 0.5},
        {"iou_threshs": (0.7,)},
    ],
    ids=str,
)
def test_pairs_are_those_of_the_windows_after_nms(changed):
    batch = random_batch(dtype=torch.float64)
    given = {"transitivity": "label_aware", "margin": 1.0, "nms_thresh": 0.3}
    given |= {"iou_threshs": (0.5,), **changed}
    _, gradient, stats = loss_and_gradient(batch, gradient="error_driven", **given, eps=0.01)
    mine = batch["gt_classes"] == 0
    windows = (batch["boxes"], batch["image_ids"])
    objects = [batch[k][mine] for k in ("gt_boxes", "gt_image_ids", "gt_difficult")]
    matched = match_detections(*windows, *objects, given["iou_threshs"][0])
    scores = batch["scores"][:, 0]
    kept = nms_record(batch["boxes"], scores, batch["image_ids"], given["nms_thresh"]).is_kept
    settings = {k: given[k] for k in ("margin", "transitivity")}
    expected = -error_driven_gradient(scores, matched, int((~objects[2]).sum()), kept, **settings)
    torch.testing.assert_close(gradient[:, 0], expected / (4 * (stats.map + 0.01)))
    assert gradient.any()
    assert gradient.sum(0).abs().max() < 1e-12
    if changed:
        default = loss_and_gradient(batch, gradient="error_driven", eps=0.01)[1]
        assert not torch.allclose(gradient, default)


def test_ap_type_changes_the_value_of_pairs_and_not_the_direction():
    batch = random_batch(dtype=torch.float64)
    area, voc07 = (
        loss_and_gradient(batch, ap_type=ap_type, log_space=False) for ap_type in ("area", "voc07")
    )
    assert float(area[0]) != float(voc07[0])
    assert torch.equal(area[1], voc07[1])


def test_pairs_know_two_levels_of_transitivity():
    with pytest.raises(ValueError, match=r"transitivity of gradient 'error_driven'.*got 'exact'"):
        MAPLossSettings(transitivity="exact")


def test_the_sums_of_the_gradient_are_told_for_each_class():
    batch = random_batch(dtype=torch.float64)
    _, gradient, stats = loss_and_gradient(batch, **STEPS, pairing="none", grad_clip=0.01)
    assert stats.clipped_share > 0
    torch.testing.assert_close(stats.up_per_class, (-gradient).clamp(min=0).sum(0))
    torch.testing.assert_close(stats.down_per_class, gradient.clamp(min=0).sum(0))
    assert (stats.up_per_class[:3] > 0).all()
    assert stats.up_per_class[3] == stats.down_per_class[3] == 0


@pytest.mark.parametrize(
    ("estimator", "transitivity"),
    [
        *itertools.product(["mee", "sde"], LEVELS),
        *itertools.product(["error_driven"], ["label_aware", "none"]),
    ],
)
def test_a_step_against_the_gradient_raises_map(estimator, transitivity):
    batch = random_batch(1, dtype=torch.float64)
    before = None
    for _ in range(40):
        _, gradient, stats = loss_and_gradient(
            batch, transitivity=transitivity, gradient=estimator, pairing="paired"
        )
        before = float(stats.map) if before is None else before
        batch["scores"] = batch["scores"] - 2.0 * gradient / gradient.abs().sum().clamp(min=1e-9)
    assert float(stats.map) > 1.3 * before


def test_the_paired_gradient_of_each_class_sums_to_zero():
    _, gradient, _ = loss_and_gradient(random_batch(dtype=torch.float64), **STEPS, pairing="paired")
    assert gradient.abs().sum() > 0.1
    assert gradient.sum(0).abs().max() < 1e-12


def test_classes_without_an_object_get_no_gradient():
    _, gradient, _ = loss_and_gradient(random_batch())
    assert not gradient[:, 3].any()
    assert gradient[:, :3].any()


def test_the_gradient_is_clipped_element_by_element_and_the_share_is_told():
    batch = random_batch()
    _, free, stats = loss_and_gradient(batch)
    assert float(stats.clipped_share) == 0
    assert float(stats.nonzero_share) == pytest.approx(float((free != 0).double().mean()))
    limit = float(free.abs().max()) / 3
    _, clipped, stats = loss_and_gradient(batch, grad_clip=limit)
    torch.testing.assert_close(clipped, free.clamp(-limit, limit))
    share = float((free.abs() > limit).double().mean())
    assert 0 < share == pytest.approx(float(stats.clipped_share))


def test_the_gradient_scales_with_the_incoming_one():
    batch = random_batch()
    _, gradient, _ = loss_and_gradient(batch, pooled=1.0)
    scores = batch["scores"].clone().requires_grad_()
    loss, _ = map_loss(**{**batch, "scores": scores})
    (3 * loss).backward()
    torch.testing.assert_close(scores.grad, 3 * gradient)


def test_the_gradient_is_minus_ppd_over_k_times_map_plus_eps():
    batch = random_batch(dtype=torch.float64)
    _, first, stats = loss_and_gradient(batch, eps=0.01)
    _, second, _ = loss_and_gradient(batch, eps=0.5)
    ratio = (float(stats.map) + 0.5) / (float(stats.map) + 0.01)
    torch.testing.assert_close(first, second * ratio)


def test_out_of_log_space_the_loss_is_one_minus_map_and_the_gradient_that_of_map():
    batch = random_batch(dtype=torch.float64)
    _, in_log, stats = loss_and_gradient(batch, eps=0.5)
    loss, gradient, _ = loss_and_gradient(batch, log_space=False)
    assert float(loss) == pytest.approx(1 - float(stats.map))
    torch.testing.assert_close(gradient, in_log * (float(stats.map) + 0.5))


def test_the_order_of_the_windows_does_not_matter():
    batch = random_batch(dtype=torch.float64)
    _, gradient, _ = loss_and_gradient(batch)
    mix = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    mixed = {**batch, **{k: batch[k][mix] for k in ("scores", "boxes", "image_ids")}}
    _, mixed_gradient, _ = loss_and_gradient(mixed)
    torch.testing.assert_close(mixed_gradient, gradient[mix])


def empty(batch: dict, names: str) -> dict:
    return {**batch, **{k: v[:0] for k, v in batch.items() if k.startswith(names)}}


def hard_batches() -> dict[str, dict]:
    batch = random_batch()
    windows = {k: batch[k] for k in ("scores", "boxes", "image_ids")}
    first = {k: v[:1] for k, v in windows.items()}
    identical = {**batch, "boxes": batch["boxes"][:1].repeat(120, 1)}
    far = {**batch, "boxes": batch["boxes"] + 1000}
    no_windows = {**batch, **{k: v[:0] for k, v in windows.items()}}
    return {
        "no object": empty(batch, "gt_"),
        "no window": no_windows,
        "neither": empty(no_windows, "gt_"),
        "one window": {**batch, **first},
        "no match": far,
        "identical windows": identical,
        "ties": {**batch, "scores": torch.zeros(120, 4)},
        "huge scores": {**batch, "scores": batch["scores"] * 1e30},
        "tiny scores": {**batch, "scores": batch["scores"] * 1e-38},
        "only difficult objects": {**batch, "gt_difficult": torch.ones(9)},
        "empty boxes": {**batch, "boxes": batch["boxes"] * 0},
    }


@pytest.mark.parametrize("name", hard_batches())
@pytest.mark.parametrize("transitivity", LEVELS)
@pytest.mark.parametrize("pairing", ["none", "paired"])
def test_loss_and_gradient_stay_finite(name, transitivity, pairing):
    batch = hard_batches()[name]
    estimators = [
        "mee",
        "sde",
        *(["error_driven"] if transitivity in ("label_aware", "none") else []),
    ]
    for estimator in estimators:
        pairings = {} if estimator == "error_driven" else {"pairing": pairing}
        loss, gradient, stats = loss_and_gradient(
            batch, transitivity=transitivity, gradient=estimator, **pairings
        )
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert stats.map.isfinite()
        if name in ("no object", "only difficult objects", "no match"):
            assert not gradient.any()
        # No slope is taken over less than rounding of the scores, nor over ties.
        assert name != "ties" or gradient.abs().max() < 100


@pytest.mark.parametrize("scale", [1e3, 1e10, 1e30])
def test_the_fourth_power_of_huge_scores_stays_finite(scale):
    batch = random_batch()
    scores = (batch.pop("scores") * scale).requires_grad_()
    losses, _ = MAPLoss(score_reg_weight=1e-5)(scores, **batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert scores.grad.isfinite().all()


def test_the_module_adds_the_fourth_power_of_the_scores():
    batch = random_batch()
    module = MAPLoss(score_reg_weight=1e-3)
    scores = batch.pop("scores").requires_grad_()
    losses, stats = module(scores, **batch)
    assert set(losses) == {"loss_map", "loss_score_reg"}
    assert float(losses["loss_score_reg"].detach()) == pytest.approx(
        1e-3 * float(scores.detach().pow(4).sum())
    )
    assert 0 < float(stats.map) < 1
    losses["loss_score_reg"].backward()
    torch.testing.assert_close(scores.grad, 4e-3 * scores.detach() ** 3)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_another_power_of_the_scores_can_be_asked_for(power):
    batch = random_batch()
    scores = batch.pop("scores")
    losses, _ = MAPLoss(score_reg_weight=1e-3, score_reg_power=power)(scores, **batch)
    expected = 1e-3 * float(scores.abs().pow(power).sum())
    assert float(losses["loss_score_reg"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"scores": torch.zeros(3, 4, 1)}, ValueError, r"scores.*\(R, K\).*\(3, 4, 1\)"),
        ({"boxes": torch.zeros(3, 4)}, ValueError, r"boxes.*\(120, 4\).*\(3, 4\)"),
        ({"image_ids": torch.zeros(120)}, TypeError, "image_ids.*int64.*float32"),
        ({"boxes": torch.full((120, 4), math.inf)}, FloatingPointError, "boxes: 480 of 480"),
        ({"gt_boxes": torch.full((9, 4), math.nan)}, FloatingPointError, "gt_boxes: 36 of 36"),
        ({"settings": {"eps": 0.1}}, TypeError, "settings: expected MAPLossSettings, got dict"),
        ({"gt_classes": torch.full((9,), 4)}, ValueError, r"gt_classes.*0 to 3.*\[4\]"),
        ({"gt_classes": torch.zeros(2).long()}, ValueError, r"gt_classes.*\(9,\).*\(2,\)"),
        ({"gt_difficult": torch.zeros(2)}, ValueError, r"gt_difficult.*\(9,\).*\(2,\)"),
        ({"scores": torch.full((120, 4), float("nan"))}, FloatingPointError, "480 of 480"),
    ],
)
def test_bad_input_is_named(change, error, says):
    with pytest.raises(error, match=says):
        map_loss(**{**random_batch(), **change})


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"score_reg_weight": -1.0}, "score_reg_weight.*-1"),
        ({"score_reg_power": 0.5}, "score_reg_power.*0.5"),
        ({"clip": 0.5}, "unexpected.*'clip'"),
    ],
)
def test_the_module_refuses_unknown_settings_when_it_is_built(setting, says):
    with pytest.raises((ValueError, TypeError), match=says):
        MAPLoss(**setting)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("transitivity", [*LEVELS, None])
def test_cuda_gives_what_the_cpu_gives(transitivity):
    batch = random_batch(dtype=torch.float64)
    settings = {"gradient": "mee", "transitivity": transitivity} if transitivity else {}
    loss, gradient, _ = loss_and_gradient(batch, **settings)
    on_cuda = {k: v.cuda() for k, v in batch.items()}
    cuda_loss, cuda_gradient, _ = loss_and_gradient(on_cuda, **settings)
    torch.testing.assert_close(cuda_loss.cpu(), loss)
    torch.testing.assert_close(cuda_gradient.cpu(), gradient)
