# SPDX-License-Identifier: Apache-2.0
"""
Focal losses, slowly: one score after the other, as their papers write them, in NumPy.

Arguments as in `ranking_losses`: `pos`, `neg` are indices, y the qualities of positives.
"""

import numpy as np


def focal_loss(scores, pos, neg, alpha, gamma):
    total = 0.0
    for i in pos:
        p = _sigmoid(scores[i])
        total -= alpha * (1 - p) ** gamma * np.log(p)
    for j in neg:
        p = _sigmoid(scores[j])
        total -= (1 - alpha) * p**gamma * np.log(1 - p)
    return total / max(len(pos), 1)


def quality_focal_loss(scores, pos, neg, y, beta):
    total = 0.0
    for i, target in [*zip(pos, y, strict=True), *((j, 0.0) for j in neg)]:
        p = _sigmoid(scores[i])
        entropy = -((1 - target) * np.log(1 - p) + target * np.log(p))
        total += abs(target - p) ** beta * entropy
    return total / max(len(pos), 1)


def varifocal_loss(scores, pos, neg, y, alpha, gamma):
    total = 0.0
    for i, target in [*zip(pos, y, strict=True), *((j, 0.0) for j in neg)]:
        p = _sigmoid(scores[i])
        if target > 0:
            total -= target * (target * np.log(p) + (1 - target) * np.log(1 - p))
        else:
            total -= alpha * p**gamma * np.log(1 - p)
    return total / max(len(pos), 1)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))
