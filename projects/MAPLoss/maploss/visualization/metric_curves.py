# SPDX-License-Identifier: Apache-2.0
"""What training wrote into metrics.json, as curves of several runs side by side."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Title of the panel, and its curves: name in metrics.json, factor, line style.
_PANELS = (
    ("average loss of all training windows", (("train/average_loss", 1.0, "-"),)),
    ("AP50:95 on test images, %", (("bbox/AP", 1.0, "-"),)),
    ("AP50 on test images, %", (("bbox/AP50", 1.0, "-"),)),
    ("mAP of the minibatch, %", (("map/minibatch_map", 100.0, "-"),)),
    (
        "gradient by the scores: up (line), down (dashes)",
        (("map/gradient_up", 1.0, "-"), ("map/gradient_down", 1.0, "--")),
    ),
)


def group_runs(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """
    Folders of runs by label, from "LABEL=FOLDER" or "FOLDER": those of one label are seeds of one
    method; without a label it is the folder's name without the number at its end.
    """
    runs: dict[str, list[Path]] = {}
    for argument in arguments:
        label, _, folder = argument.rpartition("=")
        label = label or re.sub(r"-\d+$", "", Path(folder).name)
        runs.setdefault(label, []).append(Path(folder))
    return runs


def draw_metric_curves(path: str, runs: Mapping[str, Sequence[Path]]) -> Figure:
    """
    Draws AP50:95 and AP50 of the test, mAP of the minibatch and the sums of the gradient over
    iterations, or the average loss that tools/average_loss.py has found.

    A line is the mean of the runs of one label, the band from the least to the greatest of them.
    Panels that no run has anything for are left out.

    Args:
        path: where the PNG is written.
        runs: for each label the metrics.json of its runs, which logged at the same iterations.

    Returns:
        The figure that was written.

    Raises:
        ValueError: no run has any of the curves, or a file is not one JSON object a line.
    """
    logs = {label: [_read(file) for file in files] for label, files in runs.items()}
    found = {name for log in logs.values() for lines in log for line in lines for name in line}
    panels = [p for p in _PANELS if any(name in found for name, _, _ in p[1])]
    if not panels:
        raise ValueError(f"No curve to draw in {[str(f) for fs in runs.values() for f in fs]}")
    figure = Figure(figsize=(4.4 * len(panels), 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    colors = color_sequences["tab10"]
    all_axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (title, curves) in zip(all_axes, panels, strict=True):
        for i, log in enumerate(logs.values()):
            for name, factor, style in curves:
                _draw(axes, log, name, factor, style, colors[i % len(colors)])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("updates")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93", linewidth=0.8)
        if "gradient" in title:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    handles = [
        axes.plot([], [], color=colors[i % len(colors)], label=label)[0]
        for i, label in enumerate(logs)
    ]
    columns = max(1, len(panels) * 48 // max(len(label) + 8 for label in logs))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(logs), columns), frameon=False
    )
    figure.savefig(path)
    return figure


def _read(path: Path) -> list[dict]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise ValueError(f"{path}: expected one JSON object a line ({error})") from error
    for line in lines:
        if not isinstance(line, dict) or "iteration" not in line:
            raise ValueError(f"{path}: expected JSON objects with 'iteration', got {line!r}")
    return lines


def _draw(
    axes: Axes, log: list[list[dict]], name: str, factor: float, style: str, color: str | tuple
) -> None:
    """One curve of one label: what several runs logged at the same iteration is averaged."""
    values: dict[int, list[float]] = {}
    for lines in log:
        for line in lines:
            if name in line:
                values.setdefault(line["iteration"] + 1, []).append(factor * line[name])
    iterations = sorted(values)
    if not iterations:
        return
    mean = [float(np.mean(values[i])) for i in iterations]
    marker = "o" if name.startswith(("bbox/", "train/")) else ""
    axes.plot(iterations, mean, style, color=color, marker=marker, markersize=3.5, linewidth=1.6)
    if any(len(x) > 1 for x in values.values()):
        low, high = ([f(values[i]) for i in iterations] for f in (min, max))
        axes.fill_between(iterations, low, high, color=color, alpha=0.15, linewidth=0)
