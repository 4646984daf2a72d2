# SPDX-License-Identifier: Apache-2.0
"""A share of a data set that has no splits of its own."""

import hashlib
import os
from collections.abc import Sequence


def take_part(records: Sequence[dict], begin: float, end: float) -> list[dict]:
    """
    Those of the images that lie between two shares, in an order that looks random.

    The order is that of a hash of the file's name: the same at every call and on every machine, and
    a new image hardly moves the others. Copies of an image that Roboflow has changed
    (a_jpg.rf.1f3d.jpg, a_jpg.rf.77ab.jpg) stay together, so that none is tested on that another has
    trained.

    Args:
        records: Detectron2's dataset dicts.
        begin: share in [0, 1], 0 for the first image.
        end: share in [0, 1], 1 for the last image.

    Returns:
        The records from `begin` to `end`, in the order of `records`; parts that share no interval
        share no image, and together have all.
    """
    keys = [_key(record["file_name"]) for record in records]
    order = sorted(set(keys))
    rank = {key: i for i, key in enumerate(order)}
    first, last = _cut(begin, len(order)), _cut(end, len(order))
    return [x for x, key in zip(records, keys, strict=True) if first <= rank[key] < last]


def _cut(share: float, count: int) -> int:
    """Number of images before a share; one at least is on each side of it, where there are two."""
    if share in (0, 1) or count < 2:
        return round(share * count)
    return min(max(round(share * count), 1), count - 1)


def _key(file_name: str) -> str:
    source = os.path.basename(file_name).partition(".rf.")[0]
    return hashlib.sha256(source.encode()).hexdigest()
