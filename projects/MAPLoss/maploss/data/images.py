# SPDX-License-Identifier: Apache-2.0
"""Images that cannot be used, told by name wherever they are read."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

# As many as 11,585 x 11,585: .4 GB where it is read, and several times that where it is resized. A
# file of a few kilobytes can claim more than any memory holds.
MAX_PIXELS = 2**27
# Of pixels. Others that Pillow knows by the first bytes, whatever the file's name, start a program
# (EPS: Ghostscript). Pillow's JPEG is MPO too.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")


class ImageError(OSError):
    """An image that is missing, cannot be read, or is of another size than annotated."""

    def reason(self) -> str:
        """One line, also where a worker of a data loader has put its traceback before it."""
        lines = str(self).strip().splitlines() or [""]
        return lines[-1].removeprefix(f"{__name__}.ImageError: ")


def read_image(file_name: str, image_format: str = "BGR") -> np.ndarray:
    """
    (H, W, 3) uint8, turned as its EXIF data say.

    Raises:
        ImageError: it cannot be read, is of none of FORMATS, or has more than MAX_PIXELS.
    """
    try:
        # As Detectron2's read_image, which opens all that Pillow knows.
        with (
            PathManager.open(file_name, "rb") as f,
            _open(f) as image,
        ):
            turned = detection_utils._apply_exif_orientation(image)
            return detection_utils.convert_PIL_to_numpy(turned, image_format)
    except Exception as error:  # Pillow's plug-ins can raise almost anything on broken bytes
        reason = " ".join(str(error).split())
        raise ImageError(f"Cannot read image {file_name}: {reason}") from error


def read_annotated_image(record: dict, image_format: str) -> np.ndarray:
    """
    As :func:`read_image`, of Detectron2's dataset dict of an image.

    Raises:
        ImageError: as there, or it has not the size that the dict says.
    """
    image = read_image(record["file_name"], image_format)
    size = record.get("width"), record.get("height")
    if None not in size and size != image.shape[1::-1]:
        raise ImageError(
            f"Image {record['file_name']}: {image.shape[1]} x {image.shape[0]} pixels, annotated "
            f"as {size[0]} x {size[1]}"
        )
    return image


@contextlib.contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """
    An image whose header only is read.

    Raises:
        ImageError: it is none, or has more than MAX_PIXELS.
    """
    try:
        with PathManager.open(path, "rb") as f, _open(f) as image:
            yield image
    except Exception as error:  # as in read_image
        raise ImageError(f"Cannot read image {path}: {' '.join(str(error).split())}") from error


def _open(file: IO[bytes]) -> Image.Image:
    """An image before its pixels are read. Raises ValueError by what the header says."""
    expected = f"expected at most {MAX_PIXELS} pixels"
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own limit, a bit higher; its warning is one below it where warnings are errors.
        raise ValueError(f"{expected} ({error})") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{expected}, got {width} x {height}")
    return image


def check_images_exist(file_names: Iterable[str]) -> None:
    """Raises ImageError with the first file that is not there."""
    found: dict[str, set[str]] = {}
    for file_name in file_names:
        folder, name = os.path.split(file_name)
        if folder not in found:  # a folder at a time: a file at a time is slow over a network
            found[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in found[folder]:
            raise ImageError(f"Image not found: {file_name}")
