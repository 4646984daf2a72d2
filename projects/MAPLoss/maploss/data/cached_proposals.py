# SPDX-License-Identifier: Apache-2.0
"""Windows of data sets that have none: made at the first need, then read from the cache."""

import logging
import os
import re

from .cache_root import cache_root
from .make_proposals import hash_images, make_proposals

logger = logging.getLogger(__name__)

# An exported detector searches images as it sees them, which are not large either.
_METHOD, _MAX_WINDOWS = "reduced", 2000


def cached_proposals(name: str, records: list[dict]) -> str:
    """
    Proposal file of a registered data set, by selective search on images of at most 400 pixels.

    Up to 2000 windows an image. The file's name changes with the data set and its images: other
    images never get its windows. Making it takes about half a second an image and core;
    stopped or killed, the next call goes on.

    Args:
        name: of the data set.
        records: its dataset dicts.

    Raises:
        ValueError: it has to be made, and OpenCV has no selective search.
        OSError: an image that cannot be read, or another process that makes the same file.
    """
    stem = re.sub(r"[^\w-]+", "_", name)
    file = f"{stem}-{_METHOD}-{_MAX_WINDOWS}-{hash_images(records)[:12]}.npz"
    path = os.path.join(cache_root(), "proposals", file)
    if not os.path.isfile(path):
        logger.info(f"Data set {name!r} has no windows: making them by selective search -> {path}")
        make_proposals(records, path, _METHOD, _MAX_WINDOWS)
    return path
