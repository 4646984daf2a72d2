# SPDX-License-Identifier: Apache-2.0
"""Direct loss minimisation for AP by a search of all rankings, in NumPy."""

import itertools

import numpy as np
import torch
from maploss.layers.ranking_losses.direct_ap_loss import loss_augmented_ranking


def average_precision(labels_by_rank) -> float:
    """Mean precision at the ranks of the positives, not interpolated."""
    precisions, found = [], 0
    for rank, label in enumerate(labels_by_rank, 1):
        if label == 1:
            found += 1
            precisions.append(found / rank)
    return float(np.mean(precisions))


def ranking_gradient(ranking, labels) -> np.ndarray:
    """Of F(y) by the scores, one pair at a time; F is this times the scores."""
    gradient = np.zeros(len(labels))
    place = {item: rank for rank, item in enumerate(ranking)}
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    for i, j in itertools.product(positives, negatives):
        y = 1 if place[i] < place[j] else -1
        gradient[i] += y / (len(positives) * len(negatives))
        gradient[j] -= y / (len(positives) * len(negatives))
    return gradient


def best_of_all_rankings(scores, labels, epsilon, update) -> tuple[float, np.ndarray]:
    """Largest F + epsilon L or F - epsilon L of all permutations, and grad F where it is taken."""
    sign = {"positive": 1, "negative": -1}[update]
    best = (-np.inf, None)
    for ranking in itertools.permutations(range(len(scores))):
        gradient = ranking_gradient(ranking, labels)
        loss = 1 - average_precision(labels[list(ranking)])
        value = gradient @ scores + sign * epsilon * loss
        if value > best[0] + 1e-12:
            best = (value, gradient)
    return best


def value_of_the_ranking_found(scores, labels, epsilon, update) -> float:
    """F + epsilon L or F - epsilon L of the ranking that the dynamic programme finds."""
    positives, negatives = (
        sorted(np.flatnonzero(labels == label), key=lambda i: -scores[i]) for label in (1, 0)
    )
    above = loss_augmented_ranking(
        torch.tensor(scores[positives]), torch.tensor(scores[negatives]), epsilon, update
    ).tolist()
    assert above == sorted(above)
    ranking = []
    for i, count in zip(positives, above, strict=True):
        ranking += [*(j for j in negatives[:count] if j not in ranking), i]
    ranking += [j for j in negatives if j not in ranking]
    loss = 1 - average_precision(labels[ranking])
    sign = {"positive": 1, "negative": -1}[update]
    return ranking_gradient(ranking, labels) @ scores + sign * epsilon * loss
