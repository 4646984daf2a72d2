# SPDX-License-Identifier: Apache-2.0
"""
Windows of an image, coloured by their pseudo-gradient: by scores and, beside it, by boxes.

Shape letters: R windows and G objects of one class in one image.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .figure_pixels import figure_pixels

# Told apart by the colour-blind too.
_UP, _DOWN, _NONE, _PULLED = "#1f9bff", "#ff5500", "#9a9a9a", "#ffd92f"
_DPI = 100
# Smaller images are enlarged by a whole factor; the legend needs some width.
_LEAST_SIDE, _LEAST_WIDTH, _LEGEND_HEIGHT = 480, 480, 44
# Between two panels, in pixels, of the legend's grey.
_GAP, _BACKGROUND = 12, 0.15
# White, black and nothing in turn: seen on any image and on top of a window of the same sides.
_DASHES = (("white", (0, (3, 9))), ("black", (9, (3, 9))))
# Of windows without a gradient, all or none are drawn; of the others the strongest.
_MOST_WITHOUT, _MOST_PUSHED = 40, 100


class _Kind(NamedTuple):
    """Of a gradient: its name, and colour and name of what has each sign of it."""

    name: str
    signs: dict[int, tuple[str, str]]


_BY_SCORES = _Kind("by scores", {-1: (_UP, "up"), 1: (_DOWN, "down")})
_BY_BOXES = _Kind("by boxes", {-1: (_PULLED, "pulled to objects")})


def gradient_picture(
    image: np.ndarray | torch.Tensor,
    boxes: torch.Tensor,
    gradient: torch.Tensor,
    objects: torch.Tensor | None = None,
    by_overlap: torch.Tensor | None = None,
) -> np.ndarray:
    """
    Draws which windows a loss pushes up, which down, and how strongly; with `by_overlap` a second
    panel at the right shows which boxes it pulls to their objects.

    Blue windows are pushed up (the loss's gradient by their score is negative), vermilion ones
    down; the larger |gradient| beside the largest one, the wider and the less transparent, the
    strongest on top. Windows without a gradient are thin and grey, or left out where there are
    more than 40; of the others the 100 strongest are drawn. In the second panel the boxes that are
    pulled are yellow, and the same holds of their width.

    Args:
        image: (3, H, W) or (H, W, 3) uint8 RGB.
        boxes: (R, 4) XYXY in pixels.
        gradient: (R,) of the loss by their scores.
        objects: (G, 4) ground truth, dashed.
        by_overlap: (R,) 0 or more, by how much the loss falls with the IoU of each box and its
            object.

    Returns:
        (H', W', 3) uint8 RGB, the image enlarged if it is small, and a legend below; with
        `by_overlap` two of these side by side.

    Raises:
        ValueError: a wrong shape or dtype, a negative `by_overlap`. FloatingPointError: a gradient
            that is not finite.
    """
    pixels = _as_rgb(image)
    boxes = boxes.detach().cpu().double()
    objects = boxes.new_zeros(0, 4) if objects is None else objects.detach().cpu().double()
    for name, given in (("boxes", boxes), ("objects", objects)):
        if given.dim() != 2 or given.shape[1] != 4:
            raise ValueError(f"{name}: expected shape (R, 4), got {tuple(given.shape)}")
    gradient = _check_gradient("gradient", gradient, len(boxes))
    by_scores = _draw_panel(pixels, boxes, gradient, objects, _BY_SCORES)
    if by_overlap is None:
        return by_scores
    by_overlap = _check_gradient("by_overlap", by_overlap, len(boxes))
    if (by_overlap < 0).any():
        raise ValueError(f"by_overlap: expected 0 or more, got {float(by_overlap.min()):g}")
    by_boxes = _draw_panel(pixels, boxes, -by_overlap, objects, _BY_BOXES)
    gap = np.full((len(by_scores), _GAP, 3), round(255 * _BACKGROUND), np.uint8)
    return np.hstack([by_scores, gap, by_boxes])


def _check_gradient(name: str, gradient: torch.Tensor, num_boxes: int) -> torch.Tensor:
    """As float64 on the CPU."""
    if gradient.shape != (num_boxes,):
        raise ValueError(f"{name}: expected shape ({num_boxes},), got {tuple(gradient.shape)}")
    if not gradient.isfinite().all():
        raise FloatingPointError(f"{name}: not all numbers are finite")
    return gradient.detach().cpu().double()


def _draw_panel(
    pixels: np.ndarray,
    boxes: torch.Tensor,
    gradient: torch.Tensor,
    objects: torch.Tensor,
    kind: _Kind,
) -> np.ndarray:
    """(H', W', 3) uint8 RGB."""
    figure, axes = _figure_of(pixels)
    strength = (
        gradient.abs() / gradient.abs().max().clamp(min=1e-300) if len(gradient) else gradient
    )
    without = (gradient == 0).nonzero().squeeze(1)
    if len(without) <= _MOST_WITHOUT:
        for i in without:
            _draw_box(axes, boxes[i], _NONE, 0.7, 0.6)
    # The last ones are the strongest; those without a gradient come first.
    pushed = strength.argsort(stable=True)[len(without) :]
    for i in pushed[-_MOST_PUSHED:]:
        share = float(strength[i])
        color, _ = kind.signs[int(gradient[i].sign())]
        _draw_box(axes, boxes[i], color, 0.8 + 2.2 * share, 0.25 + 0.75 * share)
    for box in objects:
        for color, dashes in _DASHES:
            _draw_box(axes, box, color, 1.3, 1.0, dashes)
    _draw_legend(figure, gradient, len(objects), kind)
    return figure_pixels(figure)


def _as_rgb(image: np.ndarray | torch.Tensor) -> np.ndarray:
    pixels = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"image: expected shape (3, H, W) or (H, W, 3), got {tuple(image.shape)}")
    if pixels.dtype != np.uint8:
        raise ValueError(f"image: expected dtype uint8, got {pixels.dtype}")
    return pixels


def _figure_of(pixels: np.ndarray) -> tuple[Figure, Axes]:
    """A figure of whole pixels: the image at the top, in its own coordinates, and a strip below."""
    height, width = pixels.shape[:2]
    factor = max(1, -(-_LEAST_SIDE // max(height, width)))
    shown_height, shown_width = factor * height, factor * width
    full_height, full_width = shown_height + _LEGEND_HEIGHT, max(shown_width, _LEAST_WIDTH)
    figure = Figure(figsize=(full_width / _DPI, full_height / _DPI), dpi=_DPI)
    axes = figure.add_axes(
        (
            (full_width - shown_width) // 2 / full_width,
            _LEGEND_HEIGHT / full_height,
            shown_width / full_width,
            shown_height / full_height,
        )
    )
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _draw_box(
    axes: Axes,
    box: torch.Tensor,
    color: str,
    line_width: float,
    alpha: float,
    line_style: str | tuple = "-",
) -> None:
    x1, y1, x2, y2 = box.tolist()
    edge = Rectangle(
        (x1, y1),
        x2 - x1,
        y2 - y1,
        fill=False,
        edgecolor=color,
        linewidth=line_width,
        alpha=alpha,
        linestyle=line_style,
    )
    axes.add_patch(edge)


def _draw_legend(figure: Figure, gradient: torch.Tensor, num_objects: int, kind: _Kind) -> None:
    num_without = int((gradient == 0).sum())
    hidden = " (hidden)" if num_without > _MOST_WITHOUT else ""
    largest = float(gradient.abs().max()) if len(gradient) else 0.0
    rows: tuple[tuple[str, Literal["-", ":"], str], ...] = (
        *(
            (color, "-", f"{name}: {int((gradient.sign() == sign).sum())}")
            for sign, (color, name) in kind.signs.items()
        ),
        (_NONE, "-", f"no gradient: {num_without}{hidden}"),
        ("white", ":", f"objects: {num_objects}"),
    )
    handles = [
        Line2D([], [], color=color, linestyle=style, linewidth=2, label=label)
        for color, style, label in rows
    ]
    figure.set_facecolor(str(_BACKGROUND))
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        labelcolor="0.9",
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    note = f"{kind.name}; the strongest, {largest:.2g}, is opaque"
    if len(gradient) - num_without > _MOST_PUSHED:
        note += f"; the {_MOST_PUSHED} strongest are drawn"
    height = figure.get_figheight() * _DPI
    figure.text(
        0.5, (_LEGEND_HEIGHT - 5) / height, note, color="0.8", size=8, ha="center", va="top"
    )
