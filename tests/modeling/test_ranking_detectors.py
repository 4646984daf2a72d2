# SPDX-License-Identifier: Apache-2.0
"""Faster R-CNN and RetinaNet of Detectron2 with ranking losses."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from maploss.export import export_model
from maploss.layers import alrp_loss, control_points
from maploss.modeling.ranking_loss import FOCAL_LOSSES, RANKING_LOSSES, RankingLoss

from tests.tiny import train_on


@pytest.fixture(params=["faster_rcnn", "retinanet"])
def detector_cfg(fpn_cfg, request):
    model = fpn_cfg.MODEL
    model.LOAD_PROPOSALS = False
    if request.param == "retinanet":
        model.META_ARCHITECTURE = "RankingRetinaNet"
        model.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        model.RETINANET.NUM_CLASSES = 4
        model.RETINANET.NUM_CONVS = 1
        model.RETINANET.SCORE_THRESH_TEST = 0.0
    else:
        model.META_ARCHITECTURE = "GeneralizedRCNN"
        model.PROPOSAL_GENERATOR.NAME = "RankingRPN"
        model.ROI_HEADS.NAME = "RankingROIHeads"
        model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = -1
        model.ROI_HEADS.PROPOSAL_APPEND_GT = True  # the RPN knows nothing yet
    return fpn_cfg


def last_layers(model):
    """What gives scores and boxes, by the part of the detector."""
    if hasattr(model, "head"):
        return [model.head.cls_score, model.head.bbox_pred]
    head, predictor = model.proposal_generator.rpn_head, model.roi_heads.box_predictor
    return [head.objectness_logits, head.anchor_deltas, predictor.cls_score, predictor.bbox_pred]


@pytest.mark.parametrize("name", [*RANKING_LOSSES, *FOCAL_LOSSES])
def test_every_loss_trains_scores_and_boxes_of_every_part(detector_cfg, make_inputs, storage, name):
    torch.manual_seed(0)
    detector_cfg.MODEL.RANKING_LOSS.NAME = name
    model = build_model(detector_cfg)
    inputs = make_inputs()
    losses = model(inputs)
    parts = ["", "rpn_"] if hasattr(model, "proposal_generator") else [""]
    assert {f"loss_{part}{name}" for part in parts} <= set(losses)
    has_own_boxes = name in ("parameterized_ap", "alrp")
    assert {x for x in losses if "giou" in x} == (
        set() if has_own_boxes else {f"loss_{part}box_giou" for part in parts}
    )
    sum(losses.values()).backward()
    for layer in last_layers(model):
        assert torch.isfinite(layer.weight.grad).all()
        assert layer.weight.grad.abs().max() > 0
    with torch.no_grad():
        outputs = model.eval()(inputs)
    assert all(len(x["instances"]) > 0 for x in outputs)
    assert all((x["instances"].scores <= 1).all() for x in outputs)


@pytest.mark.parametrize("name", RANKING_LOSSES)
def test_images_without_objects_give_losses_of_0(detector_cfg, make_inputs, storage, name):
    detector_cfg.MODEL.RANKING_LOSS.NAME = name
    model = build_model(detector_cfg)
    inputs = make_inputs()
    for x in inputs:
        x["instances"] = x["instances"][:0]
    losses = model(inputs)
    sum(losses.values()).backward()
    assert all(x == 0 for x in losses.values())


@pytest.mark.parametrize("name", FOCAL_LOSSES)
def test_every_score_layer_begins_at_a_probability_of_a_hundredth(detector_cfg, name):
    detector_cfg.MODEL.RANKING_LOSS.NAME = name
    for layer in last_layers(build_model(detector_cfg))[::2]:
        torch.testing.assert_close(layer.bias.sigmoid(), torch.full_like(layer.bias, 0.01))


def test_training_lowers_the_loss(detector_cfg, make_inputs, storage):
    torch.manual_seed(0)
    model = build_model(detector_cfg)
    values = train_on(model, make_inputs(), learning_rate=0.0005)
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def test_searched_points_are_in_the_checkpoint(detector_cfg):
    own = detector_cfg.MODEL.RANKING_LOSS.PARAMETERIZED_AP
    points = {
        part: control_points(torch.rand(5, 8, dtype=torch.float64)).tolist()
        for part in ("RPN", "BOX_HEAD", "RETINANET")
    }
    for part, values in points.items():
        own[part].POINTS = values
    state = build_model(detector_cfg).state_dict()
    found = {key: value.tolist() for key, value in state.items() if key.endswith("ap.points")}
    if detector_cfg.MODEL.META_ARCHITECTURE == "RankingRetinaNet":
        expected = {"ranking_loss.parameterized_ap.points": points["RETINANET"]}
    else:
        expected = {
            "proposal_generator.ranking_loss.parameterized_ap.points": points["RPN"],
            "roi_heads.box_predictor.ranking_loss.parameterized_ap.points": points["BOX_HEAD"],
        }
    assert found == expected


def gradients_of_last_layers(cfg, inputs):
    torch.manual_seed(0)
    model = build_model(cfg)
    sum(model(inputs).values()).backward()
    return [layer.weight.grad for layer in last_layers(model)]


def test_the_gradient_scale_of_the_config_reaches_the_boxes_of_each_part(
    detector_cfg, make_inputs, storage
):
    inputs = make_inputs()
    detector_cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = True
    plain = gradients_of_last_layers(detector_cfg, inputs)
    for part in ("RPN", "BOX_HEAD", "RETINANET"):
        detector_cfg.MODEL.RANKING_LOSS.PARAMETERIZED_AP[part].GRADIENT_SCALE *= 3
    scaled = gradients_of_last_layers(detector_cfg, inputs)
    for i, (before, after) in enumerate(zip(plain, scaled, strict=True)):
        torch.testing.assert_close(after, before * (3 if i % 2 else 1), rtol=1e-3, atol=1e-7)


def test_the_weights_of_the_rpns_losses_are_detectron2s(fpn_cfg, make_inputs, storage):
    fpn_cfg.MODEL.PROPOSAL_GENERATOR.NAME, fpn_cfg.MODEL.LOAD_PROPOSALS = "RankingRPN", False
    fpn_cfg.MODEL.RANKING_LOSS.NAME = "ap"
    found = []
    for weight, box_weight in ((1.0, 1.0), (2.0, 1.0), (2.0, 3.0)):
        fpn_cfg.MODEL.RPN.LOSS_WEIGHT = weight
        fpn_cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = box_weight
        torch.manual_seed(0)
        losses = build_model(fpn_cfg)(make_inputs())
        found.append((losses["loss_rpn_ap"].item(), losses["loss_rpn_box_giou"].item()))
    (score, box), *others = found
    assert others == [pytest.approx((2 * score, 2 * box)), pytest.approx((2 * score, 6 * box))]


@pytest.mark.parametrize("field", ["gt_difficult", "gt_is_crowd"])
def test_anchors_over_what_the_evaluation_ignores_are_ignored(detector_cfg, make_inputs, field):
    model = build_model(detector_cfg)
    x = make_inputs()[0]
    objects, size = x["instances"], x["image"].shape[1:]
    generator = getattr(model, "proposal_generator", model)
    label = getattr(generator, "label_and_sample_anchors", None) or generator.label_anchors
    anchors = generator.anchor_generator(
        [torch.zeros(1, 8, size[0] // s, size[1] // s) for s in anchor_strides(detector_cfg)]
    )
    background = 4 if hasattr(model, "head") else 0
    every = Boxes.cat(anchors)
    # Two objects on anchors that are apart.
    first = len(every) // 3
    apart = (pairwise_iou(every[first], every)[0] == 0).nonzero().squeeze(1)
    objects.gt_boxes = every[torch.tensor([first, int(apart[len(apart) // 2])])]
    (plain,), _ = label(anchors, [objects])
    setattr(objects, field, torch.tensor([0, 1]))
    (labels,), (gt_boxes,) = label(anchors, [objects])
    over = pairwise_iou(objects.gt_boxes, every)
    is_object = (labels != background) & (labels != -1)
    assert is_object.any()
    # Only the first object is one, and what it gains from the other is background.
    assert (gt_boxes[is_object] == objects.gt_boxes.tensor[0]).all()
    own = (plain != background) & (plain != -1) & (over[1] > over[0]) & (over[1] >= 0.4)
    assert own.any()
    assert (labels[own & (over[0] < 0.3)] == -1).all()
    free = pairwise_ioa(objects.gt_boxes[1], every)[0] < 0.5
    assert ((labels == plain) | ~(free & (over[1] < 0.3)) | is_object).all()


def anchor_strides(cfg):
    if cfg.MODEL.META_ARCHITECTURE == "RankingRetinaNet":
        return [8, 16, 32, 64, 128][: len(cfg.MODEL.RETINANET.IN_FEATURES)]
    return [4, 8, 16, 32, 64]


def test_difficult_objects_train_where_the_config_says_so(detector_cfg):
    detector_cfg.MODEL.TRAIN_DIFFICULT_ON = True
    model = build_model(detector_cfg)
    assert getattr(model, "proposal_generator", model).train_on_difficult


def test_they_can_be_exported(detector_cfg, tmp_path):
    model = build_model(detector_cfg)
    path = export_model(detector_cfg, model, tmp_path)
    content = torch.load(path, weights_only=True)["model"]
    assert set(content) == set(model.state_dict())
    assert any(key.endswith("parameterized_ap.points") for key in content)


def test_the_rpn_ranks_all_anchors_of_all_images(fpn_cfg, make_inputs, storage):
    torch.manual_seed(0)
    fpn_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RankingRPN"
    fpn_cfg.MODEL.RANKING_LOSS.NAME = "alrp"
    fpn_cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 4  # says nothing here
    model = build_model(fpn_cfg)
    rpn, inputs = model.proposal_generator, make_inputs()
    images = model.preprocess_image(inputs)
    features = [model.backbone(images.tensor)[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator(features)
    labels, gt_boxes = rpn.label_and_sample_anchors(anchors, [x["instances"] for x in inputs])
    every = torch.cat([x.tensor for x in anchors])
    assert sum(int((x >= 0).sum()) for x in labels) > 0.9 * 2 * len(every)
    logits = [torch.randn(2, len(x)) for x in anchors]
    deltas = [0.1 * torch.randn(2, len(x), 4) for x in anchors]
    losses = rpn.losses(anchors, logits, labels, deltas, gt_boxes)
    scores, flat_labels, quality = [], [], []
    for i in range(2):
        boxes = rpn.box2box_transform.apply_deltas(torch.cat([x[i] for x in deltas]), every)
        for a, label in enumerate(labels[i].tolist()):
            scores.append(torch.cat([x[i] for x in logits])[a])
            flat_labels.append(label)
            if label == 1:
                quality.append((giou(boxes[a], gt_boxes[i][a]) + 1) / 2)
    expected = alrp_loss(torch.stack(scores), torch.tensor(flat_labels), torch.tensor(quality))
    assert set(losses) == {"loss_rpn_alrp"}
    torch.testing.assert_close(losses["loss_rpn_alrp"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*RANKING_LOSSES, *FOCAL_LOSSES])
def test_boxes_that_are_not_finite_stop_the_run_with_a_name(name):
    boxes = torch.tensor([[0.0, 0, 10, float("nan")]])
    classes, gt_boxes = torch.tensor([0, 1]), torch.tensor([[0.0, 0, 10, 10]])
    with pytest.raises(FloatingPointError, match="boxes: 1 of 1 over objects are not finite"):
        RankingLoss(name)(torch.zeros(2, 1), classes, boxes, gt_boxes)


def giou(a, b):
    a, b = a.tolist(), b.tolist()
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union - (hull - union) / hull
