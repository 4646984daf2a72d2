# SPDX-License-Identifier: Apache-2.0
"""A matplotlib figure as an array."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def figure_pixels(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a figure that pyplot does not know, so that nothing stays open."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
