# SPDX-License-Identifier: Apache-2.0
"""Ground-truth boxes that cannot be used as they are: clipped or dropped, and counted."""

import logging
from collections.abc import Sequence

from ..utils.warn_once import warn_once

logger = logging.getLogger(__name__)

# Rounded coordinates, such as those of YOLO's files, reach outside by less than this many pixels.
TOLERANCE = 0.5


class BoxFitter:
    """Fits boxes into their images and counts for one warning what had to be done."""

    def __init__(self) -> None:
        self.clipped: list[str] = []
        self.dropped: list[str] = []

    def fit(
        self, box: Sequence[float], width: int, height: int, image_id: object
    ) -> list[float] | None:
        """
        The part of a box that lies in its image; half a pixel too much is no fault.

        Args:
            box: XYXY in pixels.
            width: of the image.
            height: of the image.
            image_id: told in the warning.

        Returns:
            XYXY, or None where nothing is left: a box of zero area or outside altogether.
        """
        limits = [width, height] * 2
        fitted = [min(max(v, 0.0), limit) for v, limit in zip(box, limits, strict=True)]
        if fitted[2] <= fitted[0] or fitted[3] <= fitted[1]:
            self.dropped.append(str(image_id))
            return None
        if overhang(box, width, height) > TOLERANCE:
            self.clipped.append(str(image_id))
        return fitted

    def warn(self, source: str) -> None:
        """One warning for all boxes of `source`, a file, if any had to be changed."""
        if self.clipped or self.dropped:
            examples = ", ".join(dict.fromkeys(self.dropped + self.clipped))
            warn_once(
                logger,
                f"{source}: {len(self.clipped)} boxes reached outside their image and were "
                f"clipped, {len(self.dropped)} of zero area were dropped ({examples[:200]})",
            )


def overhang(box: Sequence[float], width: int, height: int) -> float:
    """By how many pixels a box reaches outside its image at most; 0 for one that does not."""
    x1, y1, x2, y2 = box
    return max(0.0, -x1, -y1, x2 - width, y2 - height)
