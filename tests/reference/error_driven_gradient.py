# SPDX-License-Identifier: Apache-2.0
"""The gradient of pairs and the pseudo-gradient from steps by their definitions, one by one."""

import numpy as np

from .ranking_losses import step


def error_driven_gradient(scores, matched_gt, num_gt, is_kept, margin, transitivity):
    """Ties keep their input order; the windows of difficult objects (-2) take no part."""
    order = np.argsort(-np.asarray(scores), kind="stable").tolist()
    tps, fps = {}, []
    for i in order:
        gt = int(matched_gt[i])
        if not is_kept[i] or gt == -2:
            continue
        if gt >= 0 and gt not in tps:
            tps[gt] = i
        else:
            fps.append(i)
    hidden = [i for i in order if not is_kept[i] and matched_gt[i] >= 0]
    if transitivity == "none":
        hidden = []
    pushed = [*tps.values(), *hidden]
    gradient = np.zeros(len(scores))
    for i in pushed:
        above = {j: step(scores[j] - scores[i], margin) for j in fps}
        better = [
            t for gt, t in tps.items() if gt != matched_gt[i] and order.index(t) < order.index(i)
        ]
        rank = 1 + len(better) + sum(above.values())
        if transitivity == "object_aware":
            rank *= sum(matched_gt[k] == matched_gt[i] for k in pushed)
        for j in fps:
            gradient[i] += above[j] / (num_gt * rank)
            gradient[j] -= above[j] / (num_gt * rank)
    return gradient


def pseudo_gradient(value, steps, scores, estimator, min_delta, is_paired):
    """`value` and `steps`: as from `nearest_steps`."""
    gradient = np.zeros(len(scores))
    for i, (up, down) in enumerate(steps):
        has_both = up.partner >= 0 and down.partner >= 0
        for found, distance, change in (
            (up, up.at - scores[i], up.value - value),
            (down, scores[i] - down.at, value - down.value),
        ):
            if found.partner < 0:
                continue
            width = max(distance, min_delta)
            if estimator == "mee" and has_both and up.at > down.at:
                width = up.at - down.at
            gradient[i] += change / 2 / width
            if is_paired:
                gradient[found.partner] -= change / 2 / width
    return gradient
