# SPDX-License-Identifier: Apache-2.0
"""
Which object a window is matched to. Shape letters: R windows, G objects, both of one class.
"""

import torch

from .checks import check_int64, check_shape


def pairwise_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """
    IoU of continuous boxes (no +1), 0 where a union is empty.

    Args:
        boxes1: (A, 4), boxes2: (B, 4), XYXY in pixels.

    Returns:
        (A, B) of the boxes' dtype.
    """
    x1, y1, x2, y2 = boxes1[:, None].unbind(2)
    u1, v1, u2, v2 = boxes2.unbind(1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_(min=0)
    inter = width.mul_(height)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter
    # 0 / 0 is nan, which is over no threshold; a maximum over nan would not be.
    return inter.div_(union).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


@torch.no_grad()
def match_detections(
    boxes: torch.Tensor,
    image_ids: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_image_ids: torch.Tensor,
    gt_difficult: torch.Tensor | None = None,
    iou_thresh: float = 0.5,
) -> torch.Tensor:
    """
    Matches each window to the object of its image that it overlaps most, if IoU > iou_thresh.

    Boxes are continuous (no +1): a VOC box counted in inclusive pixels has x1 and y1 one less.
    Of equal overlaps the first object wins.

    Args:
        boxes: (R, 4) XYXY in pixels. image_ids: (R,) int64. gt_boxes: (G, 4), the objects of one
            class, difficult ones included. gt_image_ids: (G,) int64. gt_difficult: (G,) bool or
            0/1; None means that none is. iou_thresh: in [0, 1].

    Returns:
        (R,) int64: the index into the G objects, -1 for none, -2 for a difficult object.

    Raises:
        ValueError, TypeError: a wrong shape or dtype.
    """
    check_shape("boxes", boxes, ("R", 4))
    check_shape("image_ids", image_ids, (len(boxes),))
    check_shape("gt_boxes", gt_boxes, ("G", 4))
    check_shape("gt_image_ids", gt_image_ids, (len(gt_boxes),))
    check_int64("image_ids", image_ids)
    check_int64("gt_image_ids", gt_image_ids)
    matched = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    if not len(boxes) or not len(gt_boxes):
        return matched
    for image in gt_image_ids.unique():
        windows = (image_ids == image).nonzero().squeeze(1)
        objects = (gt_image_ids == image).nonzero().squeeze(1)
        if len(windows):
            iou, best = pairwise_iou(boxes[windows], gt_boxes[objects]).max(dim=1)
            matched[windows] = torch.where(iou > iou_thresh, objects[best], -1)
    if gt_difficult is not None:
        check_shape("gt_difficult", gt_difficult, (len(gt_boxes),))
        is_difficult = (matched >= 0) & gt_difficult.bool()[matched.clamp(min=0)]
        matched[is_difficult] = -2
    return matched
