# SPDX-License-Identifier: Apache-2.0
"""
Draws one image of the shapes data set: objects of a few classes on a cluttered background.

Everything is drawn `_SCALE` times larger with hard edges and then averaged down, so that edges are
smooth and one mask per object says which of its pixels are seen.
"""

from typing import NamedTuple

import cv2
import numpy as np

CLASS_NAMES = ("circle", "square", "triangle", "star")
MIN_VISIBLE = 0.4  # an object less visible is not drawn at all: nothing is left unannotated
MIN_INSIDE = 0.8  # share of an object's area that lies in the image
DIFFICULT_VISIBLE = 0.7  # share of its pixels seen, below which an object is difficult
DIFFICULT_SIZE = 12  # longer side in pixels, below which an object is difficult

_SCALE = 3
_SIZES = ((128, 160), (160, 128), (128, 144), (144, 128), (128, 128))  # (H, W)
_TINY_SHARE = 0.06


class ShapeObject(NamedTuple):
    """One object: class index, box (4,) XYXY of its visible pixels, difficult or not."""

    class_id: int
    box: tuple[float, float, float, float]
    difficult: bool


def render_image(seed: tuple[int, ...]) -> tuple[np.ndarray, list[ShapeObject]]:
    """
    Draws an image and its objects; the same seed gives the same pixels.

    Returns:
        (H, W, 3) uint8 BGR, the shorter side 128 pixels, and 1 to 5 objects.
    """
    rng = np.random.default_rng(seed)
    height, width = _SIZES[rng.integers(len(_SIZES))]
    canvas = _background(rng, height * _SCALE, width * _SCALE)
    for _ in range(rng.integers(3, 9)):
        _draw_distractor(rng, canvas)
    masks: list[np.ndarray] = []
    class_ids: list[int] = []
    for _ in range(rng.integers(1, 6)):
        _add_object(rng, canvas, masks, class_ids)
    if rng.random() < 0.35:
        _add_occluder(rng, canvas, masks)
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    image = _add_noise(rng, image)
    return image, [_describe(mask, c) for mask, c in zip(masks, class_ids, strict=True)]


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two colours mixed by smooth noise, at times with faint stripes."""
    first, second = (_random_color(rng, max_saturation=0.45) for _ in range(2))
    grid = rng.random((rng.integers(2, 5), rng.integers(2, 6))).astype(np.float32)
    mix = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(
        rng.random((height // 16, width // 16)).astype(np.float32),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )
    mix = 0.65 * mix + 0.25 * fine
    if rng.random() < 0.4:
        angle = rng.uniform(0, np.pi)
        period = rng.uniform(7, 20) * _SCALE
        y, x = np.mgrid[:height, :width]
        mix = mix + 0.12 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    mix = np.clip(mix, 0, 1)[..., None]
    return ((1 - mix) * first + mix * second).clip(0, 255).astype(np.uint8)


def _random_color(rng: np.random.Generator, max_saturation: float = 1.0) -> np.ndarray:
    """(3,) float BGR; hue and value even, saturation from a quarter up to all of the maximum."""
    saturation = max_saturation * rng.uniform(0.25, 1.0) ** 0.5
    hsv = np.array([[[rng.uniform(0, 360), saturation, rng.uniform(0.3, 1.0)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float64) * 255


def _contrasting_color(
    rng: np.random.Generator, region: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """A colour that differs from what lies under the mask."""
    beneath = region[mask > 0].mean(axis=0)
    for _ in range(20):
        color = _random_color(rng)
        if np.linalg.norm(color - beneath) > 95:
            break
    return color


def _shape_polygon(rng: np.random.Generator, class_id: int) -> np.ndarray:
    """(n, 2) vertices within the unit circle, turned and slightly stretched."""
    name = CLASS_NAMES[class_id]
    if name == "circle":
        angles, radii = np.linspace(0, 2 * np.pi, 72, endpoint=False), np.ones(72)
    elif name == "star":
        angles, radii = np.linspace(0, 2 * np.pi, 10, endpoint=False), np.tile([1.0, 0.45], 5)
    else:
        corners = {"square": 4, "triangle": 3}[name]
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radii = np.ones(corners)
    angles = angles + rng.uniform(0, 2 * np.pi)
    points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points * rng.uniform(0.85, 1.0, size=2)


def _fill(mask_shape: tuple[int, int], points: np.ndarray) -> np.ndarray:
    mask = np.zeros(mask_shape, np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255)
    return mask


def _visible(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of the final image of which the mask covers at least half."""
    size = (mask.shape[1] // _SCALE, mask.shape[0] // _SCALE)
    return cv2.resize(mask, size, interpolation=cv2.INTER_AREA) >= 128


def _add_object(
    rng: np.random.Generator, canvas: np.ndarray, masks: list[np.ndarray], class_ids: list[int]
) -> None:
    """Draws an object on top, where it leaves enough of those below; else draws none."""
    height, width = canvas.shape[:2]
    for _ in range(20):
        class_id = int(rng.integers(len(CLASS_NAMES)))
        is_tiny = rng.random() < _TINY_SHARE
        radius = rng.uniform(4.0, 5.5) if is_tiny else np.exp(rng.uniform(np.log(10), np.log(34)))
        center = rng.uniform([0, 0], [width, height])
        points = center + radius * _SCALE * _shape_polygon(rng, class_id)
        mask = _fill((height, width), points)
        # Cut at the border much more, a triangle would be a square.
        if (mask > 0).sum() < MIN_INSIDE * cv2.contourArea(points.astype(np.float32)):
            continue
        if all(_keeps_visible(m, mask) for m in masks):
            break
    else:
        return
    for i, other in enumerate(masks):
        masks[i] = np.where((mask > 0) & (other == 255), 128, other).astype(np.uint8)
    _paint(rng, canvas, mask)
    # 255 where the object is seen, 128 where something covers it.
    masks.append(mask)
    class_ids.append(class_id)


def _keeps_visible(mask: np.ndarray, cover: np.ndarray) -> bool:
    return ((mask == 255) & (cover == 0)).sum() >= MIN_VISIBLE * (mask > 0).sum()


def _add_occluder(rng: np.random.Generator, canvas: np.ndarray, masks: list[np.ndarray]) -> None:
    """Draws a bar or blob of no class over the image, where it leaves enough of each object."""
    height, width = canvas.shape[:2]
    for _ in range(10):
        if rng.random() < 0.5:
            mask = np.zeros((height, width), np.uint8)
            ends = rng.uniform([0, 0], [width, height], size=(2, 2)).astype(int)
            thickness = int(rng.uniform(3, 7) * _SCALE)
            cv2.line(mask, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 255, thickness)
        else:
            mask = _fill((height, width), _blob(rng, width, height, rng.uniform(7, 16)))
        if all(_keeps_visible(m, mask) for m in masks):
            break
    else:
        return
    for i, other in enumerate(masks):
        masks[i] = np.where((mask > 0) & (other == 255), 128, other).astype(np.uint8)
    _paint(rng, canvas, mask)


def _paint(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray) -> None:
    """Fills the mask with a colour that falls off to one side; at times with an outline."""
    x0, y0, width, height = cv2.boundingRect(mask)
    margin = 2 * _SCALE
    rows = slice(max(y0 - margin, 0), y0 + height + margin)
    cols = slice(max(x0 - margin, 0), x0 + width + margin)
    region, mask = canvas[rows, cols], mask[rows, cols]
    color = _contrasting_color(rng, region, mask)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (x * np.cos(angle) + y * np.sin(angle))[mask > 0]
    shade = 1 - rng.uniform(0.0, 0.3) * (ramp - ramp.min()) / max(np.ptp(ramp), 1)
    region[mask > 0] = (color * shade[:, None]).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        line = np.zeros_like(mask)
        cv2.drawContours(line, contours, -1, 255, 2 * _SCALE)
        region[(line > 0) & (mask > 0)] = (color * rng.choice([0.45, 0.6])).astype(np.uint8)


def _blob(rng: np.random.Generator, width: int, height: int, radius: float) -> np.ndarray:
    """(40, 2) contour of an irregular blob that resembles no class."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radii = np.ones(40)
    for k in range(2, 5):
        radii += rng.uniform(0.1, 0.3) * np.sin(k * angles + rng.uniform(0, 2 * np.pi))
    points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points *= radius * _SCALE * rng.uniform(0.6, 1.0, size=2)
    return points + rng.uniform([0, 0], [width, height])


def _draw_distractor(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A line, an arc, a scribble or a blob: texture that belongs to no class."""
    height, width = canvas.shape[:2]
    kind = rng.choice(["line", "arc", "scribble", "blob"])
    color = tuple(map(float, _random_color(rng, max_saturation=0.8)))
    thickness = int(rng.uniform(1, 3) * _SCALE)
    if kind == "blob":
        mask = _fill((height, width), _blob(rng, width, height, rng.uniform(5, 16)))
        if mask.any():
            _paint(rng, canvas, mask)
    elif kind == "arc":
        center = rng.uniform([0, 0], [width, height]).astype(int)
        axes = (rng.uniform(8, 24, size=2) * _SCALE).astype(int)
        start = rng.uniform(0, 360)
        cv2.ellipse(
            canvas,
            tuple(map(int, center)),
            tuple(map(int, axes)),
            rng.uniform(0, 180),
            start,
            start + rng.uniform(60, 170),
            color,
            thickness,
        )
    else:
        num_points = 2 if kind == "line" else rng.integers(4, 7)
        points = rng.uniform([0, 0], [width, height], size=(num_points, 2))
        if kind == "scribble":
            points = points[:1] + rng.uniform(-18, 18, size=(num_points, 2)) * _SCALE
        cv2.polylines(canvas, [points.astype(np.int32)], False, color, thickness)


def _add_noise(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    noise = rng.normal(0, rng.uniform(1.5, 6), image.shape)
    return np.rint(image * rng.uniform(0.9, 1.08) + noise).clip(0, 255).astype(np.uint8)


def _describe(mask: np.ndarray, class_id: int) -> ShapeObject:
    """The object of a mask that is 255 where it is seen and 128 where it is covered."""
    is_seen = _visible(np.where(mask == 255, 255, 0).astype(np.uint8))
    y, x = is_seen.nonzero()
    box = (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
    visible = (mask == 255).sum() / (mask > 0).sum()
    longer_side = max(box[2] - box[0], box[3] - box[1])
    difficult = bool(visible < DIFFICULT_VISIBLE or longer_side < DIFFICULT_SIZE)
    return ShapeObject(class_id, box, difficult)
