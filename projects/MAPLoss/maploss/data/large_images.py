# SPDX-License-Identifier: Apache-2.0
"""A minibatch in which one image makes all others cost as much as itself."""

import logging
import statistics
from collections.abc import Sequence

from ..utils.warn_once import warn_once

logger = logging.getLogger(__name__)

# Times the area of the median.
_FAR_LARGER = 4.0


def warn_of_large_images(batch: Sequence[dict]) -> None:
    """
    One warning in a run where an image is more than four times as large as the median.

    All images of a minibatch are padded to the largest.

    Args:
        batch: of the mapper; each with `image`, (C, H, W), or `view`, with height and width.
            Those of other mappers, which have neither, do not count.
    """
    batch = [x for x in batch if "image" in x or "view" in x]
    if not batch:
        return
    sizes = [_size(x) for x in batch]
    areas = [height * width for height, width in sizes]
    median = statistics.median(areas)
    i = max(range(len(areas)), key=areas.__getitem__)
    if areas[i] > _FAR_LARGER * median:
        height, width = sizes[i]
        warn_once(
            logger,
            f"Image {batch[i].get('file_name', '')}: {width} x {height} pixels, "
            f"{areas[i] / median:.1f} times the median of its minibatch, whose images are all "
            "padded to the largest; this costs time and memory. INPUT.MIN_SIZE_TRAIN and "
            "MAX_SIZE_TRAIN resize images",
            key="large images",
        )


def _size(sample: dict) -> tuple[int, int]:
    if "image" in sample:
        return tuple(sample["image"].shape[-2:])
    return sample["view"].height, sample["view"].width
