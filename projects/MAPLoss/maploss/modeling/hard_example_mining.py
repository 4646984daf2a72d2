# SPDX-License-Identifier: Apache-2.0
"""
Hard proposals of a minibatch (Shrivastava et al. 2016, section 4.1).

Shape letters: N images, R proposals of all images, H hard ones.
"""

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Instances

from ..layers import hard_examples
from .output_layers import image_inds


class ProposalError(FloatingPointError):
    """A proposal whose loss is not finite, in image number `image_ind` of the minibatch."""

    def __init__(self, image_ind: int, reason: str) -> None:
        super().__init__(f"image {image_ind} of the minibatch: {reason}")
        self.image_ind = image_ind
        self.reason = reason


def mine_hard_proposals(
    losses: torch.Tensor,
    proposals: list[Instances],
    num_per_image: int,
    *,
    iou_thresh: float = 0.7,
    per_image: bool = False,
) -> tuple[torch.Tensor, list[Instances]]:
    """
    The hardest proposals of each image, or of all: see :func:`maploss.layers.hard_examples`.

    Args:
        losses: (R,).
        proposals: N Instances with proposal_boxes.
        num_per_image: how many at most, of each image, or on average.
        iou_thresh: of the NMS by loss.
        per_image: the same number of each.

    Returns:
        (H,) their indices among the R, rising, and N Instances, the proposals themselves.

    Raises:
        ProposalError: a loss is not finite.
    """
    check_finite(losses, proposals, "loss")
    chosen, hard, start = [], [], 0
    for group in [[x] for x in proposals] if per_image else [proposals]:
        counts = [len(x) for x in group]
        inds = hard_examples(
            losses[start : start + sum(counts)],
            torch.cat([x.proposal_boxes.tensor for x in group]),
            image_inds(group, losses.device),
            num_per_image * len(group),
            iou_thresh,
        )
        is_hard = torch.zeros(sum(counts), dtype=torch.bool, device=losses.device)
        is_hard[inds] = True
        hard += [x[own] for x, own in zip(group, is_hard.split(counts), strict=True)]
        chosen.append(inds + start)
        start += sum(counts)
    return torch.cat(chosen), hard


def sparsify_gradient(gradient: torch.Tensor, inds: torch.Tensor) -> torch.Tensor:
    """
    What some proposals carry of a gradient by the scores of all.

    The pushes up and down of a class keep their sums: those of the chosen proposals are scaled to
    them. The largest elements alone push up more than down, and then all scores rise together,
    which changes no ranking. A class of which one side is not among the chosen gets nothing.

    Args:
        gradient: (R, K).
        inds: (H,) of the proposals that are chosen.

    Returns:
        (H, K).
    """
    result = torch.zeros_like(gradient[inds])
    is_whole = torch.ones_like(gradient[:1], dtype=torch.bool)
    for sign in (1, -1):
        side = (sign * gradient).clamp(min=0)
        total, kept = side.sum(dim=0), side[inds].sum(dim=0)
        result += sign * side[inds] * torch.where(kept > 0, total / kept, 0.0)
        is_whole &= (kept > 0) | (total == 0)
    return result * is_whole


def check_num_hard(num: int) -> None:
    """Raises ValueError, naming the config's key, for a number below 1."""
    if num < 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE: expected at least 1 hard window, got {num}"
        )


def without_lower_limit(matcher: Matcher) -> Matcher:
    """Over an object or over nothing, by the last threshold; none is left out."""
    return Matcher([matcher.thresholds[-2]], [0, 1])


def check_finite(values: torch.Tensor, proposals: list[Instances], what: str) -> None:
    """Raises ProposalError for the first of R values that is not finite."""
    is_bad = ~torch.isfinite(values)
    if is_bad.any():
        worst = int(is_bad.nonzero()[0])
        for image_ind, own in enumerate(proposals):
            if worst < len(own):
                box = [round(x, 1) for x in own.proposal_boxes.tensor[worst].tolist()]
                value = float(values[is_bad][0])
                reason = f"window {box}: expected a finite {what}, got {value}"
                raise ProposalError(image_ind, reason)
            worst -= len(own)
