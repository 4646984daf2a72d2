# SPDX-License-Identifier: Apache-2.0
"""Recall weights of all classes at once. Shape letter: P classes."""

import torch

_RECALL_LEVELS = {"voc07": 10, "coco101": 100}


def recall_weights_table(num_gt: torch.Tensor, ap_type: str, size: int) -> torch.Tensor:
    """
    Row p is `recall_weights(num_gt[p], size, ap_type)`, see there, with zeros from num_gt[p] on.

    Args:
        num_gt: (P,) int64, objects of each class.
        ap_type: "area", "voc07" or "coco101".
        size: number of columns.

    Returns:
        (P, size) float64.

    >>> recall_weights_table(torch.tensor([2, 0, 1]), "area", 2)
    tensor([[0.5000, 0.5000],
            [0.0000, 0.0000],
            [1.0000, 0.0000]], dtype=torch.float64)
    """
    num_gt = num_gt[:, None]
    if ap_type == "area":
        is_object = torch.arange(size, device=num_gt.device) < num_gt
        return is_object / num_gt.clamp(min=1).double()
    levels = _RECALL_LEVELS[ap_type]
    recall = torch.arange(levels + 1, device=num_gt.device)
    num_needed = ((recall * num_gt + levels - 1) // levels).clamp(min=1)
    if ap_type == "coco101":
        in_float = recall.double() * (1 / levels)  # 1 / 100 is the step of pycocotools' levels
        num_needed += num_needed.double() / num_gt.clamp(min=1) < in_float
    # Levels that are reached beyond the last column go to one that is cut off.
    first_tp = torch.where(num_needed <= num_gt, num_needed - 1, size).clamp(max=size)
    counts = torch.zeros(len(num_gt), size + 1, dtype=torch.float64, device=num_gt.device)
    counts.scatter_add_(1, first_tp, torch.ones_like(first_tp, dtype=torch.float64))
    return counts[:, :size] / (levels + 1)
