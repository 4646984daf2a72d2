# SPDX-License-Identifier: Apache-2.0
"""Some images of a data set with their kept detections and missed objects."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..data.images import read_image
from ..evaluation.detection_ap import ClassResult, Detections, Objects

_COLUMNS = 6
# Of each kind and image, so that an untrained detector gives a picture, not thousands of labels.
_MOST_BOXES = 20


class _Style(NamedTuple):
    color: str
    line: Literal["-", "--", ":"]
    meaning: str


_RIGHT = _Style("#2ecc40", "-", "right")
_WRONG = _Style("#ff2d2d", "-", "wrong")
_MISSED = _Style("#ff9f1a", "--", "missed object")
_DIFFICULT = _Style("#b8b8b8", ":", "difficult object, or detection of one (ignored)")
_STYLES = (_RIGHT, _WRONG, _MISSED, _DIFFICULT)


def draw_detection_grid(
    path: str,
    records: Sequence[dict],
    class_names: Sequence[str],
    detections: Detections,
    objects: Objects,
    results: Sequence[ClassResult],
    num_images: int = 24,
) -> None:
    """
    Draws up to `num_images` images, evenly spread over the data set, as a grid.

    Kept are the detections at or above their class's threshold of best F1 at IoU .5. An object
    that no kept detection found is missed. Difficult objects count neither way. Of each kind at
    most 20 are drawn in an image.

    Args:
        path: where the PNG is written.
        records: the data set's dicts.
        class_names: by index.
        detections: what was evaluated.
        objects: what was evaluated.
        results: the evaluation of each class.
        num_images: how many are drawn at most.
    """
    num_images = min(num_images, len(records))
    shown = np.unique(np.linspace(0, len(records) - 1, num_images).round().astype(int))
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.1 * rows + 0.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    outcomes = _judge(detections, objects, results)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, shown, strict=False):
        _draw_image(axes, records[index])
        for style, source, inds in outcomes:
            for i in inds[source.image_inds[inds] == int(index)][:_MOST_BOXES].tolist():
                _draw_box(axes, source.boxes[i], style)
                _draw_label(axes, source.boxes[i], class_names[int(source.classes[i])], style)
    handles = [
        Line2D([], [], color=style.color, linestyle=style.line, linewidth=2, label=style.meaning)
        for style in _STYLES
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel(
        "Kept: detections at or above the score at which their class has its best F1 on this data "
        "set (IoU 0.5).",
        fontsize=9,
    )
    figure.savefig(path)


def _judge(
    detections: Detections, objects: Objects, results: Sequence[ClassResult]
) -> list[tuple[_Style, Detections | Objects, torch.Tensor]]:
    """Indices of the boxes to draw in each style, and whether of detections or of objects."""
    right, wrong, ignored = [], [], []
    is_found = torch.zeros(len(objects.boxes), dtype=torch.bool)
    for result in results:
        is_kept = detections.scores[result.inds].double() >= result.best_f1_thresh
        right.append(result.inds[is_kept & result.is_tp])
        wrong.append(result.inds[is_kept & ~result.is_tp & ~result.is_ignored])
        ignored.append(result.inds[is_kept & result.is_ignored])
        is_found[result.matched_object[is_kept & result.is_tp]] = True
    is_ignored = objects.is_difficult | objects.is_crowd
    missed = (~is_found & ~is_ignored).nonzero().squeeze(1)
    difficult = is_ignored.nonzero().squeeze(1)
    return [
        (_DIFFICULT, objects, difficult),
        (_DIFFICULT, detections, torch.cat(ignored)),
        (_MISSED, objects, missed),
        (_WRONG, detections, torch.cat(wrong)),
        (_RIGHT, detections, torch.cat(right)),
    ]


def _draw_image(axes: Axes, record: dict) -> None:
    image = read_image(record["file_name"], "RGB")
    axes.imshow(image, interpolation="bilinear")


def _draw_box(axes: Axes, box: torch.Tensor, style: _Style) -> None:
    # Pixel i covers i to i + 1 here, but i - .5 to i + .5 in imshow.
    x1, y1, x2, y2 = (box - 0.5).tolist()
    edge = Rectangle(
        (x1, y1),
        x2 - x1,
        y2 - y1,
        fill=False,
        edgecolor=style.color,
        linestyle=style.line,
        linewidth=1.4,
        path_effects=[withStroke(linewidth=2.4, foreground=(0, 0, 0, 0.45))],
    )
    axes.add_patch(edge)


def _draw_label(axes: Axes, box: torch.Tensor, class_name: str, style: _Style) -> None:
    """The class above the box; within it where there is no room above."""
    image_height = axes.get_ylim()[0]
    fits_above = float(box[1]) > 0.07 * image_height
    axes.text(
        max(float(box[0]), 0) + 0.005 * image_height,
        max(float(box[1]), 0),
        class_name,
        color=style.color,
        fontsize=6,
        verticalalignment="bottom" if fits_above else "top",
        clip_on=True,
        path_effects=[withStroke(linewidth=1.6, foreground="black")],
    )
