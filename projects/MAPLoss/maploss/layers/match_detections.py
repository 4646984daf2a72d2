# SPDX-License-Identifier: Apache-2.0
"""
Which object a window is matched to.

Shape letters: R windows, P classes, G objects, all of N images.
"""

from typing import NamedTuple

import torch

from .box_iou import paired_iou
from .checks import check_int64, check_shape
from .ragged import RaggedIndex

# What stands in place of an object's index: the window is matched to none, or to a difficult one.
UNMATCHED, DIFFICULT = -1, -2
# Pairs of a window and an object looked at at once.
_PAIRS = 1 << 20


def at_least_float32(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes whose areas do not overflow: integers and half precision as float32."""
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


class Matches(NamedTuple):
    """
    The object of its image and class that each window overlaps most, of P classes.

    nearest: (R, P) int64 in [0, G), the first of equal ones; UNMATCHED where it overlaps none.
    ious: (R, P) of the boxes' dtype, with that object. levels: (R, P) int64, how many of the
    overlaps the IoU exceeds: without any, the window is matched to no object.
    """

    nearest: torch.Tensor
    ious: torch.Tensor
    levels: torch.Tensor


@torch.no_grad()
def match_windows(
    boxes: torch.Tensor,
    images: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_images: torch.Tensor,
    gt_classes: torch.Tensor,
    num_classes: int,
    num_images: int,
    iou_threshs: torch.Tensor,
) -> Matches:
    """
    Matches windows to the objects of all classes, for all overlaps at once.

    Args:
        boxes: (R, 4), or (R, P, 4), one of its own for each class.
        images: (R,) int64 in [0, N).
        gt_boxes: (G, 4).
        gt_images: (G,) int64 in [0, N).
        gt_classes: (G,) int64 in [0, P]; objects of class P are left out.
        num_classes: P.
        num_images: N.
        iou_threshs: (T,) rising, of the boxes' dtype.
    """
    num_windows, num_gt = len(boxes), len(gt_boxes)
    size = num_windows * (num_classes + 1)
    best = torch.zeros(size, dtype=boxes.dtype, device=boxes.device)
    objects = torch.full((size,), num_gt, device=boxes.device)
    if num_windows and num_gt and num_classes:
        inds = torch.arange(num_gt, device=boxes.device)
        of_image = RaggedIndex(gt_images, inds, num_images)
        gt_boxes = gt_boxes.to(boxes)
        step = max(1, _PAIRS // max(int(of_image.counts.max()), 1))
        for windows in torch.arange(num_windows, device=boxes.device).split(step):
            # Every window with every object of its image.
            source, gt = of_image.expand(images[windows])
            window, of_class = windows[source], gt_classes[gt]
            by_class = (of_class.clamp(max=num_classes - 1),) if boxes.dim() == 3 else ()
            iou = paired_iou(boxes[(window, *by_class)], gt_boxes[gt])
            cell = window * (num_classes + 1) + of_class
            best.scatter_reduce_(0, cell, iou, "amax")
            is_best = (iou > 0) & (iou == best[cell])
            objects.scatter_reduce_(0, cell, torch.where(is_best, gt, num_gt), "amin")
    levels = torch.searchsorted(iou_threshs, best)
    nearest = torch.where(objects < num_gt, objects, UNMATCHED)
    shape = (num_windows, num_classes + 1)
    return Matches(*(x.view(shape)[:, :num_classes] for x in (nearest, best, levels)))


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
        boxes: (R, 4) XYXY in pixels.
        image_ids: (R,) int64.
        gt_boxes: (G, 4), the objects of one class, difficult ones included.
        gt_image_ids: (G,) int64.
        gt_difficult: (G,) bool or 0/1; None means that none is.
        iou_thresh: in [0, 1].

    Returns:
        (R,) int64: the index into the G objects, -1 for none, -2 for a difficult object.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or threshold.

    Example:
        >>> windows = torch.tensor([[0.0, 0.0, 10.0, 8.0], [30.0, 30.0, 40.0, 40.0]])
        >>> gt_boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        >>> image_ids = torch.zeros(2, dtype=torch.int64)
        >>> match_detections(windows, image_ids, gt_boxes, image_ids[:1])
        tensor([ 0, -1])
    """
    check_shape("boxes", boxes, ("R", 4))
    check_shape("image_ids", image_ids, (len(boxes),))
    check_shape("gt_boxes", gt_boxes, ("G", 4))
    check_shape("gt_image_ids", gt_image_ids, (len(gt_boxes),))
    check_int64("image_ids", image_ids)
    check_int64("gt_image_ids", gt_image_ids)
    if not 0 <= iou_thresh <= 1:
        raise ValueError(f"iou_thresh: expected a number in [0, 1], got {iou_thresh}")
    if gt_difficult is not None:
        check_shape("gt_difficult", gt_difficult, (len(gt_boxes),))
    boxes = at_least_float32(boxes)
    ids, images = torch.cat([image_ids, gt_image_ids]).unique(return_inverse=True)
    matches = match_windows(
        boxes,
        images[: len(boxes)],
        gt_boxes,
        images[len(boxes) :],
        torch.zeros_like(gt_image_ids),
        1,
        len(ids),
        boxes.new_tensor([iou_thresh]),
    )
    matched = torch.where(matches.levels[:, 0] > 0, matches.nearest[:, 0], UNMATCHED)
    if gt_difficult is None or not len(gt_boxes):
        return matched
    is_difficult = (matched >= 0) & gt_difficult.bool()[matched.clamp(min=0)]
    return torch.where(is_difficult, DIFFICULT, matched)
