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
        order = torch.argsort(keys, stable=True)
        self.values = values[order]
        self.counts = torch.bincount(keys, minlength=num_keys)
        self.starts = self.counts.cumsum(0) - self.counts

    def expand(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        All values of some keys.

        Args:
            keys: (B,) int64 in [0, num_keys).

        Returns:
            (C,) position in `keys`, not falling, and (C,) value.
        """
        counts = self.counts[keys]
        source = torch.repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        within = torch.arange(len(source), device=keys.device) - first[source]
        return source, self.values[self.starts[keys][source] + within]


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
