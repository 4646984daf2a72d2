# SPDX-License-Identifier: Apache-2.0
"""The losses of one decoder layer against their slow references."""

import numpy as np
import pytest
import torch
from maploss.layers import MAPLoss, MAPLossSettings, ParameterizedAPLoss
from maploss.modeling.deformable_transformer import QueryOutputs
from maploss.modeling.query_losses import MAPQueryLoss, MatchedQueryLoss
from maploss.modeling.query_matching import QueryMatcher, QueryTargets, label_queries
from maploss.modeling.ranking_loss import FOCAL_LOSSES, RANKING_LOSSES, RankingLoss

from tests.modeling.queries import (
    NUM_CLASSES,
    NUM_QUERIES,
    SIZE,
    WEIGHTS,
    giou,
    make_case,
    make_objects,
    pixel_corners,
    positives,
)
from tests.reference import map_loss as slow_map
from tests.reference import ranking_losses as slow
from tests.reference.parameterized_ap_loss import whole_matrix_loss

pytest.importorskip("transformers", minversion="5.8")
pytestmark = pytest.mark.usefixtures("storage")
ALL_LOSSES = (*RANKING_LOSSES, *FOCAL_LOSSES)
NMS_OFF = {"nms_thresh": 1.0, "iou_threshs": "coco"}


def matched_loss(name, l1_weight=0.0, giou_weight=1.0, **kwargs):
    ranking_loss = RankingLoss(name, box_weight=giou_weight, **kwargs)
    return MatchedQueryLoss(ranking_loss, QueryMatcher(*WEIGHTS), l1_weight=l1_weight)


def map_query_loss(**settings):
    settings = {"box_gradient": "error_driven"} | settings
    matcher = QueryMatcher(*WEIGHTS) if settings["box_gradient"] == "none" else None
    return MAPQueryLoss(MAPLoss(MAPLossSettings(**NMS_OFF | settings)), matcher)


def as_list(outputs, targets):
    """Scores of all queries x classes, where positives and negatives are in them, and overlaps."""
    pairs = positives(outputs, targets)
    found = {}
    for i, q, g in pairs:
        place = (i * outputs.scores.shape[1] + q) * NUM_CLASSES
        place += int(targets.objects[i].gt_classes[g])
        target = targets.objects[i].gt_boxes.tensor[g]
        found[place] = giou(pixel_corners(outputs.boxes[i, q]), target)
    scores = outputs.scores.detach().flatten().numpy()
    pos = sorted(found)
    neg = [j for j in range(len(scores)) if j not in found]
    return (
        scores,
        pos,
        neg,
        torch.stack([found[j][0] for j in pos]),
        [found[j][1].item() for j in pos],
    )


@pytest.mark.parametrize("counts", [(3, 2), (7, 4), (0, 1)])
def test_the_matching_is_the_best_of_all(counts):
    for seed in range(5):
        outputs, targets = make_case(counts, seed=seed)
        matches = QueryMatcher(*WEIGHTS)(outputs, targets)
        firsts = [0, counts[0]]
        expected = [(i * NUM_QUERIES + q, firsts[i] + g) for i, q, g in positives(outputs, targets)]
        assert sorted(zip(*(x.tolist() for x in matches), strict=True)) == expected


@pytest.mark.parametrize("name", ["ap", "alrp", "rank_sort", "parameterized_ap"])
@pytest.mark.parametrize("counts", [(3, 2), (0, 1), (7, 2)])
def test_scores_get_the_gradient_of_the_losss_reference(name, counts):
    outputs, targets = make_case(counts)
    scores, pos, neg, gious, ious = as_list(outputs, targets)
    quality = (gious.detach() + 1) / 2
    if name == "ap":
        value, expected = slow.ap_loss(scores, pos, neg, 1.0)
    elif name == "alrp":
        value, _, expected, _ = slow.alrp_loss(scores, pos, neg, quality.numpy(), 1.0)
    elif name == "rank_sort":
        value, expected = slow.rank_sort_loss(scores, pos, neg, ious, 0.5)
    else:
        leaf = torch.tensor(scores, requires_grad=True)
        labels = torch.zeros(len(scores), dtype=torch.int64)
        labels[pos] = 1
        loss = whole_matrix_loss(leaf, labels, quality, None, "linear")
        value, expected = float(loss.detach()), torch.autograd.grad(loss, leaf)[0].numpy()
    losses = matched_loss(name).layer_losses(outputs, targets, is_last=True)
    loss = losses[f"loss_{name}"]
    (gradient,) = torch.autograd.grad(loss, outputs.scores)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient.flatten().numpy(), expected, atol=1e-6)
    assert loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_parameterized_ap_moves_boxes_by_the_derivative_of_its_formula(scale):
    outputs, targets = make_case()
    scores, pos, _, gious, _ = as_list(outputs, targets)
    labels = torch.zeros(len(scores), dtype=torch.int64)
    labels[pos] = 1
    whole = whole_matrix_loss(torch.tensor(scores), labels, (gious + 1) / 2, None, "linear")
    (expected,) = torch.autograd.grad(whole, outputs.boxes)
    loss = matched_loss(
        "parameterized_ap", parameterized_ap=ParameterizedAPLoss(gradient_scale=scale)
    )
    losses = loss.layer_losses(outputs, targets, is_last=True)
    (gradient,) = torch.autograd.grad(losses["loss_parameterized_ap"], outputs.boxes)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradient, scale * expected, rtol=1e-5, atol=1e-7)


