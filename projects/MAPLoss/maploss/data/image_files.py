# SPDX-License-Identifier: Apache-2.0
"""Images of a folder, and their sizes without decoding them."""

import functools
import os
from collections.abc import Iterator

from .images import ImageError, open_image

# In lower case; a file that is named otherwise is not taken for an image.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# EXIF's orientations that exchange the sides.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


def is_image(name: str) -> bool:
    """Whether a file is named as an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def list_images(folder: str) -> list[str]:
    """Paths of the images in a folder and below, sorted. Hidden folders are left out."""
    return sorted(_walk(folder))


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(x for x in folders if not x.startswith("."))
        yield from (os.path.join(parent, x) for x in names if is_image(x) and x[0] != ".")


def image_size(path: str) -> tuple[int, int]:
    """
    Width and height in pixels, turned as the EXIF data say; read once for each file.

    Raises:
        ImageError: no such file, or no image.
    """
    try:
        return _image_size(path, os.stat(path).st_mtime_ns)
    except FileNotFoundError:
        raise ImageError(f"Image not found: {path}") from None


@functools.cache
def _image_size(path: str, _: int) -> tuple[int, int]:
    with open_image(path) as image:
        width, height = image.size
        is_turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
    return (height, width) if is_turned else (width, height)
