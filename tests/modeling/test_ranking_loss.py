# SPDX-License-Identifier: Apache-2.0
import functools

import pytest
import torch
from fvcore.nn import giou_loss
from maploss.layers import (
    alrp_loss,
    ap_loss,
    control_points,
    direct_ap_loss,
    focal_loss,
    parameterized_ap_loss,
    quality_focal_loss,
    rank_sort_loss,
    smooth_ap_loss,
    varifocal_loss,
)
from maploss.layers.box_iou import paired_iou
from maploss.layers.ranking_losses.parameterized_ap_loss import ParameterizedAPLoss
from maploss.modeling.ranking_loss import (
    FOCAL_LOSSES,
    OVERLAP_LOSSES,
    RANKING_LOSSES,
    RankingLoss,
    ranking_loss_from_config,
)

SCORE_LOSSES = {
    "ap": functools.partial(ap_loss, delta=0.7),
    "smooth_ap": functools.partial(smooth_ap_loss, temperature=0.3),
}


def direct(scores, labels):
    """Class by class: the list of `as_list` goes through the classes of each window."""
    each = [
        direct_ap_loss(scores[c::3], labels[c::3], epsilon=2.0)
        for c in range(3)
        if (labels[c::3] == 1).any()
    ]
    return sum(each) / len(each)


SCORE_LOSSES |= {"direct_ap": direct, "focal": focal_loss}
SORTING_LOSSES = {
    "rank_sort": functools.partial(rank_sort_loss, delta=0.7),
    "bucketed_rank_sort": functools.partial(rank_sort_loss, delta=0.7, bucketed=True),
}
QUALITY_LOSSES = {"quality_focal": quality_focal_loss, "varifocal": varifocal_loss}
ALL_LOSSES = (*RANKING_LOSSES, *FOCAL_LOSSES)
JOINT_LOSSES = {
    "parameterized_ap": parameterized_ap_loss,
    "alrp": functools.partial(alrp_loss, delta=0.7),
}


def make_case(num=12, num_classes=3, seed=0):
    """Scores, classes with background and ignored ones, boxes of the positives and objects."""
    torch.manual_seed(seed)
    scores = torch.randn(num, num_classes, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 3, 1, -1, 2, 3, 3, 1, 3, -1, 0, 3])[:num]
    num_positives = int(((classes >= 0) & (classes < num_classes)).sum())
    corners = 50 * torch.rand(2, num_positives, 2, dtype=torch.float64)
    sizes = 10 + 30 * torch.rand(2, num_positives, 2, dtype=torch.float64)
    boxes, gt_boxes = torch.cat([corners, corners + sizes], dim=2)
    return scores, classes, boxes.requires_grad_(), gt_boxes


def as_list(scores, classes):
    """The same as one list of D scores and labels, by loops."""
    flat, labels = [], []
    for row, own in zip(scores, classes.tolist(), strict=True):
        for k, score in enumerate(row):
            flat.append(score)
            labels.append(-1 if own < 0 else int(own == k))
    return torch.stack(flat), torch.tensor(labels)


