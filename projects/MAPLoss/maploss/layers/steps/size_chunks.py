# SPDX-License-Identifier: Apache-2.0
"""Rows of different widths in padded matrices: few of them, little padding, bounded memory."""

from collections.abc import Iterator

import torch

# Rows up to each of these widths share a matrix; the last bound is above all.
_WIDTHS = (16, 64, 256, 1024, 4096, 1 << 62)


def size_chunks(
    widths: torch.Tensor, extra: torch.Tensor, limit: int
) -> Iterator[tuple[torch.Tensor, int]]:
    """
    Splits rows into chunks of at most about `limit` numbers, rows of like width together.

    A class crowded with objects does not pad the rows of all others then.

    Args:
        widths: (B,) int64, columns that each row needs.
        extra: (B,) int64, other numbers that belong to each row.
        limit: numbers of a chunk; a single row may have more.

    Yields:
        (B',) int64, rows of the chunk, and how many columns its matrix has, at least 1.

    >>> [(rows.tolist(), width) for rows, width in size_chunks(
    ...     torch.tensor([2, 99, 3, 1]), torch.zeros(4, dtype=torch.int64), 6)]
    [([0, 2], 3), ([3], 3), ([1], 99)]
    """
    if not len(widths):
        return
    device = widths.device
    bucket, order = torch.bucketize(widths, torch.tensor(_WIDTHS, device=device)).sort(stable=True)
    widest = torch.ones(len(_WIDTHS), dtype=torch.int64, device=device)
    width = widest.scatter_reduce_(0, bucket, widths[order], "amax")[bucket]
    cost = width + extra[order]
    chunk = bucket * (1 << 40) + (cost.cumsum(0) - cost).div(limit, rounding_mode="floor")
    is_start = torch.ones_like(chunk, dtype=torch.bool)
    is_start[1:] = chunk[1:] != chunk[:-1]
    starts = is_start.nonzero().squeeze(1)
    bounds, columns = torch.stack([starts, width[starts]]).tolist()
    for start, stop, column in zip(bounds, [*bounds[1:], len(widths)], columns, strict=True):
        yield order[start:stop], column
