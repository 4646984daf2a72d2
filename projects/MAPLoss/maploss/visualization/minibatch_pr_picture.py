# SPDX-License-Identifier: Apache-2.0
"""
Precision-recall curves of one minibatch.

Shape letter: D detections of one class that count.
"""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib import color_sequences
from matplotlib.figure import Figure

from .figure_pixels import figure_pixels
from .pr_curves import draw_interpolated, style_axes

_MOST_CURVES = 10
Curve = tuple[torch.Tensor, torch.Tensor, float]


def minibatch_pr_picture(curves: Mapping[str, Curve], map_value: float) -> np.ndarray:
    """
    Draws precision over recall of the classes present in a minibatch, by falling AP.

    The thick line is interpolated, the area under it AP by "area"; the faint one is as it is. Of
    more than 10 classes, 10 spread evenly from the largest to the smallest AP are drawn.

    Args:
        curves: by the name of the class: precision (D,) and recall (D,), see
            :func:`~maploss.layers.precision_recall`, and AP in [0, 1].
        map_value: of the minibatch, over all classes.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    ranked = sorted(curves.items(), key=lambda item: -float(item[1][2]))
    inds = np.linspace(0, len(ranked) - 1, min(len(ranked), _MOST_CURVES)).round().astype(int)
    figure = Figure(figsize=(7.0, 4.2), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes)
    for color, i in zip(color_sequences["tab10"], inds, strict=False):
        name, (precision, recall, ap) = ranked[i]
        label = f"{100 * float(ap):5.1f}  {_shorten(name)}"
        draw_interpolated(axes, label, np.asarray(precision), np.asarray(recall), color)
    present = f"{len(ranked)} {'class' if len(ranked) == 1 else 'classes'} present"
    drawn = f", {len(inds)} drawn" if len(inds) < len(ranked) else ""
    axes.set_title(
        f"minibatch: mAP {100 * float(map_value):.1f}   {present}{drawn}", loc="left", fontsize=10
    )
    if ranked:
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5, title="AP"
        )
    return figure_pixels(figure)


def _shorten(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"
