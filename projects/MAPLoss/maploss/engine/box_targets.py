# SPDX-License-Identifier: Apache-2.0
"""
What box regression has to learn, measured on the training windows (Girshick 2015, section 2.3).

Shape letters: B boxes of a window: one of each class, or 1.
"""

import logging
import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from torch import nn

from ..modeling.box_regressor import box_deltas, box_regressor_of
from .loaders import training_records

logger = logging.getLogger(__name__)

# So many images tell the mean and the variance well enough.
MAX_IMAGES = 2000
# A class with fewer windows over its objects gets the statistics of all classes.
_MIN_WINDOWS = 30
_MIN_STD = 1e-3


def set_box_targets(model: nn.Module, cfg: CfgNode) -> None:
    """
    Gives the box regression of `model` the mean and the variance of its targets, class by class.

    Without box regression or without precomputed windows nothing is done: with an RPN the targets
    keep mean 0 and a standard deviation of 1 / MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS.
    """
    regressor = box_regressor_of(model)
    if regressor is None or not cfg.MODEL.LOAD_PROPOSALS:
        return
    records = training_records(cfg)
    step = math.ceil(len(records) / MAX_IMAGES)
    mean, std = box_target_stats(
        records[::step],
        regressor.num_boxes,
        cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[-1],
        max_windows=cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN,
        with_difficult=cfg.MODEL.TRAIN_DIFFICULT_ON,
    )
    regressor.set_targets(mean, std)
    shown = " ".join(f"{x:.3f}" for x in std.mean(0).tolist())
    logger.info(f"Box regression: standard deviation of the targets {shown} (mean of all classes)")


def box_target_stats(
    records: Sequence[dict],
    num_boxes: int,
    iou_thresh: float,
    *,
    max_windows: int = 2000,
    with_difficult: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and standard deviation of the deltas from the windows to the objects that they overlap.

    Args:
        records: of Detectron2, with proposal_boxes.
        num_boxes: B.
        iou_thresh: from which IoU on a window is over an object.
        max_windows: the first so many of an image.
        with_difficult: windows over difficult objects count too; those over crowds never do.

    Returns:
        (B, 4) and (B, 4); 0 and 1 where no window is over an object.
    """
    deltas, classes = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
    for record in records:
        objects = [
            x
            for x in record["annotations"]
            if not x.get("iscrowd", 0) and (with_difficult or not x.get("difficult", 0))
        ]
        windows = _boxes(record["proposal_boxes"][:max_windows], record["proposal_bbox_mode"])
        if not objects or not len(windows):
            continue
        gt_boxes = torch.cat([_boxes([x["bbox"]], x["bbox_mode"]) for x in objects])
        iou, best = pairwise_iou(Boxes(gt_boxes), Boxes(windows)).max(dim=0)
        is_over = iou >= iou_thresh
        deltas.append(box_deltas(windows[is_over], gt_boxes[best[is_over]]))
        classes.append(torch.tensor([x["category_id"] for x in objects])[best[is_over]])
    all_deltas, all_classes = torch.cat(deltas), torch.cat(classes)
    mean, std = torch.zeros(num_boxes, 4), torch.ones(num_boxes, 4)
    for box in range(num_boxes):
        class_deltas = all_deltas[all_classes == box] if num_boxes > 1 else all_deltas
        class_deltas = class_deltas if len(class_deltas) >= _MIN_WINDOWS else all_deltas
        if len(class_deltas):
            mean[box] = class_deltas.mean(dim=0)
            std[box] = class_deltas.std(dim=0, unbiased=False).clamp(min=_MIN_STD)
    return mean, std


def _boxes(boxes: Sequence, mode: BoxMode) -> torch.Tensor:
    return BoxMode.convert(torch.as_tensor(boxes).float().reshape(-1, 4), mode, BoxMode.XYXY_ABS)
