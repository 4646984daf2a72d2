# SPDX-License-Identifier: Apache-2.0
"""
The ranking losses, slowly: loops over all pairs, as their papers write them, in NumPy.

Each returns the value and the gradient by the scores; aLRP the one by the qualities too, before
self-balancing. `pos`, `neg` are indices of positives and negatives, y the qualities of positives.
"""

import math

import numpy as np


def step(d, delta):
    """H of all these papers."""
    return min(max(d / (2 * delta) + 0.5, 0.0), 1.0)


def above(scores, i, j, delta):
    """H(x_ij), how much j is above i; a score is above itself."""
    return 1.0 if i == j else step(scores[j] - scores[i], delta)


def from_terms(num, terms, pos):
    """The update of identity and error-driven losses from primary terms {(i, j): L_ij}."""
    gradient = np.zeros(num)
    for (i, j), term in terms.items():
        gradient[i] -= term / len(pos)
        gradient[j] += term / len(pos)
    return gradient


def ap_loss(scores, pos, neg, delta):
    precision = {}
    for i in pos:
        true = sum(above(scores, i, k, delta) for k in pos)
        false = sum(above(scores, i, j, delta) for j in neg)
        precision[i] = true / (true + false)
    terms, value = {}, 0.0
    for i in pos:
        best = max(precision[k] for k in pos if scores[k] <= scores[i])
        false = sum(above(scores, i, j, delta) for j in neg)
        value += (1 - best) / len(pos)
        for j in neg:
            if false > 0:
                terms[i, j] = (1 - best) * above(scores, i, j, delta) / false
    return value, from_terms(len(scores), terms, pos)


def alrp_loss(scores, pos, neg, y, delta):
    error = dict(zip(pos, 1 - np.asarray(y), strict=True))
    terms, value, localisation = {}, 0.0, 0.0
    by_quality = np.zeros(len(pos))
    for i in pos:
        false = sum(above(scores, i, j, delta) for j in neg)
        rank = false + sum(above(scores, i, k, delta) for k in pos)
        loose = sum(above(scores, i, k, delta) * error[k] for k in pos)
        value += (false + loose) / rank / len(pos)
        localisation += loose / rank / len(pos)
        for place, k in enumerate(pos):
            by_quality[place] -= above(scores, i, k, delta) / rank / len(pos)
        target = error[i] / rank
        for j in neg:
            if false > 0:
                share = above(scores, i, j, delta) / false
                terms[i, j] = ((false + loose) / rank - target) * share
    return value, localisation, from_terms(len(scores), terms, pos), by_quality


def rank_sort_loss(scores, pos, neg, y, delta):
    quality = dict(zip(pos, y, strict=True))
    terms, value = {}, 0.0
    for i in pos:
        h = {j: above(scores, i, j, delta) for j in (*pos, *neg)}
        false, true = sum(h[j] for j in neg), sum(h[k] for k in pos)
        ranking = false / (false + true)
        current = sum(h[k] * (1 - quality[k]) for k in pos) / true
        better = [k for k in pos if quality[k] >= quality[i]]
        target = sum(h[k] * (1 - quality[k]) for k in better) / sum(h[k] for k in better)
        value += (ranking + current - target) / len(pos)
        worse = [k for k in pos if quality[k] < quality[i] and h[k] > 0]
        for j in neg:
            if false > 0:
                terms[i, j] = ranking * h[j] / false
        for k in worse:
            terms[i, k] = (current - target) * h[k] / sum(h[m] for m in worse)
    return value, from_terms(len(scores), terms, pos)


def buckets(scores, pos, neg, delta):
    """Negatives in reach of a positive, by the number of positives below: {number: [negatives]}."""
    result = {}
    for j in neg:
        if any(step(scores[j] - scores[i], delta) > 0 for i in pos):
            result.setdefault(sum(scores[i] < scores[j] for i in pos), []).append(j)
    return result


def bucketed_rank_sort_loss(scores, pos, neg, y, delta):
    """As above with each negative in reach at the mean score of its bucket."""
    moved = np.array(scores, dtype=float)
    for bucket in buckets(scores, pos, neg, delta).values():
        moved[bucket] = np.mean(np.asarray(scores)[bucket])
    return rank_sort_loss(moved, pos, neg, y, delta)


def smooth_ap_loss(scores, pos, neg, temperature):
    """The value alone: its gradient is the derivative."""
    value = 0.0
    for i in pos:
        g = {j: 1 / (1 + math.exp(-(scores[j] - scores[i]) / temperature)) for j in (*pos, *neg)}
        true = 1 + sum(g[k] for k in pos if k != i)
        value += (1 - true / (true + sum(g[j] for j in neg))) / len(pos)
    return value
