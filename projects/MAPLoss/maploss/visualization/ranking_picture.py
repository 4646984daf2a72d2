# SPDX-License-Identifier: Apache-2.0
"""Whether the detections that are placed best come first: rank over IoU of the true positives."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import spearmanr

_EDGES = np.linspace(0.5, 1, 11)
# Fewer true positives have no median.
_LEAST_OF_BIN = 5


def draw_ranking(path: str, runs: Mapping[str, Sequence[Path]]) -> Figure:
    """
    Draws a panel for each label: the true positives at IoU .5 of its runs, as a density.

    Scores of different losses have no common scale, so the height is the rank: which of its class's
    detections it is by falling score, in percent of these, the first at the top. The line is the
    median of each .05 of IoU that has 5 true positives. In the title is Spearman's correlation of
    IoU and rank, 1 if a better box always comes first, of all classes and runs together.

    Args:
        path: where the PNG is written.
        runs: for each label the true_positives.json of its runs, which
            :class:`maploss.evaluation.APEvaluator` has written.

    Returns:
        The figure that was written.

    Raises:
        OSError, ValueError: a file is missing or another one, the data sets differ, or a label has
            no true positive.
    """
    parts = {label: [_read(file) for file in files] for label, files in runs.items()}
    datasets = sorted({dataset for part in parts.values() for dataset, _ in part})
    if len(datasets) > 1:
        raise ValueError(f"runs: expected one data set, got {', '.join(datasets)}")
    points = {label: np.concatenate([x for _, x in part]) for label, part in parts.items()}
    for label, rows in points.items():
        if not len(rows):
            raise ValueError(f"{label}: expected true positives at IoU .5, got none")
    figure = Figure(figsize=(0.6 + 3.6 * len(points), 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(points), sharex=True, sharey=True, squeeze=False)[0]
    top = min(rows[:, 1].min() for rows in points.values()) / 2
    for axes, (label, rows) in zip(grid, points.items(), strict=True):
        iou, percent = rows.T
        _draw_panel(axes, label, iou, percent, top)
    grid[0].set(xlim=(0.5, 1), ylim=(100, top), ylabel="rank, % of its class's detections")
    grid[0].yaxis.set_major_formatter("{x:g}")
    figure.legend(handles=grid[0].get_lines(), loc="outside lower center", frameon=False)
    figure.savefig(path)
    return figure


def _read(path: Path) -> tuple[str, np.ndarray]:
    """Name of the data set, and (N, 2) IoU and rank in percent of its true positives."""
    try:
        content = json.loads(path.read_text())
        parts = [np.zeros((0, 2))]
        for found in content["classes"].values():
            percent = 100 * np.array(found["rank"]) / max(found["num_detections"], 1)
            parts.append(np.stack([found["iou"], percent], axis=1))
        return content["dataset"], np.concatenate(parts)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: not found; train_net.py --eval-only writes it") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected what APEvaluator writes ({error!r})") from error


def _draw_panel(axes: Axes, label: str, iou: np.ndarray, percent: np.ndarray, top: float) -> None:
    axes.hexbin(
        iou,
        percent,
        yscale="log",
        extent=(0.5, 1, np.log10(top), 2),
        gridsize=(25, 16),
        bins="log",
        mincnt=1,
        cmap="Blues",
        vmin=0.3,
    )
    bins = np.digitize(iou, _EDGES[1:-1])
    wide = [i for i in range(len(_EDGES) - 1) if (bins == i).sum() >= _LEAST_OF_BIN]
    medians = [np.median(percent[bins == i]) for i in wide]
    centers = [(_EDGES[i] + _EDGES[i + 1]) / 2 for i in wide]
    axes.plot(
        centers, medians, "o-", color="#d55e00", markersize=4, label="median (darker: more objects)"
    )
    correlation = spearmanr(iou, -percent)[0] if len({*iou}) > 1 < len({*percent}) else np.nan
    axes.set_title(f"{label}\n{len(iou)} objects found, Spearman {correlation:.2f}", fontsize=10)
    axes.set_xlabel("IoU with the object")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
