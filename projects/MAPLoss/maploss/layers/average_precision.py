# SPDX-License-Identifier: Apache-2.0
"""
Average precision as a weighted sum over true positives.

Shape letters: D detections of one class, M true positives, G ground-truth objects (`num_gt`).
"""

from typing import NamedTuple

import torch

from .checks import check_choice, check_int64, check_scores, check_shape
from .match_detections import DIFFICULT

AP_TYPES = ("area", "voc07", "coco101")
_RECALL_LEVELS = {"voc07": 10, "coco101": 100}


class RankedDetections(NamedTuple):
    """
    Detections of one class by falling score, those matched to difficult objects left out.

    order: (D',) int64, index in the input of the detection at each rank.
    is_tp: (D',) bool, True for the best-scored match of each ground truth.
    """

    order: torch.Tensor
    is_tp: torch.Tensor


def recall_weights(
    num_gt: int, num_tp: int, ap_type: str, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """
    Weights w with `AP = sum_m w_m * max_{k >= m} precision_k` over true positives m = 1..M.

    `area` (VOC 2010 and later): 1 / G each. `voc07`: the share of the 11 recall levels 0, .1, .., 1
    that are first reached at the m-th true positive, in integers, because `np.arange(0, 1.1, .1)`
    puts .3, .6 and .7 a rounding error too high and then loses a level that was reached exactly.
    `coco101`: the same with 101 levels, but compared as pycocotools does, whose levels .35, .41,
    .47, .57, .69, .7, .82, .83, .94 and .95 are a rounding error too high: what it computes is
    COCO's AP.

    Args:
        num_gt: G, objects without difficult ones.
        num_tp: M, at most G.
        ap_type: one of AP_TYPES.
        device: of the result.

    Returns:
        (num_tp,) float64.

    Raises:
        ValueError: an unknown ap_type, more true positives than objects.
    """
    check_choice("ap_type", ap_type, AP_TYPES)
    if num_tp > num_gt:
        raise ValueError(f"num_gt: expected at least the {num_tp} objects detected, got {num_gt}")
    return recall_weights_table(torch.tensor([num_gt], device=device), ap_type, num_tp)[0]


def recall_weights_table(num_gt: torch.Tensor, ap_type: str, size: int) -> torch.Tensor:
    """
    :func:`recall_weights` of P classes: (P, size) float64, 0 beyond a class's objects.

    Args:
        num_gt: (P,) int64, objects of each class.
        ap_type: one of AP_TYPES.
        size: columns.
    """
    index = torch.arange(size, device=num_gt.device)
    if ap_type == "area":
        return (index < num_gt[:, None]) / num_gt.clamp(min=1).double()[:, None]
    levels = _RECALL_LEVELS[ap_type]
    recall = torch.arange(levels + 1, device=num_gt.device)
    num_needed = ((recall * num_gt[:, None] + levels - 1) // levels).clamp(min=1)
    if ap_type == "coco101":
        in_float = recall.double() * (1 / levels)  # 1 / 100 is the step of pycocotools' levels
        num_needed += num_needed / num_gt.clamp(min=1).double()[:, None] < in_float
    first_tp = torch.where(num_gt[:, None] > 0, num_needed - 1, size).clamp(max=size)
    counts = torch.zeros((len(num_gt), size + 1), dtype=torch.int64, device=num_gt.device)
    counts.scatter_add_(1, first_tp, torch.ones_like(first_tp))
    return counts[:, :size].double() / (levels + 1)


def rank_detections(scores: torch.Tensor, matched_gt: torch.Tensor) -> RankedDetections:
    """
    Sorts detections by falling score, ties in input order, and tells true from false positives.

    Args:
        scores: (D,) float.
        matched_gt: (D,) int64, the index of the object a detection is matched to, -1 for none, -2
            for a match with a difficult object, which leaves it out.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[matched_gt[order] != DIFFICULT]
    gt = matched_gt[order]
    objects, number = gt.unique(return_inverse=True)
    ranks = torch.arange(len(gt), device=gt.device)
    best = torch.full((len(objects),), len(gt), device=gt.device)
    best.scatter_reduce_(0, number, ranks, "amin")
    return RankedDetections(order, (gt >= 0) & (best[number] == ranks))


def check_detections(scores: torch.Tensor, matched_gt: torch.Tensor, num_gt: int) -> None:
    """Raises ValueError, TypeError or FloatingPointError that names the wrong argument."""
    check_scores(scores, ("D",))
    check_shape("matched_gt", matched_gt, (len(scores),))
    check_int64("matched_gt", matched_gt)
    if num_gt < 0:
        raise ValueError(f"num_gt: expected at least 0, got {num_gt}")
    if num_gt == 0 and bool((matched_gt >= 0).any()):
        raise ValueError("num_gt: expected at least the objects detected, got 0")
    if matched_gt.numel() and int(matched_gt.min()) < -2:
        raise ValueError(f"matched_gt: expected at least -2, got {int(matched_gt.min())}")


@torch.no_grad()
def precision_recall(
    scores: torch.Tensor, matched_gt: torch.Tensor, num_gt: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Precision and recall after each detection that counts, by falling score.

    Args:
        scores: (D,).
        matched_gt: (D,) int64, as in :func:`average_precision`.
        num_gt: objects of the class, difficult ones left out.

    Returns:
        precision, recall: (D',) float64 each; recall is nan if num_gt is 0.

    Raises:
        ValueError, TypeError, FloatingPointError: as :func:`average_precision`.

    Example:
        >>> precision, recall = precision_recall(
        ...     torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0, -1, 1]), num_gt=2
        ... )
        >>> precision.tolist(), recall.tolist()
        ([1.0, 0.5, 0.6666666666666666], [0.5, 0.5, 1.0])
    """
    check_detections(scores, matched_gt, num_gt)
    is_tp = rank_detections(scores, matched_gt).is_tp
    num_tp = is_tp.cumsum(0).double()
    rank = torch.arange(1, len(is_tp) + 1, device=scores.device, dtype=torch.float64)
    return num_tp / rank, num_tp / (num_gt if num_gt else float("nan"))


@torch.no_grad()
def average_precision(
    scores: torch.Tensor, matched_gt: torch.Tensor, num_gt: int, ap_type: str = "area"
) -> torch.Tensor:
    """
    AP of the detections of one class: sum of recall weights times interpolated precision.

    A detection matched to an object is a true positive if it is the best-scored one of that
    object, else a false positive, like those matched to none (Everingham et al., IJCV 2010,
    section 4.2; Henderson & Ferrari 2016, section 2.2). Tied scores keep their input order.

    Args:
        scores: (D,) float.
        matched_gt: (D,) int64, index of the object matched, -1 for none, -2 for a difficult object
            (the detection is ignored).
        num_gt: number of objects, difficult ones left out.
        ap_type: "area", "voc07" or "coco101".

    Returns:
        0-d tensor of the scores' dtype in [0, 1]; nan if num_gt is 0.

    Raises:
        ValueError: unknown ap_type, a wrong shape, more objects detected than num_gt.
        FloatingPointError: a score that is not finite.

    Example:
        >>> average_precision(torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0, -1, 1]), num_gt=2)
        tensor(0.8333)
    """
    check_choice("ap_type", ap_type, AP_TYPES)
    check_detections(scores, matched_gt, num_gt)
    if num_gt == 0:
        return scores.new_tensor(float("nan"))
    is_tp = rank_detections(scores, matched_gt).is_tp
    rank = is_tp.nonzero().squeeze(1) + 1
    index = torch.arange(1, len(rank) + 1, device=rank.device)
    precision = index.double() / rank
    interpolated = precision.flip(0).cummax(0).values.flip(0)
    weights = recall_weights(num_gt, len(rank), ap_type, scores.device)
    return (weights * interpolated).sum().to(scores.dtype)
