# SPDX-License-Identifier: Apache-2.0
"""
The detections of all processes as one minibatch: what is sent, and what comes back.

Shape letters: N processes, D detections of this one, K classes. For each detection 8 bytes are sent
(16 if scores are float64): its score and the object that it matches. Windows that NMS hides and
scores of classes without an object in any process stay where they are.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from .detection_lists import DetectionLists

Group = dist.ProcessGroup
# Beside this in matched_gt, in what is sent, stand windows that NMS hides.
_HIDDEN = -3


def gather_num_gt(
    num_gt: torch.Tensor, num_objects: int, group: Group
) -> tuple[torch.Tensor, list[int]]:
    """(N, K) num_gt and the N numbers of objects of all processes, from (K,) and one of each."""
    rows = _gather(torch.cat([num_gt, num_gt.new_tensor([num_objects])]), group)
    return rows[:, :-1], rows[:, -1].tolist()


def gather_detections(
    own: DetectionLists, num_gt: torch.Tensor, num_objects: Sequence[int], group: Group
) -> list[DetectionLists]:
    """
    The N lists of all processes; what is said of objects is from :func:`gather_num_gt`.

    Raises:
        ValueError: processes differ in the scores' dtype.
    """
    index_type = {4: torch.int32, 8: torch.int64}[own.scores.element_size()]
    counts = torch.tensor([*own.counts, own.scores.element_size()], device=own.scores.device)
    *all_counts, sizes = _gather(counts, group).t().tolist()
    if len(set(sizes)) > 1:
        raise ValueError(f"scores: expected one dtype in all processes, got {sizes} bytes each")
    totals = [sum(column) for column in zip(*all_counts, strict=True)]
    # Detections that are kept have matched_gt as it is, hidden ones -3, -4, ..
    code = torch.where(own.is_kept, own.matched_gt, _HIDDEN - own.matched_gt)
    packed = own.scores.new_zeros((2, max(totals)), dtype=index_type)
    packed[0, : len(code)] = own.scores.view(index_type)
    packed[1, : len(code)] = code
    lists = []
    for i, (row, total) in enumerate(zip(_gather(packed, group), totals, strict=True)):
        codes = row[1, :total].long()
        is_kept = codes > _HIDDEN
        lists.append(
            DetectionLists(
                row[0, :total].contiguous().view(own.scores.dtype),
                torch.where(is_kept, codes, _HIDDEN - codes),
                is_kept,
                [column[i] for column in all_counts],
                num_gt[i],
                num_objects[i],
            )
        )
    return lists


def sum_pushes(pushes: list[torch.Tensor], rank: int, group: Group) -> torch.Tensor:
    """
    What the others push the detections of this process, (D,).

    Args:
        pushes: of each process's detections, what this process pushes them. rank: of this one.
    """
    total = torch.cat(pushes)
    dist.all_reduce(total, group=group)
    return total.split([len(x) for x in pushes])[rank]


def _gather(own: torch.Tensor, group: Group) -> torch.Tensor:
    """(N, ...) of all processes, from (...) of each; all of one shape."""
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, own.contiguous(), group=group)
    return torch.stack(rows)