def gradients(losses, *inputs):
    found = torch.autograd.grad(sum(losses), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


@pytest.mark.parametrize("name", JOINT_LOSSES)
def test_joint_losses_are_those_of_the_layers(name):
    scores, classes, boxes, gt_boxes = make_case()
    losses = RankingLoss(name, delta=0.7)(scores, classes, boxes, gt_boxes)
    assert list(losses) == [f"loss_{name}"]
    quality = 1 - giou_loss(boxes, gt_boxes) / 2
    expected = JOINT_LOSSES[name](*as_list(scores, classes), quality)
    torch.testing.assert_close(losses[f"loss_{name}"], expected)
    for got, want in zip(
        gradients(losses.values(), scores, boxes), gradients([expected], scores, boxes), strict=True
    ):
        torch.testing.assert_close(got, want)
        assert want.abs().max() > 0


@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_score_losses_go_with_the_mean_giou_loss(name):
    scores, classes, boxes, gt_boxes = make_case()
    loss = RankingLoss(name, delta=0.7, temperature=0.3, epsilon=2.0, box_weight=2.0)
    losses = loss(scores, classes, boxes, gt_boxes)
    torch.testing.assert_close(
        losses[f"loss_{name}"], SCORE_LOSSES[name](*as_list(scores, classes))
    )
    (got,) = gradients([losses[f"loss_{name}"]], scores)
    (want,) = gradients([SCORE_LOSSES[name](*as_list(scores, classes))], scores)
    torch.testing.assert_close(got, want)
    assert want.abs().max() > 0
    expected = 2 * giou_loss(boxes, gt_boxes, reduction="mean")
    torch.testing.assert_close(losses["loss_box_giou"], expected)


@pytest.mark.parametrize("name", SORTING_LOSSES)
def test_sorting_losses_go_with_a_weighted_and_balanced_giou_loss(name):
    scores, classes, boxes, gt_boxes = make_case()
    losses = RankingLoss(name, delta=0.7)(scores, classes, boxes, gt_boxes)
    flat, labels = as_list(scores, classes)
    expected = SORTING_LOSSES[name](flat, labels, paired_iou(boxes, gt_boxes))
    torch.testing.assert_close(losses[f"loss_{name}"], expected)
    # Balanced: both parts have the same value.
    torch.testing.assert_close(losses["loss_box_giou"], expected)
    weights = flat[labels == 1].sigmoid().detach()
    weighted = (weights * giou_loss(boxes, gt_boxes)).sum() / weights.sum()
    scale = (expected / weighted).item()
    torch.testing.assert_close(
        gradients([losses["loss_box_giou"]], boxes), gradients([scale * weighted], boxes)
    )


@pytest.mark.parametrize("name", QUALITY_LOSSES)
def test_quality_losses_take_the_iou_of_the_boxes_and_go_with_the_mean_giou_loss(name):
    scores, classes, boxes, gt_boxes = make_case()
    with torch.no_grad():
        boxes[0] = gt_boxes[0] + 1
    losses = RankingLoss(name, box_weight=2.0)(scores, classes, boxes, gt_boxes)
    quality = paired_iou(boxes.detach(), gt_boxes)
    assert quality[0] > 0.5
    expected = QUALITY_LOSSES[name](*as_list(scores, classes), quality)
    torch.testing.assert_close(losses[f"loss_{name}"], expected)
    (by_scores,) = gradients([losses[f"loss_{name}"]], scores)
    torch.testing.assert_close(by_scores, *gradients([expected], scores))
    # The boxes learn from their own loss only.
    assert not gradients([losses[f"loss_{name}"]], boxes)[0].any()
    torch.testing.assert_close(
        losses["loss_box_giou"], 2 * giou_loss(boxes, gt_boxes, reduction="mean")
    )


@pytest.mark.parametrize("name", OVERLAP_LOSSES)
def test_positives_at_an_overlap_are_those_whose_regressed_box_exceeds_it(name):
    scores, classes, boxes, gt_boxes = make_case()
    with torch.no_grad():
        # IoU .9, .5 and .4, about; the others hardly overlap.
        for row, width in enumerate((0.9, 0.5, 0.4)):
            boxes[row] = gt_boxes[row]
            boxes[row, 2] = boxes[row, 0] + width * (gt_boxes[row, 2] - gt_boxes[row, 0])
        boxes[1, 2] = (boxes[1, 0] + gt_boxes[1, 2]) / 2 + 0.1
    loss = RankingLoss(name, delta=0.7, temperature=0.3, iou_threshs=[0.45, 0.6])
    losses = loss(scores, classes, boxes, gt_boxes)
    assert (paired_iou(boxes.detach(), gt_boxes) > 0.45).tolist() == [True, True, *[False] * 3]
    flat, labels = as_list(scores, classes)
    places = (labels == 1).nonzero().squeeze(1)
    expected = []
    for num_right in (2, 1):
        own = labels.clone()
        own[places[num_right:]] = 0
        expected.append(SCORE_LOSSES[name](flat, own))
    torch.testing.assert_close(losses[f"loss_{name}"], sum(expected) / 2)
    (got,) = gradients([losses[f"loss_{name}"]], scores)
    torch.testing.assert_close(got, *gradients([sum(expected) / 2], scores))
    # All windows over objects still learn their boxes.
    torch.testing.assert_close(
        losses["loss_box_giou"], giou_loss(boxes, gt_boxes, reduction="mean")
    )


@pytest.mark.parametrize("name", sorted({*ALL_LOSSES} - {*OVERLAP_LOSSES}))
def test_overlaps_of_a_loss_that_takes_none_are_refused(tiny_cfg, name):
    tiny_cfg.MODEL.RANKING_LOSS.NAME = name
    ranking_loss_from_config(tiny_cfg, "BOX_HEAD")
    tiny_cfg.MODEL.RANKING_LOSS.IOU_THRESHS = "coco"
    with pytest.raises(ValueError, match=f"IOU_THRESHS: expected None with NAME {name!r} .*'coco'"):
        ranking_loss_from_config(tiny_cfg, "BOX_HEAD")


@pytest.mark.parametrize("value", ["voc", [], [0.5, 0.5], 0.5, [1.0]])
def test_overlaps_that_are_none_are_refused_with_the_name_of_the_key(tiny_cfg, value):
    tiny_cfg.MODEL.RANKING_LOSS.NAME = "ap"
    tiny_cfg.MODEL.RANKING_LOSS.IOU_THRESHS = value
    with pytest.raises((TypeError, ValueError), match=r"^MODEL.RANKING_LOSS.IOU_THRESHS: iou_thre"):
        ranking_loss_from_config(tiny_cfg, "BOX_HEAD")


def test_coco_is_ten_overlaps(tiny_cfg):
    tiny_cfg.MODEL.RANKING_LOSS.NAME = "smooth_ap"
    assert ranking_loss_from_config(tiny_cfg, "BOX_HEAD").iou_threshs is None
    tiny_cfg.merge_from_list(["MODEL.RANKING_LOSS.IOU_THRESHS", "coco"])
    threshs = ranking_loss_from_config(tiny_cfg, "BOX_HEAD").iou_threshs
    assert threshs == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize("name", FOCAL_LOSSES)
def test_without_objects_focal_losses_push_all_negatives_down(name):
    scores = torch.randn(3, 3, requires_grad=True)
    boxes = torch.zeros(0, 4, requires_grad=True)
    losses = RankingLoss(name)(scores, torch.tensor([3, 3, -1]), boxes, torch.zeros(0, 4))
    sum(losses.values()).backward()
    assert losses["loss_box_giou"] == 0
    assert (scores.grad[:2] > 0).all()
    assert not scores.grad[2].any()


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_probabilities_begin_at_a_hundredth_with_focal_losses_only(name):
    layer = torch.nn.Linear(5, 3)
    before = layer.bias.detach().clone()
    RankingLoss(name).set_prior(layer)
    if name in FOCAL_LOSSES:
        torch.testing.assert_close(layer.bias.detach().sigmoid(), torch.full((3,), 0.01))
    else:
        assert torch.equal(layer.bias, before)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_the_box_weight_scales_the_gradient_by_the_boxes_alone(name):
    case = make_case()
    plain = RankingLoss(name)(*case).values()
    heavy = RankingLoss(name, box_weight=3.0)(*case).values()
    by_scores, by_boxes = gradients(plain, case[0], case[2])
    heavy_by_scores, heavy_by_boxes = gradients(heavy, case[0], case[2])
    torch.testing.assert_close(heavy_by_scores, by_scores)
    torch.testing.assert_close(heavy_by_boxes, 3 * by_boxes)
    assert by_boxes.abs().max() > 0


@pytest.mark.parametrize("name", RANKING_LOSSES)
@pytest.mark.parametrize("classes", [[3, 3, -1], []])
def test_without_objects_all_losses_are_0_and_have_a_graph(name, classes):
    scores = torch.randn(len(classes), 3, requires_grad=True)
    boxes = torch.zeros(0, 4, requires_grad=True)
    classes = torch.tensor(classes, dtype=torch.int64)
    losses = RankingLoss(name)(scores, classes, boxes, torch.zeros(0, 4))
    sum(losses.values()).backward()
    assert all(x == 0 for x in losses.values())
    assert not scores.grad.any()


def test_half_precision_is_ranked_in_single():
    for name in ALL_LOSSES:
        scores, classes, boxes, gt_boxes = make_case()
        half = scores.detach().half().requires_grad_()
        losses = RankingLoss(name)(
            half, classes, boxes.detach().float().requires_grad_(), gt_boxes.float()
        )
        sum(losses.values()).backward()
        assert all(x.dtype == torch.float32 for x in losses.values())
        assert half.grad.dtype == torch.float16


def test_the_config_gives_each_part_its_functions_and_its_published_scale(tiny_cfg):
    points = control_points(torch.rand(5, 8, dtype=torch.float64))
    tiny_cfg.MODEL.RANKING_LOSS.PARAMETERIZED_AP.RPN.POINTS = points.tolist()
    for part, scale in (("RPN", 1.7), ("BOX_HEAD", 7.13), ("RETINANET", 4.12)):
        loss = ranking_loss_from_config(tiny_cfg, part)
        assert loss.name == "parameterized_ap"
        assert loss.parameterized_ap.gradient_scale == pytest.approx(scale)
        expected = points if part == "RPN" else ParameterizedAPLoss().points
        torch.testing.assert_close(loss.parameterized_ap.points, expected)
    assert {"parameterized_ap.points", "parameterized_ap.gradient_scale"} == set(loss.state_dict())


BAD_CONFIGS = {
    "name": ("RANKING_LOSS.NAME", "hinge", "MODEL.RANKING_LOSS.NAME: expected one of param"),
    "delta": ("RANKING_LOSS.DELTA", -1.0, "MODEL.RANKING_LOSS.DELTA: expected a number above 0"),
    "temperature": (
        "RANKING_LOSS.SMOOTH_AP.TEMPERATURE",
        -1.0,
        "RANKING_LOSS.SMOOTH_AP.TEMPERATURE: expected a num",
    ),
    "epsilon": (
        "RANKING_LOSS.DIRECT_AP.EPSILON",
        0.0,
        "RANKING_LOSS.DIRECT_AP.EPSILON: expected a number above 0",
    ),
    "form": ("RANKING_LOSS.PARAMETERIZED_AP.FORM", "cubic", "form: expected one of searched"),
    "scale": (
        "RANKING_LOSS.PARAMETERIZED_AP.RPN.GRADIENT_SCALE",
        0.0,
        "RPN: gradient_scale: expected a numb",
    ),
    "count": (
        "RANKING_LOSS.PARAMETERIZED_AP.RPN.POINTS",
        [[[0.5, 0.5]]],
        r"RPN: points: expected shape \(5, 4",
    ),
    "text": ("RANKING_LOSS.PARAMETERIZED_AP.RPN.POINTS", ["a"], "PARAMETERIZED_AP.RPN: "),
    "ranked": (
        "RANKING_LOSS.PARAMETERIZED_AP.NUM_RANKED",
        0,
        "RPN: num_ranked: expected at least 1, got 0",
    ),
    "ragged": (
        "RANKING_LOSS.PARAMETERIZED_AP.RPN.POINTS",
        [[[0.5]], [[0.5, 0.5]]],
        "PARAMETERIZED_AP.RPN: ",
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_is_none_is_named(tiny_cfg, case):
    key, value, message = BAD_CONFIGS[case]
    tiny_cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=message):
        ranking_loss_from_config(tiny_cfg, "RPN")


def test_points_of_a_form_that_has_none_are_refused(tiny_cfg):
    tiny_cfg.MODEL.RANKING_LOSS.PARAMETERIZED_AP.FORM = "linear"
    ranking_loss_from_config(tiny_cfg, "RPN")
    tiny_cfg.MODEL.RANKING_LOSS.PARAMETERIZED_AP.RPN.POINTS = ParameterizedAPLoss().points.tolist()
    with pytest.raises(ValueError, match="RPN: POINTS: expected none with FORM 'linear', got some"):
        ranking_loss_from_config(tiny_cfg, "RPN")


def test_the_width_of_the_step_is_the_papers_unless_given(tiny_cfg):
    for name, delta in (("ap", 1.0), ("alrp", 1.0), ("rank_sort", 0.5)):
        tiny_cfg.MODEL.RANKING_LOSS.NAME = name
        assert ranking_loss_from_config(tiny_cfg, "BOX_HEAD").delta == delta
    tiny_cfg.MODEL.RANKING_LOSS.DELTA = 0.25
    assert ranking_loss_from_config(tiny_cfg, "BOX_HEAD").delta == 0.25
