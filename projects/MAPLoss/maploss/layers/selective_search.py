# SPDX-License-Identifier: Apache-2.0
"""
Windows of one image by selective search, the same at every call.

Here and not in `modeling`, because data sets make their proposal files by it too, and `data` knows
no models. An image is an array, as OpenCV takes it; `maploss.layers` does not import this file.
"""

import cv2
import numpy as np

MODES = ("fast", "quality")


def selective_search(
    image: np.ndarray,
    mode: str = "fast",
    base_k: int = 150,
    inc_k: int = 150,
    sigma: float = 0.8,
    seed: int = 0,
) -> np.ndarray:
    """
    Windows of one image by selective search (Uijlings et al., IJCV 2013), without duplicates.

    The order is that of section 3.3 of the paper, larger regions first, each position multiplied
    by a random number; but the position is by area and the number from `seed`. OpenCV's own order
    comes from the C library's generator and so differs from call to call.

    Args:
        image: (H, W, 3) uint8, BGR.
        mode: "fast" or "quality".
        base_k: granularity of the first segmentation, as in OpenCV.
        inc_k: step of the granularity.
        sigma: of the blur, in pixels.
        seed: of the order.

    Returns:
        (n, 4) float32 XYXY in pixels, x2 and y2 exclusive; best first.

    Raises:
        ValueError: an unknown mode, or an OpenCV without selective search.

    Example:
        >>> image = np.zeros((40, 60, 3), np.uint8)
        >>> image[10:30, 10:50] = 255
        >>> bool((selective_search(image) == [10, 10, 50, 30]).all(axis=1).any())
        True
    """
    search = _new_search()
    search.setBaseImage(image)
    if mode == "fast":
        search.switchToSelectiveSearchFast(base_k, inc_k, sigma)
    elif mode == "quality":
        search.switchToSelectiveSearchQuality(base_k, inc_k, sigma)
    else:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    rects = np.unique(np.asarray(search.process(), dtype=np.int64).reshape(-1, 4), axis=0)
    boxes = np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], axis=1)
    position = np.empty(len(rects))
    position[np.argsort(-rects[:, 2] * rects[:, 3], kind="stable")] = np.arange(1, len(rects) + 1)
    rank = position * np.random.default_rng(seed).random(len(rects))
    return boxes[np.argsort(rank, kind="stable")].astype(np.float32)


def reduced_search(image: np.ndarray, longer_side: int) -> np.ndarray:
    """
    Windows of one image by selective search in fast mode, made smaller first if it is large.

    Args:
        image: (H, W, 3) uint8, BGR.
        longer_side: the search is on an image whose longer side has at most so many pixels. Its
            time grows with the area.

    Returns:
        (n, 4) float32 XYXY in pixels of `image`, x2 and y2 exclusive; best first.

    Raises:
        ValueError: an OpenCV without selective search.
    """
    height, width = image.shape[:2]
    scale = min(1.0, longer_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if scale < 1:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    factors = np.array([width / size[0], height / size[1]] * 2, dtype=np.float32)
    return selective_search(np.ascontiguousarray(image)) * factors


def _new_search() -> "cv2.ximgproc.segmentation.SelectiveSearchSegmentation":
    if not hasattr(cv2, "ximgproc"):
        raise ValueError(
            f"selective search: expected OpenCV with ximgproc, got OpenCV {cv2.__version__} "
            "without it. Replace it by the contrib build, which has all of it and more: pip "
            "uninstall -y opencv-python opencv-python-headless; then pip install "
            "opencv-contrib-python-headless. A detector with an RPN needs no selective search"
        )
    return cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
