# SPDX-License-Identifier: Apache-2.0
"""Parameterized AP Loss with all pairs in one matrix and torch's own derivatives."""

import torch
from maploss.layers.ranking_losses.piecewise_linear import identity_points, piecewise_linear


def whole_matrix_loss(scores, labels, quality, points, form, num_ranked=100_000):
    """The formula, with all pairs at once and torch's own derivatives."""
    u = torch.zeros_like(scores).masked_scatter(labels == 1, quality)
    ranked = (labels >= 0).nonzero().squeeze(1)
    ranked = ranked[scores[ranked].argsort(descending=True)[:num_ranked]]
    positive = labels == 1
    d = scores[ranked] - scores[positive][:, None]
    x = (d / 2 + 0.5).clamp(0, 1)
    if form == "sigmoid":
        h1 = h2 = torch.sigmoid(d)
        i1, i2, i3 = (lambda v: torch.sigmoid(2 * v - 1),) * 3
    elif form == "square":
        h1 = h2 = x**2
        i1, i2, i3 = (torch.square,) * 3
    else:
        if form == "linear":
            points = identity_points().expand(5, 4, 2)
        h1, h2 = piecewise_linear(x, points[0]), piecewise_linear(x, points[1])
        i1, i2, i3 = (lambda v, p=p: piecewise_linear(v, p) for p in points[2:])
    errors = (h2 * (1 - i2(u[ranked]))).sum(1)
    return (1 - i1(u[positive]) + i3(u[positive]) * errors / h1.sum(1).detach()).mean()
