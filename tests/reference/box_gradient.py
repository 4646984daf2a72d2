# SPDX-License-Identifier: Apache-2.0
"""How AP changes with the overlap of boxes and objects, by definition: everything is tried."""

import numpy as np

from .ap_after_nms import TOLERANCE, Step
from .error_driven_gradient import pseudo_gradient
from .ranking_losses import step

MIN_DELTA = 0.05


def error_driven_box_gradient(ranking, margin):
    """
    (R,) of one list at one overlap: the precision that each window over an object would have as
    its true positive, by the number of objects, with false positives counted softly.
    """
    order, is_kept, matched = ranking.order(), ranking.is_kept(), ranking.matched
    tps, fps = {}, []
    for i in order:
        if not is_kept[i] or matched[i] == -2:
            continue
        if matched[i] >= 0 and matched[i] not in tps:
            tps[matched[i]] = i
        else:
            fps.append(i)
    gradient = np.zeros(len(ranking.scores))
    for i in range(len(order)):
        gt = ranking.lowest[i]
        if gt < 0:
            continue
        others = [t for object_, t in tps.items() if object_ != gt]
        above = sum(order.index(t) < order.index(i) for t in others)
        false = sum(step(ranking.scores[j] - ranking.scores[i], margin) for j in fps)
        gradient[i] = (1 + above) / (1 + above + false) / ranking.num_gt
    return gradient


def box_gradient_of_steps(ranked, iou_threshs, arrays, ap_type, estimator):
    """
    (R,) of one list: AP, the mean over overlaps, is evaluated with the IoU of each kept window
    between any two overlaps; windows, order and NMS stay.
    """
    ious = [*iou_threshs, 2.0]
    between = [t - 1e-9 for t in ious]
    is_kept = ranked.ranking(iou_threshs[0], arrays, ap_type).is_kept()

    def f(best):
        moved = ranked._replace(best=best)
        return np.mean([moved.ranking(t, arrays, ap_type).ap() for t in iou_threshs])

    value, steps = f(ranked.best), []
    for i, (gt, iou) in enumerate(ranked.best):
        up, down = Step(), Step()
        if is_kept[i] and gt >= 0:
            level = sum(iou > t for t in iou_threshs)
            for k in range(level + 1, len(ious)):
                new = f([*ranked.best[:i], (gt, between[k]), *ranked.best[i + 1 :]])
                if abs(new - value) > TOLERANCE:
                    up = Step(ious[k - 1], new, i)
                    break
            for k in range(level - 1, -1, -1):
                new = f([*ranked.best[:i], (gt, between[k]), *ranked.best[i + 1 :]])
                if abs(new - value) > TOLERANCE:
                    down = Step(ious[k], new, i)
                    break
        steps.append((up, down))
    places = np.array([iou for _, iou in ranked.best])
    return pseudo_gradient(value, steps, places, estimator, MIN_DELTA, is_paired=False)
