# SPDX-License-Identifier: Apache-2.0
"""Detectron2's ResNet-FPN and RPN with the heads of this project."""

import pytest
import torch
from detectron2.modeling import build_model


@pytest.mark.parametrize(
    "head", ["MAPROIHeads", "SoftmaxROIHeads", "OHEMROIHeads", "RankingROIHeads"]
)
@pytest.mark.parametrize("box_reg", ["none", "regressed"])
@pytest.mark.parametrize("is_rpn", [False, True])
def test_every_head_trains_and_detects(fpn_cfg, make_inputs, storage, head, box_reg, is_rpn):
    torch.manual_seed(0)
    fpn_cfg.MODEL.ROI_HEADS.NAME, fpn_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = head, box_reg
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
