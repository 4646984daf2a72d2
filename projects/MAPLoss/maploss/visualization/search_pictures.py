# SPDX-License-Identifier: Apache-2.0
"""
Pictures of a search: the functions it has come to, and its rewards.

Shape letters: F functions of a key.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator


def draw_functions(
    path: str, functions: Mapping[str, Mapping[str, Sequence]], title: str = ""
) -> Figure:
    """
    Draws piecewise-linear functions over [0, 1], a row a key, a panel a function.

    Args:
        path: where the PNG is written.
        functions: for each label the control points of each key, F x 4 x [x, y]; the same keys for
            all labels, at least one.
        title: above the picture.

    Returns:
        The figure that was written.
    """
    keys = list(next(iter(functions.values())))
    num = max(len(points[key]) for points in functions.values() for key in keys)
    figure = Figure(figsize=(2.3 * num, 2.5 * len(keys) + 0.7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(keys), num, squeeze=False, sharex=True, sharey=True)
    colors = color_sequences["tab10"]
    for row, key in zip(grid, keys, strict=True):
        for i, axes in enumerate(row):
            axes.plot([0, 1], [0, 1], "--", color="0.7", linewidth=1, label="identity")
            for color, (label, points) in zip(colors, functions.items(), strict=False):
                if i < len(points[key]):
                    x, y = np.array([[0, 0], *points[key][i], [1, 1]], dtype=float).T
                    axes.plot(x, y, "o-", color=color, markersize=3, linewidth=1.6, label=label)
            axes.set_title(f"function {i + 1}", fontsize=9)
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="0.93", linewidth=0.8)
        row[0].set_ylabel(key, fontsize=7)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path)
    return figure


def draw_rewards(
    path: str, start: float, rounds: Sequence[Sequence[float]], name: str = "reward"
) -> Figure:
    """
    Draws the reward of each sample over rounds, the mean of each round and the best so far.

    Args:
        path: where the PNG is written.
        start: reward of the start, before round 0.
        rounds: the rewards of each round, at least one.
        name: of the reward.

    Returns:
        The figure that was written.
    """
    figure = Figure(figsize=(6.4, 3.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    places = np.arange(len(rounds))
    best = np.maximum.accumulate([max(start, *rewards) for rewards in rounds])
    for place, rewards in enumerate(rounds):
        label = "sample" if place == 0 else None
        axes.plot([place] * len(rewards), rewards, ".", color="0.6", markersize=5, label=label)
    axes.plot(places, [np.mean(rewards) for rewards in rounds], "o-", markersize=4, label="mean")
    axes.plot(places, best, "s-", markersize=3, drawstyle="steps-post", label="best so far")
    axes.axhline(start, linestyle="--", color="0.4", linewidth=1, label="start")
    axes.set(xlabel="round", ylabel=name, xlim=(-0.5, len(rounds) - 0.5))
    locator = AutoLocator()
    locator.set_params(integer=True)
    axes.xaxis.set_major_locator(locator)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93", linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path)
    return figure
