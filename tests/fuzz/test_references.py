# SPDX-License-Identifier: Apache-2.0
"""The layers of the mAP loss against the slow versions in tests/reference."""

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from hypothesis import given
from hypothesis import strategies as st
from maploss.layers import (
    MAPLossSettings,
    ap_steps,
    average_precision,
    dcg,
    dcg_steps,
    error_driven_gradient,
    exact_steps,
    map_loss,
    match_detections,
    nms_ap_steps,
    nms_record,
    pseudo_gradient,
)
from torchvision.ops import nms

from tests import strategies as draw
from tests.reference import ap_after_nms as reference
from tests.reference import error_driven_gradient as slow
from tests.reference.map_loss import map_loss as slow_map_loss
from tests.reference.voc_ap import voc_ap
from tests.scenes import as_steps, differing, oracle_steps

NMS_THRESHES = st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.0, 1.0])
ESTIMATORS = st.sampled_from(["mee", "sde"])
# As float32 what they are as float64, so that both judge an overlap alike.
MATCH_THRESHES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


def by_score(scores) -> list[int]:
    return np.argsort(-scores.numpy(), kind="stable").tolist()


@given(draw.detections(), draw.AP_TYPES)
def test_ap_is_the_mean_over_recall_levels(found, ap_type):
    scores, matched_gt, num_gt = found
    expected = reference.average_precision(by_score(scores), matched_gt.tolist(), num_gt, ap_type)
    assert float(average_precision(*found, ap_type)) == pytest.approx(expected, abs=1e-12)


@given(draw.minibatches(), draw.AP_TYPES, MATCH_THRESHES)
def test_matching_and_ap_are_those_of_the_development_kit(batch, ap_type, thresh):
    gt = [batch[key] for key in ("gt_boxes", "gt_image_ids", "gt_difficult")]
    matched = match_detections(batch["boxes"], batch["image_ids"], *gt, thresh)
    num_gt = int((~batch["gt_difficult"]).sum())
    scores = batch["scores"][:, 0]
    # The kit's corners are pixels of the box; thresholds of 0 and empty boxes leave it behind.
    inclusive, inclusive_gt = (
        (batch[key] - torch.tensor([0, 0, 1, 1])).tolist() for key in ("boxes", "gt_boxes")
    )
    detections = list(zip(batch["image_ids"].tolist(), scores.tolist(), inclusive, strict=True))
    objects: dict = {}
    for image, box, hard in zip(batch["gt_image_ids"].tolist(), inclusive_gt, gt[2], strict=True):
        objects.setdefault(image, []).append((box, bool(hard)))
    expected = voc_ap(detections, objects, ap_type, thresh)
    found = float(average_precision(scores, matched, num_gt, ap_type))
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(draw.minibatches(), MATCH_THRESHES, draw.DTYPES)
def test_windows_are_matched_as_by_a_loop_over_the_objects(batch, thresh, dtype):
    boxes, gt_boxes = (batch[key].to(dtype) for key in ("boxes", "gt_boxes"))
    gt = [gt_boxes, batch["gt_image_ids"], batch["gt_difficult"]]
    expected = []
    for box, image in zip(boxes.numpy(), batch["image_ids"], strict=True):
        overlaps = [
            reference.iou(box, other) if own == image else -1.0
            for other, own in zip(gt_boxes.numpy(), gt[1], strict=True)
        ]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] <= thresh:
            expected.append(-1)
        else:
            expected.append(-2 if gt[2][best] else best)
    assert match_detections(boxes, batch["image_ids"], *gt, thresh).tolist() == expected


@given(st.data(), draw.boxes(is_mixed=True), NMS_THRESHES, draw.DTYPES)
def test_nms_of_any_boxes_is_torchvisions_image_by_image(data, boxes, thresh, dtype):
    count = len(boxes)
    scores = data.draw(draw.scores(count, dtype))
    ids = data.draw(st.lists(st.sampled_from([-1, 5, 2**40]), min_size=count, max_size=count))
    ids = torch.tensor(ids, dtype=torch.int64)
    expected = torch.zeros(count, dtype=torch.bool)
    for image in ids.unique():
        inds = (ids == image).nonzero().squeeze(1)
        expected[inds[nms(boxes[inds], scores[inds].float(), thresh)]] = True
    record = nms_record(boxes, scores, ids, thresh)
    assert torch.equal(record.is_kept, expected)
    assert torch.equal(record.rank[by_score(scores)], torch.arange(count))


@given(draw.minibatches(), NMS_THRESHES)
def test_nms_is_that_of_detectron2_and_suppressors_are_the_best_that_overlap(batch, thresh):
    boxes, scores = batch["boxes"].float(), batch["scores"][:, 0]
    # batched_nms moves the boxes of an image by a multiple of its id: small ids and sixteenths of
    # pixels, which that does not round.
    boxes = (boxes - boxes.amin() if len(boxes) else boxes).mul(16).round().div(16)
    ids = batch["image_ids"].unique(return_inverse=True)[1]
    record = nms_record(boxes, scores, ids, thresh)
    is_kept = torch.zeros(len(scores), dtype=torch.bool)
    is_kept[batched_nms(boxes, scores.float(), ids, thresh)] = True
    assert torch.equal(record.is_kept, is_kept)
    overlaps = reference.overlap_masks(boxes.numpy(), ids.numpy(), thresh)
    kept = reference.greedy_nms(by_score(scores), overlaps)
    for i, suppressor in enumerate(record.suppressor.tolist()):
        assert suppressor == (-1 if i in kept else next(k for k in kept if overlaps[i] >> k & 1))