def arrays_of(outputs, targets):
    """The input of the slow mAP loss."""
    objects = [*targets.objects, *targets.ignored]
    num_images, num_queries = outputs.scores.shape[:2]
    counts = torch.tensor([len(x) for x in objects])
    images = torch.arange(num_images)
    is_ignored = torch.arange(len(objects)) >= num_images
    return {
        "scores": outputs.scores.detach().flatten(0, 1),
        "boxes": pixel_corners(outputs.boxes.detach()).flatten(0, 1),
        "image_ids": images.repeat_interleave(num_queries),
        "gt_boxes": torch.cat([x.gt_boxes.tensor for x in objects]),
        "gt_classes": torch.cat([x.gt_classes for x in objects]),
        "gt_image_ids": images.repeat(2).repeat_interleave(counts),
        "gt_difficult": is_ignored.repeat_interleave(counts),
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pooled", [0.0, 1.0])
def test_the_map_loss_is_that_of_all_queries_without_nms(seed, pooled):
    # Several queries over each object.
    outputs, targets = make_case((2, 1), num_queries=8, seed=seed)
    losses = map_query_loss(pooled=pooled).layer_losses(outputs, targets, is_last=True)
    arrays = arrays_of(outputs, targets)
    threshs = MAPLossSettings(iou_threshs="coco").iou_threshs
    expected = slow_map.map_loss(
        arrays, threshs, nms_thresh=1.0, pooled=pooled, box_gradient="error_driven"
    )
    assert losses["loss_map"].item() == pytest.approx(expected.loss, abs=1e-6)
    (gradient,) = torch.autograd.grad(losses["loss_map"], outputs.scores, retain_graph=True)
    assert np.abs(expected.gradient).max() > 0.001
    np.testing.assert_allclose(gradient.flatten(0, 1).numpy(), expected.gradient, atol=1e-6)
    # Boxes: 1 - GIoU with the object, weighted.
    total = 0.0
    for r, c in zip(*np.nonzero(expected.by_overlap), strict=True):
        best = slow_map.best_objects(
            arrays["boxes"].numpy(), c, {k: v.numpy() for k, v in arrays.items()}
        )
        target = arrays["gt_boxes"][best[r][0]]
        box = pixel_corners(outputs.boxes.flatten(0, 1)[r])
        total = total + float(expected.by_overlap[r, c]) * (1 - giou(box, target)[0])
    torch.testing.assert_close(losses["loss_map_box"], total, rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(x, outputs.boxes)[0] for x in (losses["loss_map_box"], total)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_second_query_of_an_object_is_pushed_down_by_the_map_loss_with_nms_off():
    target = make_objects(1)
    target.gt_classes[:] = 0
    x1, y1, x2, y2 = target.gt_boxes.tensor[0]
    center = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    boxes = (center / torch.tensor([SIZE[1], SIZE[0]] * 2)).expand(1, 2, 4).clone()
    scores = torch.tensor([[[1.0], [0.8]]], dtype=torch.float64, requires_grad=True)
    outputs = QueryOutputs(scores, boxes.requires_grad_())
    losses = map_query_loss().layer_losses(outputs, QueryTargets.of([target], False), True)
    losses["loss_map"].backward()
    first, second = scores.grad.flatten().tolist()
    assert first < 0 < second


def test_the_own_loss_is_that_of_transformers():
    from transformers import DeformableDetrConfig
    from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

    cases = [make_case(seed=seed) for seed in range(2)]
    targets = cases[0][1]
    layers = [outputs for outputs, _ in cases]
    backbone = {"model_type": "resnet", "out_features": ["stage1"]}
    weights = {"class_cost": 2, "bbox_cost": 5, "giou_cost": 2}
    config = DeformableDetrConfig(
        backbone_config=backbone,
        auxiliary_loss=True,
        decoder_layers=2,
        num_labels=NUM_CLASSES,
        **weights,
    )
    labels = [
        {"class_labels": x.gt_classes, "boxes": boxes.float()}
        for x, boxes in zip(targets.objects, targets.relative_boxes, strict=True)
    ]
    stacked = [torch.stack([x[j].float() for x in layers]) for j in range(2)]
    _, theirs, _ = DeformableDetrForObjectDetectionLoss(
        stacked[0][-1], labels, "cpu", stacked[1][-1], config, *stacked
    )
    ours = matched_loss("focal", l1_weight=5.0, giou_weight=2.0)(layers, targets)
    for suffix in ("", "_0"):
        assert ours[f"loss_focal{suffix}"].item() == pytest.approx(
            2 * float(theirs[f"loss_ce{suffix}"]), rel=1e-4
        )
        assert ours[f"loss_box_l1{suffix}"].item() == pytest.approx(
            5 * float(theirs[f"loss_bbox{suffix}"]), rel=1e-4
        )
        assert ours[f"loss_box_giou{suffix}"].item() == pytest.approx(
            2 * float(theirs[f"loss_giou{suffix}"]), rel=1e-4
        )


def all_losses():
    yield from (matched_loss(name, l1_weight=5.0) for name in ALL_LOSSES)
    yield from (map_query_loss(box_gradient=x) for x in ("error_driven", "none", "mee"))


@pytest.mark.parametrize("index", range(len(ALL_LOSSES) + 3))
@pytest.mark.parametrize(
    ("counts", "num_queries"), [((0, 0), 5), ((2, 1), 1), ((0, 3), 1), ((6, 9), 4)]
)
def test_no_object_one_query_and_more_objects_than_queries_have_finite_gradients(
    index, counts, num_queries
):
    loss = list(all_losses())[index]
    outputs, targets = make_case(counts, num_queries=num_queries)
    losses = loss([outputs], targets)
    sum(losses.values()).backward()
    for value in outputs:
        assert torch.isfinite(value.grad).all()
    assert all(torch.isfinite(x) for x in losses.values())
    if not any(counts):
        # Only what is no ranking has something to lower: all scores.
        is_focal = getattr(loss, "ranking_loss", None) and loss.ranking_loss.name in FOCAL_LOSSES
        assert bool((outputs.scores.grad != 0).any()) == bool(is_focal)
        assert not outputs.boxes.grad.any()
    elif num_queries == 4:
        assert outputs.boxes.grad.any()
        assert outputs.scores.grad.any()


def test_queries_over_what_the_evaluation_ignores_are_ignored():
    for field in ("gt_difficult", "gt_is_crowd"):
        outputs, targets = make_case((2, 2), **{field: [0, 1]})
        assert [len(x) for x in (*targets.objects, *targets.ignored)] == [1, 1, 1, 1]
        matches = QueryMatcher(*WEIGHTS)(outputs, targets)
        labels = label_queries(outputs, matches, targets).view(2, NUM_QUERIES)
        for i in range(2):
            # Queries 1 and 3 lie over the second object.
            assert labels[i, 1] == labels[i, 3] == -1
            assert int((labels[i] == targets.objects[i].gt_classes[0]).sum()) == 1
        # The matched object is one even so.
        same = QueryTargets(targets.objects, targets.objects, targets.scales)
        matched = label_queries(outputs, matches, same)[matches.queries]
        assert (matched >= 0).all()


@pytest.mark.parametrize("loss", ["ap", "map"])
@pytest.mark.parametrize("part", ["scores", "boxes"])
def test_what_is_not_finite_names_the_decoder_layer(loss, part):
    loss = map_query_loss() if loss == "map" else matched_loss(loss)
    outputs, targets = make_case()
    with torch.no_grad():
        getattr(outputs, part)[1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match=f"decoder layer 1: {part} of 1 of 10 queries"):
        loss([make_case()[0], outputs], targets)


def test_nms_in_the_loss_is_refused():
    with pytest.raises(ValueError, match=r"nms_thresh: expected 1, NMS off, for queries, got 0\.5"):
        map_query_loss(nms_thresh=0.5)


@pytest.mark.parametrize("box_gradient", ["none", "error_driven"])
def test_boxes_have_either_a_matcher_or_a_gradient_of_their_own(box_gradient):
    matcher = QueryMatcher() if box_gradient != "none" else None
    with pytest.raises(ValueError, match="matcher: expected one with box_gradient 'none' and only"):
        MAPQueryLoss(MAPLoss(MAPLossSettings(**NMS_OFF, box_gradient=box_gradient)), matcher)
