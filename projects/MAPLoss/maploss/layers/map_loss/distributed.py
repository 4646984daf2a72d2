# SPDX-License-Identifier: Apache-2.0
"""
The detections of all processes in one ranking: what is sent, and what comes back.

Shape letters: N processes, n detections of this one, P classes that are ranked. For each detection
8 bytes are sent (16 if scores are float64), its score and a code of the object that it matches. Its
gradient comes back in the scores' dtype, which the gradient of the loss has in any case: 4 bytes
(8). Windows that take no part and scores of classes without an object in any process stay where
they are.
"""

import zlib
from typing import NamedTuple

import torch
import torch.distributed as dist

from ..match_detections import DIFFICULT
from .detections import Detections
from .settings import MAPLossSettings

Group = dist.ProcessGroup


def all_gather(own: torch.Tensor, group: Group) -> torch.Tensor:
    """(N, ...) of all processes, from (...) of each; all of one shape."""
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, own.contiguous(), group=group)
    return torch.stack(rows)


def check_alike(scores: torch.Tensor, settings: MAPLossSettings, group: Group) -> None:
    """Raises ValueError, in all processes, if these differ: their messages would not fit."""
    settings_code = zlib.crc32(repr(settings).encode())
    header = [scores.shape[1], scores.element_size(), settings_code]
    columns = all_gather(torch.tensor(header, device=scores.device), group).t().tolist()
    names = "scores: expected one number of classes", "scores: expected one size of a number"
    for name, column in zip((*names, "settings: expected the same"), columns, strict=True):
        if len(set(column)) > 1:
            raise ValueError(f"{name} in all processes, got {column}")


def owners(num_classes: int, group: Group) -> torch.Tensor:
    """(P,) int64, the process that ranks each class where they share the classes out."""
    return torch.arange(num_classes) % dist.get_world_size(group)


class Exchange(NamedTuple):
    """
    Which detections went where.

    Args:
        sent: detections in the order in which they were sent, as indices (of this process).
        num_own: n.
        num_sent, num_received: to and from each of the N processes.
        dtype: of the scores.
    """

    sent: torch.Tensor
    num_own: int
    num_sent: list[int]
    num_received: list[int]
    dtype: torch.dtype


def exchange_detections(
    own: Detections,
    num_classes: int,
    num_overlaps: int,
    num_objects: list[int],
    shares_classes: bool,
    group: Group,
) -> tuple[Detections, Exchange]:
    """
    Sends each detection to the processes that rank its class, and gets theirs.

    Args:
        own: classes (n,) not falling, in [0, P).
        num_classes: P.
        num_overlaps: T.
        num_objects: of each process.
        shares_classes: process i ranks the classes c with c mod N = i; False: each ranks all.
        group: of N processes.

    Returns:
        Those of process 0, of process 1, .., objects counted over all; and for
        :func:`return_gradient`.
    """
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    counts = torch.zeros(num_classes, dtype=torch.int64, device=own.scores.device)
    counts.index_add_(0, own.classes, torch.ones_like(own.classes))
    of_processes = all_gather(counts, group).cpu()  # (N, P)
    owner = owners(num_classes, group)
    is_ranked_by = owner == torch.arange(world)[:, None]  # (N, P)
    if not shares_classes:
        is_ranked_by = torch.ones_like(is_ranked_by)
    num_sent = (is_ranked_by * of_processes[rank]).sum(1).tolist()
    ranked = is_ranked_by[rank].nonzero().squeeze(1)
    mine = of_processes[:, ranked]
    num_received = mine.sum(1).tolist()
    if shares_classes:
        sent = torch.argsort(owner.to(own.classes.device)[own.classes], stable=True)
    else:
        sent = torch.arange(len(own.scores), device=own.scores.device).repeat(world)
    packed = _pack(own, num_overlaps)[sent]
    received = packed.new_empty((sum(num_received), 2))
    dist.all_to_all_single(received, packed, num_received, num_sent, group=group)
    detections = _unpack(
        received,
        ranked.repeat(world).repeat_interleave(mine.flatten()),
        own.scores.dtype,
        num_overlaps,
    )
    first = torch.tensor([0, *num_objects[:-1]]).cumsum(0)
    first = first.repeat_interleave(torch.tensor(num_received)).to(received.device)
    exchange = Exchange(sent, len(own.scores), num_sent, num_received, own.scores.dtype)
    return detections.shift_objects(first), exchange


def return_gradient(gradient: torch.Tensor, exchange: Exchange, group: Group) -> torch.Tensor:
    """
    (n, ...) float64, what all processes say of this one's detections.

    Each says it in the scores' dtype; the sum over processes is in float64.

    Args:
        gradient: (.., ...) float64, of the detections received, in the order of the processes.
        exchange: which these were.
        group: the same.
    """
    shared = gradient.to(exchange.dtype).contiguous()
    received = shared.new_empty((sum(exchange.num_sent), *shared.shape[1:]))
    splits = exchange.num_sent, exchange.num_received
    dist.all_to_all_single(received, shared, *splits, group=group)
    summed = gradient.new_zeros((exchange.num_own, *shared.shape[1:]))
    return summed.index_add_(0, exchange.sent, received.to(gradient.dtype))


def _pack(own: Detections, num_overlaps: int) -> torch.Tensor:
    """(n, 2) integers of the scores' size."""
    dtype = {4: torch.int32, 8: torch.int64}[own.scores.element_size()]
    code = ((own.objects - DIFFICULT) * (num_overlaps + 1) + own.levels) * 2 + own.is_kept.long()
    return torch.stack([own.scores.view(dtype), code.to(dtype)], dim=1)


def _unpack(
    packed: torch.Tensor, classes: torch.Tensor, dtype: torch.dtype, num_overlaps: int
) -> Detections:
    code = packed[:, 1].long()
    levels = (code // 2) % (num_overlaps + 1)
    objects = code // (2 * (num_overlaps + 1)) + DIFFICULT
    return Detections(
        packed[:, 0].contiguous().view(dtype),
        classes.to(packed.device),
        objects,
        levels,
        code % 2 == 1,
    )
