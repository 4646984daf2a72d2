# SPDX-License-Identifier: Apache-2.0
"""Boxes as means of those around them. Shape letters: D boxes, V voters."""

import torch

from .box_iou import paired_iou
from .checks import check_fraction, check_shape


@torch.no_grad()
def box_voting(
    boxes: torch.Tensor, voters: torch.Tensor, log_weights: torch.Tensor, iou_thresh: float = 0.5
) -> torch.Tensor:
    """
    Each box becomes the weighted mean of the voters whose IoU with it is above a threshold.

    Box voting of Gidaris & Komodakis 2015 ("Object detection via a multi-region & semantic
    segmentation-aware CNN model", section 4). The weights are exp(log_weights), known up to a
    factor: log probabilities vote by their probabilities, and raw scores, of which only the
    differences mean something, as a softmax over the voters makes of them.

    Args:
        boxes: (D, 4) XYXY in pixels.
        voters: (V, 4) XYXY, of the same image and class; a box that is to vote for itself is among
            them.
        log_weights: (V,), -inf for none.
        iou_thresh: in [0, 1]; a voter's IoU is to be above it.

    Returns:
        (D, 4); a box for which none votes is left as it is.

    Raises:
        ValueError, TypeError: a wrong shape or threshold.

    Example:
        >>> voters = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]])
        >>> box_voting(voters[:1], voters, torch.tensor([0.75, 0.25, 0.9]).log())
        tensor([[ 0.0000,  0.0000, 10.0000, 10.5000]])
    """
    check_shape("boxes", boxes, ("D", 4))
    check_shape("voters", voters, ("V", 4))
    check_shape("log_weights", log_weights, (len(voters),))
    check_fraction("iou_thresh", iou_thresh)
    if not len(boxes) or not len(voters):
        return boxes.clone()
    votes = log_weights.to(boxes).expand(len(boxes), -1)
    is_near = paired_iou(boxes[:, None], voters.to(boxes)) > iou_thresh
    votes = votes.masked_fill(~is_near, float("-inf"))
    has_votes = votes.amax(dim=1, keepdim=True) > float("-inf")
    means = votes.masked_fill(~has_votes, 0.0).softmax(dim=1) @ voters.to(boxes)
    return torch.where(has_votes, means, boxes)
