# SPDX-License-Identifier: Apache-2.0
"""A small ResNet-FPN of Detectron2, and inputs for a detector."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from tests.tiny import RESNET_FPN, make_cfg

SIZE = (64, 96)


@pytest.fixture
def fpn_cfg():
    """The tiny detector with a small ResNet-FPN."""
    cfg = make_cfg(RESNET_FPN)
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 60
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    return cfg


@pytest.fixture
def make_inputs():
    """Makes the inputs of a detector: two images, three windows and two objects each."""
    return _make_inputs


def _make_inputs():
    inputs = []
    for i in range(2):
        boxes = Boxes(torch.tensor([[4.0, 4, 40, 40], [30, 10, 90, 60], [0, 0, 20, 20 + i]]))
        proposals, instances = Instances(SIZE), Instances(SIZE)
        proposals.proposal_boxes, instances.gt_boxes = boxes, boxes[:2]
        instances.gt_classes = torch.tensor([i, 3])
        image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
        inputs.append({"image": image, "proposals": proposals, "instances": instances})
    return inputs
