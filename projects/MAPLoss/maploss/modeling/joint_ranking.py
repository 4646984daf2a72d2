# SPDX-License-Identifier: Apache-2.0
"""
One mAP of the minibatches of several passes: windows are scored twice, and ranked once.

Shape letters: R windows of one pass, K classes, G objects.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..layers.surrogate_gradient import attach_gradient


class LossInputs(NamedTuple):
    """What :func:`maploss.layers.map_loss` takes, in its order; boxes are constants to it."""

    scores: torch.Tensor
    boxes: torch.Tensor
    image_ids: torch.Tensor
    gt_boxes: torch.Tensor
    gt_classes: torch.Tensor
    gt_image_ids: torch.Tensor
    gt_difficult: torch.Tensor

    @classmethod
    def join(cls, parts: Sequence["LossInputs"], num_images: Sequence[int]) -> "LossInputs":
        """Of all parts together; image ids of each count from 0, those of the next go on."""
        firsts = itertools.accumulate(num_images, initial=0)
        numbered = [
            x._replace(image_ids=x.image_ids + first, gt_image_ids=x.gt_image_ids + first)
            for x, first in zip(parts, firsts, strict=False)
        ]
        return cls(*(torch.cat(column) for column in zip(*numbered, strict=True)))


class JointRanking:
    """
    Between the passes of an update.

    In a first round, without a graph, :meth:`collect` takes the scores of each pass. Then all are
    ranked together. In a second round :meth:`next_losses` gives each pass, in the same order, the
    loss of all and the gradient by its own scores.
    """

    def __init__(self) -> None:
        self._inputs: list[LossInputs] = []
        self._num_images: list[int] = []
        self._losses: dict[str, torch.Tensor] = {}
        self._gradients: list[torch.Tensor] = []
        self._num_given = 0
        self.is_ranked = False

    def collect(self, inputs: LossInputs, num_images: int) -> None:
        """Takes in a pass of so many images, whose numbers count from 0."""
        self._inputs.append(
            inputs._replace(scores=inputs.scores.detach(), boxes=inputs.boxes.detach())
        )
        self._num_images.append(num_images)

    def rank(self, loss: Callable[[LossInputs], dict[str, torch.Tensor]]) -> None:
        """Ends the first round: `loss` of all windows, and its gradient by their scores."""
        joined = LossInputs.join(self._inputs, self._num_images)
        with torch.enable_grad():
            scores = joined.scores.requires_grad_()
            losses = loss(joined._replace(scores=scores))
            (gradient,) = torch.autograd.grad(sum(losses.values()), scores)
        self._losses = {name: value.detach() for name, value in losses.items()}
        self._gradients = list(gradient.split([len(x.scores) for x in self._inputs]))
        self.is_ranked = True

    @property
    def mean_num_windows(self) -> float:
        """Of a pass."""
        return sum(len(x.scores) for x in self._inputs) / max(len(self._inputs), 1)

    def next_losses(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        The losses of all passes, with the gradient by the scores (R, K) of the next one, multiplied
        by the number of passes: the gradients of the passes are averaged.

        Raises:
            RuntimeError: the pass has other windows, or quite other scores, than in the first
                round: the model draws random numbers that do not come from torch.
        """
        collected, gradient = self._inputs[self._num_given].scores, self._gradients[self._num_given]
        if collected.shape != scores.shape or _differ(collected, scores.detach()):
            raise RuntimeError(
                f"scores: expected those of the first round, {tuple(collected.shape)}, got others, "
                f"{tuple(scores.shape)}"
            )
        self._num_given += 1
        num_passes = len(self._inputs)
        losses = dict(self._losses)
        losses["loss_map"] = attach_gradient(
            losses["loss_map"], (scores,), (gradient * num_passes,)
        )
        return losses


def _differ(scores: torch.Tensor, others: torch.Tensor) -> bool:
    """By more than what rounding and the order of sums on a GPU explain."""
    if not scores.numel():
        return False
    away = (scores - others).abs().mean()
    return bool(away > 0.1 * (scores - scores.mean()).abs().mean() + 1e-6)
