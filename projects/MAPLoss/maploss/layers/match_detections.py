# SPDX-License-Identifier: Apache-2.0
"""
Which object a window is matched to. Shape letters: R windows, G objects, both of one class.
"""

import torch

from .checks import check_int64, check_shape
from .ragged import RaggedIndex


def paired_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """
    IoU of continuous boxes (no +1) one by one, 0 where the union is empty.

    Args:
        boxes1, boxes2: (B, 4) XYXY in pixels.

    Returns:
        (B,) of the boxes' dtype.
    """
    size = torch.minimum(boxes1[:, 2:], boxes2[:, 2:]) - torch.maximum(boxes1[:, :2], boxes2[:, :2])
    inter = size.clamp_(min=0).prod(1)
    union = (
        (boxes1[:, 2:] - boxes1[:, :2]).prod(1) + (boxes2[:, 2:] - boxes2[:, :2]).prod(1) - inter
    )
    return torch.where(union > 0, inter / union, 0.0)


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
        ValueError, TypeError: a wrong shape, dtype or threshold.
    """
    check_shape("boxes", boxes, ("R", 4))
    check_shape("image_ids", image_ids, (len(boxes),))
    check_shape("gt_boxes", gt_boxes, ("G", 4))
    check_shape("gt_image_ids", gt_image_ids, (len(gt_boxes),))
    check_int64("image_ids", image_ids)
    check_int64("gt_image_ids", gt_image_ids)
    if not 0 <= iou_thresh <= 1:
        raise ValueError(f"iou_thresh: expected a number in [0, 1], got {iou_thresh}")
    matched = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    if not len(boxes) or not len(gt_boxes):
        return matched
    images, image = torch.cat([image_ids, gt_image_ids]).unique(return_inverse=True)
    objects = torch.arange(len(gt_boxes), device=boxes.device)
    in_image = RaggedIndex(image[len(boxes) :], objects, len(images))
    # Every window with every object of its image; windows do not fall along the pairs.
    window, gt = in_image.expand(image[: len(boxes)])
    iou = paired_iou(boxes[window], gt_boxes[gt].to(boxes))
    best = torch.zeros_like(boxes[:, 0]).scatter_reduce_(0, window, iou, "amax")
    is_match = (iou > iou_thresh) & (iou == best[window])
    matched = matched.masked_fill(best > iou_thresh, len(gt_boxes))
    matched.scatter_reduce_(0, window[is_match], gt[is_match], "amin")
    if gt_difficult is not None:
        check_shape("gt_difficult", gt_difficult, (len(gt_boxes),))
        is_difficult = (matched >= 0) & gt_difficult.bool()[matched.clamp(min=0)]
        matched[is_difficult] = -2
    return matched
