# SPDX-License-Identifier: Apache-2.0
"""AP of all classes in one list."""

from collections.abc import Sequence

import torch

from .detection_ap import ClassResult, named_ap


def pooled_ap(results: Sequence[ClassResult]) -> dict[str, float]:
    """
    AP-pool (Dave et al. 2021, "The Devil is in the Details"): one ranking for all classes.

    The detections of all classes are one list by falling score, the objects of all classes one set:
    `AP50-pool` is the AP of that list. So scores have to mean the same in each class, which a mean
    over classes does not ask for, and a class weighs as much as it has objects. Matches are those
    of :func:`evaluate_detections`: an object of the same class and image, and what that class's AP
    ignores is ignored here. A detection of a class without an object is a false positive, though
    mAP leaves such classes out. Of equal scores the first detection comes first, of whatever class.

    Args:
        results: of all classes.

    Returns:
        AP in [0, 1] as :class:`ClassResult` has it, with `-pool` in the name: `AP-pool`,
        `AP50-pool`, `AP75-pool`, `AP-pool-voc07`, ..; nan if no class has an object that counts.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("results: expected at least one class, got none")
    num_objects = sum(result.num_objects for result in results)
    scores = torch.cat([result.scores for result in results])
    # Each class is by score already; ties between classes go by the place among all detections.
    place = torch.cat([result.inds for result in results]).argsort()
    order = place[torch.argsort(scores[place], descending=True, stable=True)]
    matched = {
        rule: torch.cat([result.matched[rule] for result in results], dim=1)[:, order]
        for rule in results[0].matched
    }
    return named_ap(scores[order], matched, num_objects, infix="-pool")