@given(draw.detections(9), draw.AP_TYPES)
def test_steps_of_ap_are_those_found_by_trying_every_place(found, ap_type):
    scores, matched_gt, num_gt = found

    def f(order: list[int]) -> float:
        return reference.average_precision(order, matched_gt.tolist(), num_gt, ap_type)

    def same_f(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(f(by_score(x)), dtype=torch.float64)

    expected = as_steps(*reference.nearest_steps(f, scores.numpy()))
    assert not differing(ap_steps(scores, matched_gt, num_gt, ap_type), expected).any()
    assert not differing(exact_steps(same_f, scores), expected).any()


@given(draw.scenes(), draw.AP_TYPES)
def test_exact_steps_through_nms_are_those_of_running_it_anew(scene, ap_type):
    steps = nms_ap_steps(*scene, ap_type=ap_type, transitivity="exact")
    expected = oracle_steps(scene, ap_type)
    assert not differing(steps, expected).any()
    assert float(steps.value) == pytest.approx(float(expected.value), abs=1e-12)


@given(draw.scenes(), draw.AP_TYPES)
def test_without_transitivity_steps_are_those_of_the_kept_list(scene, ap_type):
    kept = nms_record(scene.boxes, scene.scores, scene.image_ids, 0.3).is_kept.nonzero().squeeze(1)
    steps = nms_ap_steps(*scene, ap_type=ap_type, transitivity="none")
    alone = ap_steps(scene.scores[kept], scene.matched_gt[kept], scene.num_gt, ap_type)
    for name in ("up_at", "up_value", "down_at", "down_value"):
        mine, expected = getattr(steps, name), torch.full_like(scene.scores, float("nan"))
        expected[kept] = getattr(alone, name)
        torch.testing.assert_close(mine, expected, equal_nan=True)


@given(draw.scenes(), ESTIMATORS, draw.MARGINS, st.booleans())
def test_pseudo_gradients_are_those_of_the_definition(scene, estimator, min_delta, is_paired):
    matched_gt = scene.matched_gt.tolist()
    value, steps = reference.nearest_steps(
        lambda order: reference.average_precision(order, matched_gt, scene.num_gt, "area"),
        scene.scores.numpy(),
    )
    expected = slow.pseudo_gradient(
        value, steps, scene.scores.numpy(), estimator, min_delta, is_paired
    )
    pairing = "paired" if is_paired else "none"
    found = pseudo_gradient(as_steps(value, steps), scene.scores, estimator, min_delta, pairing)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(
    st.data(),
    draw.detections(),
    draw.MARGINS,
    st.sampled_from(["label_aware", "object_aware", "none"]),
)
def test_gradients_of_pairs_are_those_of_a_double_loop(data, found, margin, transitivity):
    scores, matched_gt, num_gt = found
    is_kept = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    is_kept = torch.tensor(is_kept, dtype=torch.bool)
    gradient = error_driven_gradient(*found, is_kept, margin=margin, transitivity=transitivity)
    arrays = (scores.numpy(), matched_gt.numpy(), num_gt, is_kept.numpy())
    expected = slow.error_driven_gradient(*arrays, margin, transitivity)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(
    draw.minibatches(max_windows=12),
    NMS_THRESHES,
    st.sets(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=1).map(sorted),
    st.sampled_from(
        [
            ("error_driven", "label_aware"),
            ("error_driven", "object_aware"),
            ("mee", "exact"),
            ("sde", "exact"),
        ]
    ),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_loss_its_aps_and_its_gradient_are_those_of_the_slow_parts(
    batch, nms_thresh, iou_threshs, choice, pooled
):
    gradient, transitivity = choice
    scores = batch["scores"].clone().requires_grad_()
    settings = {
        "nms_thresh": nms_thresh,
        "gradient": gradient,
        "transitivity": transitivity,
        "pooled": pooled,
    }
    loss, stats = map_loss(
        **{**batch, "scores": scores},
        settings=MAPLossSettings(iou_threshs=tuple(iou_threshs), **settings),
    )
    loss.backward()
    expected = slow_map_loss(batch, iou_threshs, **settings)
    assert loss.item() == pytest.approx(expected.loss, abs=1e-12)
    np.testing.assert_allclose(stats.ap_per_class.numpy(), expected.ap.mean(0), atol=1e-12)
    np.testing.assert_allclose(scores.grad.numpy(), expected.gradient, rtol=1e-9, atol=1e-12)


@given(st.data(), st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_steps_of_dcg_are_those_found_by_trying_every_place(data, relevance):
    scores = data.draw(draw.scores(len(relevance)))
    relevance = torch.tensor(relevance, dtype=torch.float64)
    expected = exact_steps(lambda x: dcg(x, relevance), scores)
    assert not differing(dcg_steps(scores, relevance), expected).any()
