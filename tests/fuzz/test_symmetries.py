# SPDX-License-Identifier: Apache-2.0
"""What must not change, or how it must, when the input of the mAP loss is given in another way."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maploss.layers import (
    MAPLossSettings,
    average_precision,
    map_loss,
    nms_ap_steps,
    nms_record,
    pseudo_gradient,
)

from tests import strategies as draw

SETTINGS = draw.settings_of_map_loss()
WINDOWS = ("scores", "boxes", "image_ids")
OBJECTS = ("gt_boxes", "gt_classes", "gt_image_ids", "gt_difficult")


def loss_and_gradient(batch: dict, **settings):
    scores = batch["scores"].clone().requires_grad_()
    loss, stats = map_loss(
        **{**batch, "scores": scores}, settings=MAPLossSettings(**{"pooled": 0.0} | settings)
    )
    loss.backward()
    return loss.detach(), scores.grad, stats


def reordered(batch: dict, windows=slice(None), objects=slice(None)) -> dict:
    return {
        **batch,
        **{key: batch[key][windows] for key in WINDOWS},
        **{key: batch[key][objects] for key in OBJECTS},
    }


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


@given(draw.minibatches(has_ties=False), SETTINGS, st.randoms())
def test_the_order_of_windows_does_not_matter(batch, settings, random):
    order = list(range(len(batch["boxes"])))
    random.shuffle(order)
    loss, gradient, stats = loss_and_gradient(batch, **settings)
    other_loss, other, other_stats = loss_and_gradient(reordered(batch, order), **settings)
    assert_close(other_loss, loss)
    assert_close(other, gradient[order])
    assert_close(other_stats[:7], stats[:7])  # not what was ranked


@given(draw.minibatches(has_ties=False), SETTINGS, st.permutations([5, -1, 2**33, 11]))
def test_names_and_order_of_images_do_not_matter(batch, settings, names):
    ids = torch.cat([batch["image_ids"], batch["gt_image_ids"]]).unique().tolist()
    new = dict(zip(ids, names, strict=False))
    renamed = dict(batch)
    for key in ("image_ids", "gt_image_ids"):
        renamed[key] = torch.tensor([new[i] for i in batch[key].tolist()], dtype=torch.int64)
    windows, objects = (renamed[key].argsort(stable=True) for key in ("image_ids", "gt_image_ids"))
    loss, gradient, stats = loss_and_gradient(batch, **settings)
    moved = loss_and_gradient(reordered(renamed, windows, objects), **settings)
    assert_close(moved[0], loss)
    assert_close(moved[1], gradient[windows])
    assert_close(moved[2][:7], stats[:7])  # not what was ranked


@given(draw.minibatches(), SETTINGS, st.randoms())
def test_the_order_of_classes_does_not_matter(batch, settings, random):
    order = list(range(batch["scores"].shape[1]))
    random.shuffle(order)
    classes = torch.tensor(order).argsort()[batch["gt_classes"]]
    other = {**batch, "scores": batch["scores"][:, order], "gt_classes": classes}
    loss, gradient, stats = loss_and_gradient(batch, **settings)
    other_loss, other_gradient, other_stats = loss_and_gradient(other, **settings)
    assert_close(other_loss, loss)
    assert_close(other_gradient, gradient[:, order])
    assert_close(other_stats.ap_per_class, stats.ap_per_class[order])


@given(
    draw.minibatches(),
    draw.minibatches(dtype=torch.float32),
    SETTINGS,
    draw.MARGINS,
    st.sampled_from([0.125, 2.0, 1024.0]),
    st.integers(-64, 64),
)
def test_shifts_and_scales_of_scores_scale_gradients_only(
    double, single, settings, width, scale, shift
):
    # Gradients of pairs have no unit; slopes are per unit of score.
    name, factor = (
        ("margin", 1) if settings["gradient"] == "error_driven" else ("min_delta", 1 / scale)
    )
    for batch in (double, single):
        loss, gradient, _ = loss_and_gradient(batch, **settings, **{name: width})
        moved = {**batch, "scores": batch["scores"] * scale + shift}
        other_loss, other, _ = loss_and_gradient(moved, **settings, **{name: width * scale})
        assert torch.equal(other_loss, loss)
        assert torch.equal(other, gradient * factor)


@given(draw.minibatches(), SETTINGS, draw.SCALES)
def test_the_unit_of_boxes_does_not_matter(batch, settings, scale):
    loss, gradient, _ = loss_and_gradient(batch, **settings)
    scaled = {**batch, "boxes": batch["boxes"] * scale, "gt_boxes": batch["gt_boxes"] * scale}
    other_loss, other, _ = loss_and_gradient(scaled, **settings)
    assert torch.equal(other_loss, loss)
    assert torch.equal(other, gradient)


@given(st.data(), draw.scenes(), draw.TRANSITIVITIES, draw.AP_TYPES)
def test_rising_maps_of_scores_leave_ap_nms_and_partners_of_steps(data, scene, level, ap_type):
    mapped = scene._replace(scores=data.draw(draw.rising_maps(scene.scores)))
    records, aps, steps = [], [], []
    for some in (scene, mapped):
        records.append(nms_record(some.boxes, some.scores, some.image_ids, 0.3))
        aps.append(average_precision(some.scores, some.matched_gt, some.num_gt, ap_type))
        steps.append(nms_ap_steps(*some, ap_type=ap_type, transitivity=level))
    for a, b in zip(*records, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(*aps)
    for place in ("value", "up_value", "up_partner", "down_value", "down_partner"):
        a, b = (getattr(s, place) for s in steps)
        assert torch.equal(a.nan_to_num(nan=-1.0), b.nan_to_num(nan=-1.0)), place
    for side in ("up", "down"):
        partner = getattr(steps[1], f"{side}_partner")
        at = getattr(steps[1], f"{side}_at")
        assert torch.equal(at[partner >= 0], mapped.scores[partner[partner >= 0]])


@given(draw.scenes(), draw.TRANSITIVITIES)
def test_ties_are_scores_a_little_apart_in_input_order(scene, level):
    apart = scene.scores - torch.arange(len(scene.scores)) * 2.0**-20
    tied, broken = (
        nms_ap_steps(*scene._replace(scores=scores), transitivity=level)
        for scores in (scene.scores, apart)
    )
    assert torch.equal(tied.value, broken.value)
    assert torch.equal(tied.up_partner, broken.up_partner)
    assert torch.equal(tied.down_partner, broken.down_partner)
    assert_close(tied.up_value, broken.up_value)
    assert_close(tied.down_value, broken.down_value)


@given(st.data(), draw.DTYPES, SETTINGS, st.booleans(), st.booleans())
def test_map_is_in_0_to_1_and_gradients_are_finite(data, dtype, settings, log_space, is_mixed):
    batch = data.draw(draw.minibatches(dtype))
    num_windows, num_classes = batch["scores"].shape
    if is_mixed:
        batch["boxes"] = data.draw(draw.boxes(num_windows, num_windows, is_mixed=True))
    extreme = data.draw(draw.extreme_scores(num_windows * num_classes, dtype))
    for scores in (batch["scores"], extreme.reshape(num_windows, num_classes)):
        loss, gradient, stats = loss_and_gradient(
            {**batch, "scores": scores}, **settings, log_space=log_space
        )
        assert 0 <= float(stats.map) <= 1
        is_present = ~stats.ap_per_class.isnan()
        assert ((stats.ap_per_class >= 0) & (stats.ap_per_class <= 1))[is_present].all()
        expected = -math.log((float(stats.map) + 1) / 2) if log_space else 1 - float(stats.map)
        assert float(loss) == pytest.approx(expected, abs=1e-6)
        assert loss.dtype == gradient.dtype == dtype
        assert gradient.isfinite().all()


@given(draw.minibatches(), SETTINGS)
def test_classes_without_an_object_that_counts_have_no_gradient_and_no_ap(batch, settings):
    present = set(batch["gt_classes"][~batch["gt_difficult"]].tolist())
    _, gradient, stats = loss_and_gradient(batch, **settings)
    for c in range(batch["scores"].shape[1]):
        assert bool(stats.ap_per_class[c].isnan()) == (c not in present)
        if c not in present:
            assert torch.equal(gradient[:, c], torch.zeros(len(gradient), dtype=torch.float64))


@given(draw.minibatches(), SETTINGS)
def test_pairs_and_paired_slopes_sum_to_zero_in_each_class(batch, settings):
    if settings["gradient"] != "error_driven":
        settings = {**settings, "pairing": "paired"}
    _, gradient, stats = loss_and_gradient(batch, **settings)
    sums = gradient.sum(0)
    assert_close(sums, torch.zeros_like(sums))
    # What goes up is told apart from what goes down.
    assert_close(stats.up_per_class, gradient.clamp(max=0).sum(0).neg())
    assert_close(stats.down_per_class, gradient.clamp(min=0).sum(0))
    assert float(stats.nonzero_share) == pytest.approx(
        float((gradient != 0).double().mean()) if gradient.numel() else 0
    )


@given(draw.minibatches(), SETTINGS, st.sampled_from([0.01, 0.1]))
def test_clipping_is_of_each_number_of_the_gradient(batch, settings, grad_clip):
    loss, gradient, _ = loss_and_gradient(batch, **settings)
    same_loss, clipped, stats = loss_and_gradient(batch, **settings, grad_clip=grad_clip)
    assert torch.equal(same_loss, loss)
    assert torch.equal(clipped, gradient.clamp(-grad_clip, grad_clip))
    count = int((gradient.abs() > grad_clip).sum())
    assert float(stats.clipped_share) == pytest.approx(count / max(gradient.numel(), 1))


@given(st.data(), draw.minibatches(), SETTINGS)
def test_false_positives_below_all_others_change_no_ap(data, batch, settings):
    more = data.draw(draw.boxes(1, 4)).double()
    low = batch["scores"].min() if batch["scores"].numel() else torch.tensor(0.0)
    extended = {
        **batch,
        "boxes": torch.cat([batch["boxes"], more]),
        "image_ids": torch.cat([batch["image_ids"], torch.full((len(more),), 99)]),
        "scores": torch.cat(
            [batch["scores"], (low - 5).expand(len(more), batch["scores"].shape[1])]
        ),
    }
    assert_close(
        loss_and_gradient(extended, **settings)[2].ap_per_class,
        loss_and_gradient(batch, **settings)[2].ap_per_class,
    )


@given(draw.scenes(), st.sampled_from(["mee", "sde"]), draw.MARGINS)
def test_slopes_are_not_steeper_than_min_delta_allows(scene, estimator, min_delta):
    steps = nms_ap_steps(*scene)
    gradient = pseudo_gradient(steps, scene.scores, estimator, min_delta)
    if estimator == "sde":
        assert (gradient.abs() <= 1 / min_delta).all()
    has_step = ~(steps.up_at.isnan() & steps.down_at.isnan())
    assert not gradient[~has_step].any()
