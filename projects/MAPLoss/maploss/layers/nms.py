# SPDX-License-Identifier: Apache-2.0
"""
Greedy non-maximum suppression of many classes and images at once; it can say who suppressed whom.

Shape letters: R windows of all images of the minibatch, E pairs of windows that overlap, P classes.
"""

import itertools
import struct
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms

from .box_iou import iou_of_sides, paired_iou
from .checks import check_int64, check_scores, check_shape

# Pairs of boxes whose IoU is computed at once: a few matrices that a processor's cache holds.
_BLOCK = 1 << 20
# Overlapping pairs x classes decided at once.
_PAIRS = 1 << 22
# Of more numbers torchvision's batched_nms goes through its groups one by one.
_NMS_NUMBERS = {"cpu": 4_000, "cuda": 100_000}


class Overlaps(NamedTuple):
    """
    Pairs of windows of one group (an image) with IoU > thresh; the same for all classes.

    boxes: (R, 4) float32. first, second: (E,) int64, each unordered pair once, first < second.
    limit: the float32 number that an IoU must exceed.
    """

    boxes: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    limit: float

    def contains(self, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """(B,) bool, whether windows i and j (B,) of one image overlap."""
        return paired_iou(self.boxes[i], self.boxes[j]) > self.limit


class NMSRecord(NamedTuple):
    """
    What NMS did to the windows of one class.

    Args:
        is_kept: (R,) bool.
        suppressor: (R,) int64, the best-scored kept window that overlaps a suppressed one, -1 for
            kept windows.
        rank: (R,) int64, place by falling score over all images.
        higher, lower: (E',) int64, the overlapping pairs of which at least one is kept, by rank.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0]])
        >>> record = nms_record(boxes, torch.tensor([0.2, 0.9]), torch.tensor([0, 0]), 0.3)
        >>> record.rank, record.higher, record.lower
        (tensor([1, 0]), tensor([1]), tensor([0]))
    """

    is_kept: torch.Tensor
    suppressor: torch.Tensor
    rank: torch.Tensor
    higher: torch.Tensor
    lower: torch.Tensor


@torch.no_grad()
def find_overlaps(boxes: torch.Tensor, image_ids: torch.Tensor, iou_thresh: float) -> Overlaps:
    """
    All pairs of windows that suppress each other.

    IoU is computed as torchvision's NMS does, in float32 and without +1, so that the same pairs
    are over the threshold. Each pair takes 16 bytes: about 1% of the pairs of an image overlap for
    selective search; where all windows crowd around one object, it is all of them.

    Args:
        boxes: (R, 4) XYXY in pixels.
        image_ids: (R,) int64.
        iou_thresh: in [0, 1].
    """
    check_shape("boxes", boxes, ("R", 4))
    check_shape("image_ids", image_ids, (len(boxes),))
    check_int64("image_ids", image_ids)
    if not 0 <= iou_thresh <= 1:
        raise ValueError(f"iou_thresh: expected a number in [0, 1], got {iou_thresh}")
    ids, groups = image_ids.unique(return_inverse=True)
    return overlaps_of_groups(boxes, groups, len(ids), iou_thresh)


def overlaps_of_groups(
    boxes: torch.Tensor, groups: torch.Tensor, num_groups: int, iou_thresh: float
) -> Overlaps:
    """:func:`find_overlaps` of groups (R,) int64 in [0, num_groups)."""
    boxes = boxes.detach().float()
    limit = float32_limit(iou_thresh, boxes.device)
    counts = torch.zeros(num_groups, dtype=torch.int64, device=boxes.device)
    counts.index_add_(0, groups, torch.ones_like(groups))
    order = torch.argsort(groups, stable=True)
    starts = counts.cumsum(0) - counts
    pairs = [order.new_zeros((2, 0))]
    for inds, largest in _groups_by_size(counts.tolist()):
        some = torch.tensor(inds, device=boxes.device)
        # One row for each group; what fills it up overlaps nothing. x1, y1, x2 and y2 each in one
        # piece: minima and maxima of every fourth number of a tensor take several times as long.
        index = torch.arange(largest, device=boxes.device)
        is_window = index < counts[some][:, None]
        windows = order[torch.where(is_window, starts[some][:, None] + index, 0)]
        sides = torch.where(is_window, boxes.t()[:, windows], float("nan"))
        pairs += [windows.view(-1)[x] for x in _pairs_of_rows(sides, limit)]
    first, second = torch.cat(pairs, 1)
    return Overlaps(boxes, first, second, limit)


def _groups_by_size(counts: list[int]) -> list[tuple[list[int], int]]:
    """
    Groups that may share a matrix: at most half of it is filled up. Each with the largest size;
    groups of one window have no pairs.
    """
    by_size: dict[int, list[int]] = {}
    for group, count in enumerate(counts):
        if count > 1:
            by_size.setdefault((count - 1).bit_length(), []).append(group)
    return [(inds, max(counts[x] for x in inds)) for inds in by_size.values()]


def _pairs_of_rows(sides: torch.Tensor, limit: float) -> list[torch.Tensor]:
    """(2, E) places in rows (4, N, largest) of boxes of one row whose IoU is above the limit."""
    _, num_rows, largest = sides.shape
    pairs, start = [], 0
    while start < largest:
        stop = start + max(1, _BLOCK // (num_rows * (largest - start)))
        # The upper triangle: later windows of the same group.
        these, others = sides[..., start:stop, None], sides[..., None, start:]
        is_pair = iou_of_sides(these.unbind(), others.unbind()) > limit
        row, first, second = is_pair.triu_(diagonal=1).nonzero().unbind(1)
        row = row * largest + start
        pairs.append(torch.stack([row + first, row + second]))
        start = stop
    return pairs


def oriented(overlaps: Overlaps, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    (E, P) which window of each pair has the better score in each class, the first one if they are
    equal, and which the other; as places among the R x P scores.
    """
    classes = torch.arange(scores.shape[1], device=scores.device)
    is_first = scores[overlaps.first] >= scores[overlaps.second]
    first, second = ((x * scores.shape[1])[:, None] for x in (overlaps.first, overlaps.second))
    return (
        torch.where(is_first, first, second) + classes,
        torch.where(is_first, second, first) + classes,
    )


def keep_by_rounds(overlaps: Overlaps, scores: torch.Tensor) -> torch.Tensor:
    """
    Greedy NMS of each class: (R, P) bool of the scores (R, P), which windows are kept.

    What no undecided window overlaps from above is kept at once, and what it overlaps goes. Equal
    to going through the windows by score, since a window waits for all above it; the number of
    rounds is the length of the longest chain, about ten for thousands of windows.
    """
    step = max(1, _PAIRS // max(len(overlaps.first), 1))
    if scores.shape[1] <= step:
        return _keep_by_rounds(*oriented(overlaps, scores), scores)
    parts = [x.contiguous() for x in scores.split(step, dim=1)]
    return torch.cat([_keep_by_rounds(*oriented(overlaps, x), x) for x in parts], dim=1)


def _keep_by_rounds(
    higher: torch.Tensor, lower: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    higher, lower = higher.flatten(), lower.flatten()
    nowhere = scores.numel()
    is_kept = torch.ones(nowhere + 1, dtype=torch.bool, device=scores.device)
    is_open = is_kept
    while len(lower):
        is_waiting = torch.zeros_like(is_kept).index_fill_(0, lower, True)
        is_decided = (is_open & ~is_waiting)[higher]
        is_kept.index_fill_(0, torch.where(is_decided, lower, nowhere), False)
        is_open = is_waiting & is_kept
        live = (is_open[higher] & is_open[lower]).nonzero().squeeze(1)
        higher, lower = higher[live], lower[live]
    return is_kept[:-1].view(scores.shape)


def keep_by_batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, iou_thresh: float
) -> torch.Tensor:
    """
    (R,) bool, what Detectron2's `batched_nms` keeps of each group; in calls of whole groups that
    are too small for it to go through them one by one.

    Args:
        boxes: (R, 4) XYXY in pixels.
        scores: (R,).
        groups: (R,) int64, from 0.
        iou_thresh: boxes with a larger IoU suppress each other.
    """
    is_kept = torch.zeros_like(groups, dtype=torch.bool)
    # It moves groups apart by the largest coordinate.
    boxes = boxes.float() - boxes.amin().clamp(max=0) if len(boxes) else boxes
    order = torch.argsort(groups, stable=True)
    limit = _NMS_NUMBERS.get(boxes.device.type, _NMS_NUMBERS["cuda"]) // 4
    for start, stop in itertools.pairwise(_bounds(groups, limit)):
        some = order[start:stop]
        group = groups[some]
        keep = batched_nms(boxes[some], scores[some], group - group[0], iou_thresh)
        is_kept[some[keep]] = True
    return is_kept


def _bounds(groups: torch.Tensor, limit: int) -> list[int]:
    """Where runs of whole groups begin and end, each of `limit` members at most if it can be."""
    bounds = [0]
    end = 0
    for count in groups.unique(return_counts=True)[1].tolist():
        if end + count > bounds[-1] + limit and end > bounds[-1]:
            bounds.append(end)
        end += count
    return bounds if end == bounds[-1] else [*bounds, end]


@torch.no_grad()
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
        boxes: (R, 4) XYXY in pixels.
        scores: (R,) of one class.
        image_ids: (R,) int64.
        iou_thresh: windows with a larger IoU suppress each other.
        overlaps: of these boxes at this threshold, where several classes share them.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or threshold.
        FloatingPointError: a score that is not finite.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0]])
        >>> record = nms_record(boxes, torch.tensor([0.2, 0.9]), torch.tensor([0, 0]), 0.3)
        >>> record.is_kept, record.suppressor
        (tensor([False,  True]), tensor([ 1, -1]))
    """
    check_scores(scores, (len(boxes),))
    if overlaps is None:
        overlaps = find_overlaps(boxes, image_ids, iou_thresh)
    is_kept = keep_by_rounds(overlaps, scores[:, None]).squeeze(1)
    order = torch.argsort(scores, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    higher, lower = (x.flatten() for x in oriented(overlaps, scores[:, None]))
    chosen = (is_kept[higher] | is_kept[lower]).nonzero().squeeze(1)
    higher, lower = higher[chosen], lower[chosen]
    best = best_suppressors(rank[higher], rank[lower], is_kept[order])[rank]
    suppressor = torch.where(is_kept, -1, order[best.clamp(min=0)]) if len(order) else best
    return NMSRecord(is_kept, suppressor, rank, higher, lower)


def best_suppressors(
    higher: torch.Tensor, lower: torch.Tensor, is_kept: torch.Tensor
) -> torch.Tensor:
    """
    (n,) the place of the best kept window that overlaps a suppressed one, -1 for kept windows.

    Args:
        higher: (E,) places of windows, by falling score.
        lower: (E,) places of the windows below, which they overlap.
        is_kept: (n,) bool, by place.
    """
    best = torch.full_like(is_kept, len(is_kept), dtype=torch.int64)
    best.scatter_reduce_(0, lower, torch.where(is_kept[higher], higher, len(is_kept)), "amin")
    return torch.where(is_kept, -1, best)


def float32_limit(thresh: float, device: torch.device) -> float:
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
