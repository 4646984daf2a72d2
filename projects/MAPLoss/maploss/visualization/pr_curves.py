# SPDX-License-Identifier: Apache-2.0
"""Precision-recall curves of all classes in one picture."""

from collections.abc import Sequence

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluation.detection_ap import ClassResult


def draw_pr_curves(
    path: str, class_names: Sequence[str], results: Sequence[ClassResult], title: str = ""
) -> None:
    """
    Draws interpolated precision over recall at IoU .5, one line per class with an object.

    The area under a line is the class's AP; the faint line is precision before interpolation, the
    dot the point of best F1.

    Args:
        path: where the PNG is written.
        class_names: by index.
        results: one per class.
        title: above the picture.
    """
    present = [(name, r) for name, r in zip(class_names, results, strict=True) if r.num_objects]
    present.sort(key=lambda item: -item[1].ap["AP50"])
    figure = Figure(figsize=(8.4, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = color_sequences["tab10" if len(present) <= 10 else "tab20"]
    style_axes(axes)
    _draw_f1_lines(axes)
    for i, (name, result) in enumerate(present):
        _draw_class(axes, name, result, colors[i % len(colors)])
    mean = np.mean([result.ap["AP50"] for _, result in present]) if present else np.nan
    axes.set_title(f"{title}   mAP {100 * mean:.1f} at IoU 0.5 (area)".strip(), loc="left")
    if present:
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5, title="AP50"
        )
    figure.savefig(path)


def _draw_f1_lines(axes: Axes) -> None:
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.geomspace(f1 / (2 - f1), 1, 200)
        axes.plot(recall, f1 * recall / (2 * recall - f1), color="0.88", linewidth=0.8, zorder=0)
        axes.annotate(f"F1 {f1}", (0.995, f1 / (2 - f1)), color="0.65", fontsize=7, ha="right")


def _draw_class(axes: Axes, name: str, result: ClassResult, color: str | tuple) -> None:
    label = f"{100 * result.ap['AP50']:5.1f}  {name}"
    precision, recall = result.precision.numpy(), result.recall.numpy()
    if draw_interpolated(axes, label, precision, recall, color):
        best = int(np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12)))
        axes.plot(recall[best], precision[best], "o", color=color, markersize=4)


def style_axes(axes: Axes) -> None:
    """Axes of precision over recall with a faint grid."""
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)


def draw_interpolated(
    axes: Axes, label: str, precision: np.ndarray, recall: np.ndarray, color: str | tuple
) -> bool:
    """
    Draws a curve as it is, faint, and interpolated; a line at 0 if nothing is found.

    Args:
        axes: where the curve is drawn.
        label: of the legend.
        precision: (D,) by falling score.
        recall: (D,) by falling score.
        color: of the curve.

    Returns:
        Whether anything is found.
    """
    # Only where recall rises: between two true positives there may be 100,000 false ones.
    rises = np.diff(recall, prepend=0) > 0
    if not rises.any():
        axes.plot([0, 1], [0, 0], color=color, label=label, linewidth=1.8)
        return False
    p, r = precision[rises], recall[rises]
    envelope = np.maximum.accumulate(p[::-1])[::-1]
    axes.plot(r, p, color=color, alpha=0.3, linewidth=0.8)
    axes.step(
        np.r_[0, r, r[-1]], np.r_[envelope[0], envelope, 0], color=color, label=label, linewidth=1.8
    )
    return True
