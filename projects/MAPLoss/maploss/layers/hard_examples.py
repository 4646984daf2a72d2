# SPDX-License-Identifier: Apache-2.0
"""Online hard example mining: which windows train. Shape letters: R windows, H hard ones."""

import torch
from detectron2.layers import batched_nms

from .checks import check_fraction, check_int64, check_shape


@torch.no_grad()
def hard_examples(
    losses: torch.Tensor,
    boxes: torch.Tensor,
    image_ids: torch.Tensor,
    num: int,
    iou_thresh: float = 0.7,
) -> torch.Tensor:
    """
    The windows of the largest losses, but none that overlaps one of a larger loss by too much.

    Windows at the same place have much the same loss; NMS by loss in each image leaves one of them
    (Shrivastava et al. 2016, "Training Region-based Object Detectors with Online Hard Example
    Mining", section 4.1).

    Args:
        losses: (R,).
        boxes: (R, 4) XYXY in pixels.
        image_ids: (R,) int64, which image each window is of.
        num: how many at most, of all images together.
        iou_thresh: in [0, 1], above which IoU is too much; 1 leaves all.

    Returns:
        (H,) int64, H <= num: rising indices. Of equal losses the first come first.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, number or threshold.
        FloatingPointError: a loss that is not finite.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]])
        >>> hard_examples(torch.tensor([2.0, 3.0, 1.0]), boxes, torch.tensor([0, 0, 0]), num=2)
        tensor([1, 2])
    """
    check_shape("losses", losses, ("R",))
    check_shape("boxes", boxes, (len(losses), 4))
    check_shape("image_ids", image_ids, (len(losses),))
    check_int64("image_ids", image_ids)
    if num < 1:
        raise ValueError(f"num: expected at least 1, got {num}")
    check_fraction("iou_thresh", iou_thresh)
    is_finite = torch.isfinite(losses)
    if not is_finite.all():
        raise FloatingPointError(f"losses: {int((~is_finite).sum())} of {len(losses)} not finite")
    # NMS gives no order of ties; the first of them is taken here.
    keep = batched_nms(boxes, losses, image_ids, iou_thresh).sort()[0]
    order = torch.argsort(losses[keep], descending=True, stable=True)
    return keep[order[:num]].sort()[0]
