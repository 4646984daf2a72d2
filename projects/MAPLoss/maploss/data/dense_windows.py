# SPDX-License-Identifier: Apache-2.0
"""Windows of one image over scale, position and aspect ratio, whatever the image shows."""

import numpy as np

# Square roots of the areas, in pixels: from 20 on, each twice the area of the one before.
_SMALLEST, _GROWTH = 20.0, 2**0.5
_ASPECT_RATIOS = (0.5, 1.0, 2.0)
# Neighbours are a quarter of a window apart: the nearest overlaps any box of its shape by IoU .6.
_STRIDE = 0.25


def dense_windows(width: int, height: int, seed: int = 0) -> np.ndarray:
    """
    A dense set of windows (Fast R-CNN, section 5.5: about 45,000 for an image of VOC).

    The paper does not say how they are laid out. Here: areas from 20 x 20 pixels to the image's,
    doubling; aspect ratios 1:2, 1:1 and 2:1; a quarter of the window from one to the next, spread
    so that the borders are reached. In random order: the first n are a fair sample.

    Args:
        width, height: of the image, in pixels. seed: of the order.

    Returns:
        (n, 4) float32 XYXY in pixels, x2 and y2 exclusive. One is the image itself.
    """
    parts = []
    size = _SMALLEST
    while size <= max(width, height):
        for ratio in _ASPECT_RATIOS:
            w, h = size / ratio**0.5, size * ratio**0.5
            if w <= width and h <= height:
                x, y = _starts(width, w), _starts(height, h)
                x1, y1 = (z.ravel() for z in np.meshgrid(x, y))
                parts.append(np.stack([x1, y1, x1 + w, y1 + h], axis=1))
        size *= _GROWTH
    parts.append(np.array([[0.0, 0.0, width, height]]))
    windows = np.concatenate(parts)
    return np.random.default_rng(seed).permutation(windows).astype(np.float32)


def _starts(length: int, side: float) -> np.ndarray:
    """Where windows of one side begin, from border to border."""
    count = int(np.ceil((length - side) / (_STRIDE * side))) + 1
    return np.linspace(0, length - side, count)
