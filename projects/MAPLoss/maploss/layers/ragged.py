# SPDX-License-Identifier: Apache-2.0
"""Lists of different lengths, one per key: a small CSR table."""

import torch


class RaggedIndex:
    """
    Values by key; the order within a key is kept.

    Args:
        keys: (E,) int64 in [0, num_keys).
        values: (E,) int64.
        num_keys: how many keys there may be.

    Example:
        >>> index = RaggedIndex(torch.tensor([2, 0, 2]), torch.tensor([7, 8, 9]), num_keys=3)
        >>> index.expand(torch.tensor([2, 1, 0]))
        (tensor([0, 0, 2]), tensor([7, 9, 8]))
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, num_keys: int) -> None:
        self.values = values[torch.argsort(keys, stable=True)]
        self.counts = torch.zeros(num_keys, dtype=torch.int64, device=keys.device)
        self.counts.index_add_(0, keys, torch.ones_like(keys))
        self.starts = self.counts.cumsum(0) - self.counts

    def expand(
        self, keys: torch.Tensor, where: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        All values of some keys.

        Args:
            keys: (B,) int64 in [0, num_keys).
            where: (B,) bool, False for keys whose values are not asked for; None for all.

        Returns:
            (C,) position in `keys`, not falling, and (C,) value.
        """
        counts = self.counts[keys]
        if where is not None:
            counts = counts * where
        source, index = expand_ranges(self.starts[keys], counts)
        return source, self.values[index]


def expand_ranges(starts: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The numbers starts[b], starts[b] + 1, .. of each range, counts[b] of them.

    Args:
        starts: (B,) int64.
        counts: (B,) int64, 0 or more.

    Returns:
        (C,) position in `starts`, not falling, and (C,) number.

    Example:
        >>> expand_ranges(torch.tensor([5, 0, 2]), torch.tensor([2, 0, 1]))
        (tensor([0, 0, 2]), tensor([5, 6, 2]))
    """
    source = torch.repeat_interleave(counts)
    offset = starts - (counts.cumsum(0) - counts)
    return source, torch.arange(len(source), device=starts.device) + offset[source]


def isin_sorted(queries: torch.Tensor, sorted_keys: torch.Tensor) -> torch.Tensor:
    """
    Which numbers stand in a sorted list.

    Args:
        queries: (B,) int64.
        sorted_keys: (C,) int64, rising.

    Returns:
        (B,) bool.

    Example:
        >>> isin_sorted(torch.tensor([5, 1, 3]), torch.tensor([1, 2, 5]))
        tensor([ True,  True, False])
    """
    if not len(sorted_keys):
        return torch.zeros_like(queries, dtype=torch.bool)
    at = torch.searchsorted(sorted_keys, queries).clamp(max=len(sorted_keys) - 1)
    return sorted_keys[at] == queries
