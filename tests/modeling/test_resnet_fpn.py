# SPDX-License-Identifier: Apache-2.0
"""Detectron2's ResNet-FPN and RPN with the heads of this project."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

SIZE = (64, 96)


@pytest.fixture
def fpn_cfg(tiny_cfg):
    model = tiny_cfg.MODEL
    model.BACKBONE.NAME = "build_resnet_fpn_backbone"
    model.RESNETS.DEPTH = 18
    model.RESNETS.RES2_OUT_CHANNELS = 64
    model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model.FPN.OUT_CHANNELS = 8
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 60
    model.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    return tiny_cfg


def make_inputs():
    inputs = []
    for i in range(2):
        boxes = Boxes(torch.tensor([[4.0, 4, 40, 40], [30, 10, 90, 60], [0, 0, 20, 20 + i]]))
        proposals, instances = Instances(SIZE), Instances(SIZE)
        proposals.proposal_boxes, instances.gt_boxes = boxes, boxes[:2]
        instances.gt_classes = torch.tensor([i, 3])
        image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
        inputs.append({"image": image, "proposals": proposals, "instances": instances})
    return inputs


@pytest.mark.parametrize("head", ["MAPROIHeads", "SoftmaxROIHeads", "OHEMROIHeads"])
@pytest.mark.parametrize("box_reg", ["none", "regressed"])
@pytest.mark.parametrize("is_rpn", [False, True])
def test_every_head_trains_and_detects(fpn_cfg, storage, head, box_reg, is_rpn):
    torch.manual_seed(0)
    fpn_cfg.MODEL.ROI_HEADS.NAME, fpn_cfg.MODEL.MAP_LOSS.BOX_REG = head, box_reg
    fpn_cfg.MODEL.LOAD_PROPOSALS = not is_rpn
    fpn_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN" if is_rpn else "PrecomputedProposals"
    model = build_model(fpn_cfg)
    inputs = make_inputs()
    if is_rpn:
        images = model.preprocess_image(inputs)
        objects = [x["instances"] for x in inputs]
        found, _ = model.proposal_generator(images, model.backbone(images.tensor), objects)
        for x, proposals in zip(inputs, found, strict=True):
            del x["proposals"]
            x["instances"].gt_boxes = proposals.proposal_boxes[:2]  # an RPN that has learned
    losses = model(inputs)
    assert {"loss_rpn_cls", "loss_rpn_loc"} <= set(losses) or not is_rpn
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().max() > 0
    with torch.no_grad():
        outputs = model.eval()(inputs)
    assert all(len(x["instances"]) > 0 for x in outputs)
