# SPDX-License-Identifier: Apache-2.0
"""
Greedy non-maximum suppression that also says who suppressed whom.

Shape letters: R windows of all images of the minibatch, E pairs of windows that overlap.
"""

import struct
from typing import NamedTuple

import torch

from .checks import check_int64, check_scores, check_shape

# Rows of the overlap matrix computed at once: small enough for a processor's cache.
_BLOCK = 256


class Overlaps(NamedTuple):
    """
    Pairs of windows of one image with IoU > thresh; the same for all classes.

    boxes: (R, 4) float32. first, second: (E,) int64, each unordered pair once. limit: the float32
    number that an IoU must exceed.
    """

    boxes: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    limit: float

    def contains(self, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """(B,) bool, whether windows i and j (B,) of one image overlap."""
        return _iou(self.boxes[i], self.boxes[j]) > self.limit


class NMSRecord(NamedTuple):
    """
    What NMS did to the windows of one class.

    is_kept: (R,) bool. suppressor: (R,) int64, the best-scored kept window that overlaps a
    suppressed one, -1 for kept windows. rank: (R,) int64, place by falling score over all images.
    higher, lower: (E',) int64, the overlapping pairs of which at least one is kept, by rank.
    """

    is_kept: torch.Tensor
    suppressor: torch.Tensor
    rank: torch.Tensor
    higher: torch.Tensor
    lower: torch.Tensor


def find_overlaps(boxes: torch.Tensor, image_ids: torch.Tensor, iou_thresh: float) -> Overlaps:
    """
    All pairs of windows that suppress each other.

    IoU is computed as torchvision's NMS does, in float32 and without +1, so that the same pairs
    are over the threshold. Each pair takes 16 bytes: about 1% of the pairs of an image overlap for
    selective search; where all windows crowd around one object, it is all of them.

    Args:
        boxes: (R, 4) XYXY in pixels. image_ids: (R,) int64. iou_thresh: in [0, 1].
    """
    check_shape("boxes", boxes, ("R", 4))
    check_shape("image_ids", image_ids, (len(boxes),))
    check_int64("image_ids", image_ids)
    if not 0 <= iou_thresh <= 1:
        raise ValueError(f"iou_thresh: expected a number in [0, 1], got {iou_thresh}")
    boxes = boxes.detach().float()
    limit = _float32_limit(iou_thresh, boxes.device)
    ids, by_image = image_ids.sort(stable=True)
    grouped = boxes[by_image]
    pairs = [boxes.new_zeros((0, 2), dtype=torch.int64)]
    start = 0
    for count in torch.unique_consecutive(ids, return_counts=True)[1].tolist():
        stop = start + count
        for row in range(start, stop, _BLOCK):
            # The upper triangle: later windows of the same image.
            some, later = grouped[row : min(row + _BLOCK, stop)], grouped[row:stop]
            is_pair = (_iou(some[:, None], later[None]) > limit).triu_(diagonal=1)
            pairs.append(is_pair.nonzero().add_(row))
        start = stop
    first, second = torch.cat(pairs).unbind(1)
    return Overlaps(boxes, by_image[first], by_image[second], limit)


def nms_record(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_ids: torch.Tensor,
    iou_thresh: float,
    overlaps: Overlaps | None = None,
) -> NMSRecord:
    """
    NMS per image: windows by falling score, each kept unless it overlaps a kept one.

    The kept set is that of Detectron2's `batched_nms` on the same input. Ties keep the input order.
    (For few boxes `batched_nms` moves each image's or class's boxes apart before it computes IoU in
    float32; where an IoU is within rounding of the threshold, or coordinates are negative, it may
    decide otherwise.)

    Args:
        boxes: (R, 4) XYXY in pixels. scores: (R,) of one class. image_ids: (R,) int64.
        iou_thresh: windows with a larger IoU suppress each other. overlaps: of these boxes at
            this threshold, where several classes share them.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or threshold.
        FloatingPointError: a score that is not finite.
    """
    check_scores(scores, (len(boxes),))
    if overlaps is None:
        overlaps = find_overlaps(boxes, image_ids, iou_thresh)
    num_windows = len(scores)
    places = torch.arange(num_windows, device=scores.device)
    rank = torch.empty_like(places)
    rank[torch.argsort(scores, descending=True, stable=True)] = places
    is_ordered = rank[overlaps.first] < rank[overlaps.second]
    higher = torch.where(is_ordered, overlaps.first, overlaps.second)
    lower = torch.where(is_ordered, overlaps.second, overlaps.first)
    is_kept = _keep(higher, lower, num_windows)
    touches_kept = is_kept[higher] | is_kept[lower]
    higher, lower = higher[touches_kept], lower[touches_kept]
    is_suppression = is_kept[higher]
    best = torch.full_like(rank, num_windows)
    best.scatter_reduce_(0, lower[is_suppression], rank[higher[is_suppression]], "amin")
    by_rank = torch.empty_like(rank)
    by_rank[rank] = places
    suppressor = torch.where(is_kept, -1, by_rank[best.clamp(max=max(num_windows - 1, 0))])
    return NMSRecord(is_kept, suppressor, rank, higher, lower)


def _keep(higher: torch.Tensor, lower: torch.Tensor, num_windows: int) -> torch.Tensor:
    """
    Greedy NMS in rounds: what no undecided window overlaps from above is kept at once.

    Equal to going through the windows by score, since a window waits for all above it; the number
    of rounds is the length of the longest chain, a few tens for thousands of windows.
    """
    is_kept = torch.ones(num_windows, dtype=torch.bool, device=higher.device)
    is_open = is_kept.clone()
    while len(lower):
        is_waiting = torch.zeros_like(is_open)
        is_waiting[lower] = True
        is_new = is_open & ~is_waiting
        loses = lower[is_new[higher]]
        is_kept[loses] = False
        is_open[loses] = False
        is_open &= ~is_new
        is_live = is_open[higher] & is_open[lower]
        higher, lower = higher[is_live], lower[is_live]
    return is_kept


def _iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """IoU of broadcast boxes (..., 4), operation for operation as torchvision's NMS; may be nan."""
    x1, y1, x2, y2 = boxes1.unbind(-1)
    u1, v1, u2, v2 = boxes2.unbind(-1)
    inter = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_(min=0)
    inter = inter.mul_((torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_(min=0))
    union = ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)).sub_(inter)
    return inter.div_(union)


def _float32_limit(thresh: float, device: torch.device) -> float:
    """
    The number to compare float32 overlaps with so that `iou > thresh` holds for the same ones.

    torchvision compares in float64 on the CPU, where an IoU of float32(.3) is above .3, and in
    float32 on CUDA, where it is not.
    """
    nearest = struct.unpack("f", struct.pack("f", thresh))[0]
    if device.type == "cuda" or nearest <= thresh:
        return nearest
    below = struct.unpack("I", struct.pack("f", thresh))[0] - 1
    return struct.unpack("f", struct.pack("I", below))[0]
