# SPDX-License-Identifier: Apache-2.0
"""Values that come more than once."""

from collections import Counter
from collections.abc import Hashable, Iterable


def find_duplicates(values: Iterable[Hashable]) -> list:
    """The values that come more than once, each once, in their order."""
    return [x for x, count in Counter(values).items() if count > 1]
