# SPDX-License-Identifier: Apache-2.0
"""Images as a model sees them, named without being read: at a size, perhaps mirrored."""

from typing import NamedTuple

import numpy as np
from detectron2.data import transforms as T

_TRANSFORMS = (T.NoOpTransform, T.ResizeTransform, T.HFlipTransform)


class View(NamedTuple):
    """An image file, resized to `height` x `width` pixels and then perhaps mirrored."""

    file_name: str
    height: int
    width: int
    is_flipped: bool = False

    def render(self, image: np.ndarray) -> np.ndarray:
        """The view, of the (H, W, C) pixels of its file."""
        height, width = image.shape[:2]
        if (height, width) != (self.height, self.width):
            image = T.ResizeTransform(height, width, self.height, self.width).apply_image(image)
        return T.HFlipTransform(self.width).apply_image(image) if self.is_flipped else image


class UnreadInput(T.AugInput):
    """An input of augmentations without pixels: they change its size, and mirror it."""

    def __init__(self, height: int, width: int) -> None:
        self._set_size(height, width)
        self.is_flipped = False

    def _set_size(self, height: int, width: int) -> None:
        self.image = np.broadcast_to(np.uint8(0), (height, width, 3))  # takes no memory

    def transform(self, tfm: T.Transform) -> None:
        """
        Follows one transform.

        Raises:
            ValueError: it changes more than the size and the direction.
        """
        if not isinstance(tfm, _TRANSFORMS):
            raise ValueError(
                "augmentations of images that are not read: expected resizing and horizontal "
                f"flips, got {type(tfm).__name__}"
            )
        if isinstance(tfm, T.ResizeTransform):
            self._set_size(tfm.new_h, tfm.new_w)
        self.is_flipped ^= isinstance(tfm, T.HFlipTransform)


def image_size(record: dict) -> tuple[int, int]:
    """
    Height and width of an image, as its record says.

    Raises:
        ValueError: it does not.
    """
    if None in (record.get("width"), record.get("height")):
        raise ValueError(
            f"Image {record['file_name']}: expected width and height in its record, since it is "
            "not read with DATALOADER.FEATURE_CACHE, got none"
        )
    return record["height"], record["width"]


def view_of(record: dict, *, min_size: int, max_size: int, is_flipped: bool) -> View:
    """
    What Detectron2's resizing and flipping make of an image.

    Args:
        record: Detectron2's dataset dict, with width and height.
        min_size: of the shorter side in pixels; 0 leaves the image as it is.
        max_size: of the longer side.
        is_flipped: mirrored.
    """
    unread = UnreadInput(*image_size(record))
    T.ResizeShortestEdge((min_size,), max_size, "choice")(unread)
    height, width = unread.image.shape[:2]
    return View(record["file_name"], height, width, is_flipped)
