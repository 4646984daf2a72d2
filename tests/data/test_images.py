# SPDX-License-Identifier: Apache-2.0
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from maploss.data import images
from maploss.data.images import MAX_PIXELS, ImageError, read_image
from PIL import EpsImagePlugin, Image


def write_png(path, width, height):
    """Of any size in its header, with a few bytes behind it."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + check
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("are_warnings_errors", [False, True])
@pytest.mark.parametrize("size", [(12000, 11900), (20000, 20000), (2**31 - 1, 1)])
def test_a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded(
    tmp_path, size, are_warnings_errors
):
    path = write_png(tmp_path / "x.png", *size)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error" if are_warnings_errors else "ignore")
            message = rf"Cannot read image .*x\.png: expected at most {MAX_PIXELS} pixels"
            with pytest.raises(ImageError, match=message) as error:
                read_image(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e6
    assert str(size[0] * size[1]) in str(error.value) or f"{size[0]} x {size[1]}" in str(
        error.value
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_limit_is_of_pixels_however_the_image_is_turned(tmp_path, monkeypatch, orientation):
    path = str(tmp_path / "x.jpg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, exif=exif)
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    assert read_image(path).shape == ((20, 30, 3) if orientation == 1 else (30, 20, 3))
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(ImageError, match=r"x\.jpg: expected at most 599 pixels, got 30 x 20"):
        read_image(path)


def test_a_file_that_is_code_for_ghostscript_is_no_image(tmp_path, monkeypatch):
    path = tmp_path / "x.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    calls = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: calls.append(args))
    with pytest.raises(ImageError, match=r"Cannot read image .*x\.jpg: cannot identify"):
        read_image(str(path))
    assert not calls


@pytest.mark.parametrize(
    "name", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "MPO", "JPEG2000"]
)
def test_images_of_pixels_are_read_whatever_their_name(tmp_path, name):
    path = tmp_path / "x.jpg"
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., 2] = 250
    options = (
        {"save_all": True, "append_images": [Image.fromarray(pixels)]} if name == "MPO" else {}
    )
    Image.fromarray(pixels).save(path, format=name, **options)
    found = read_image(str(path), "RGB")
    assert found.shape == (20, 30, 3)
    assert np.abs(found.astype(int) - pixels).max() < 10
