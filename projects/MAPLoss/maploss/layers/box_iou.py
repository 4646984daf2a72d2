# SPDX-License-Identifier: Apache-2.0
"""The overlap of boxes: the one IoU of the layers."""

from collections.abc import Sequence

import torch


def paired_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """
    Intersection over union of boxes one by one, or of all with all by broadcasting.

        IoU(a, b) = |a and b| / (|a| + |b| - |a and b|),    |a| = (x2 - x1) (y2 - y1)

    Boxes are continuous: no pixel is added to a width. An IoU is 0 where the union is empty, and
    where it is not a number, as that of boxes that are none.

    In float32 it is, operation for operation, the IoU of torchvision's NMS, so that a threshold
    parts the same pairs. It is never above 1 for boxes with x1 <= x2 and y1 <= y2. Three tensors of
    the result's size are held at a time.

    Args:
        boxes1: (..., 4) XYXY in pixels, floating point.
        boxes2: (..., 4), a shape that broadcasts with that of boxes1.

    Returns:
        (...), the broadcast shape without the 4, in the boxes' dtype. Not to be differentiated.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [7, 7, 7, 7]])
        >>> paired_iou(boxes, boxes)
        tensor([1., 1., 0.])
        >>> paired_iou(boxes[:, None], boxes)
        tensor([[1.0000, 0.3333, 0.0000],
                [0.3333, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    return iou_of_sides(boxes1.unbind(-1), boxes2.unbind(-1))


def iou_of_sides(sides1: Sequence[torch.Tensor], sides2: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    :func:`paired_iou` of boxes whose x1, y1, x2 and y2 are tensors of their own.

    Args:
        sides1: four, (...).
        sides2: four, of shapes that broadcast with those.
    """
    x1, y1, x2, y2 = sides1
    u1, v1, u2, v2 = sides2
    inter = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    inter.mul_(torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0))
    union = ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)).sub_(inter)
    return inter.div_(union).nan_to_num_(nan=0.0)
