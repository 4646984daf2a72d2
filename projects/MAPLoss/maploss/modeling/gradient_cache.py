# SPDX-License-Identifier: Apache-2.0
"""
Gradient caching (Gao et al. 2021): a loss of more proposals than one graph holds.

All proposals are scored without a graph, and their scores give the loss and its gradient by them.
Then a part of the proposals is scored once more, with a graph, and gets its share of the gradient:

    scores, no graph   ->  loss, gradient by the scores  ->  GradientCache
    scores of a part   ->  GradientCache.losses           ->  backward: the cached gradient goes on

So one mAP is made of the minibatches of several passes
(:class:`~maploss.engine.accumulating_trainer.AccumulatingTrainer`), and of all proposals where only
hard ones train (:class:`~maploss.modeling.MAPROIHeads`).

Shape letters: R proposals, those of one pass, K classes, G objects, H hard proposals.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..layers.map_loss.differentiate import BoxGradient
from ..layers.surrogate_gradient import attach_gradient
from .hard_example_mining import sparsify_gradient


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


class BoxTargets(NamedTuple):
    """
    What box regression is to learn of a ranking.

    Args:
        weights: (R, K) float64, by how much the loss falls with the IoU of each proposal's box, as
            each class, and its object; 0 where there is none.
        objects: (R, K) int64, index of that object.
        gt_boxes: (G, 4).
    """

    weights: torch.Tensor
    objects: torch.Tensor
    gt_boxes: torch.Tensor

    @classmethod
    def of(cls, gradient: BoxGradient | None, gt_boxes: torch.Tensor) -> "BoxTargets | None":
        """None for a loss that leaves boxes alone."""
        return None if gradient is None else cls(*gradient, gt_boxes)

    def only(self, inds: torch.Tensor, factor: float | torch.Tensor = 1.0) -> "BoxTargets":
        """Of some proposals, the weights multiplied."""
        return self._replace(weights=factor * self.weights[inds], objects=self.objects[inds])


@dataclasses.dataclass(frozen=True, eq=False)
class GradientCache:
    """
    The losses of a ranking that was made before, and their gradient by the scores of R proposals.

    Args:
        values: the losses by name, 0-d, constants; "loss_map" is one of them.
        gradient: (R, K) of the sum of the losses by the scores.
        num_proposals: by how many the sum of box regression's losses is divided.
        scores: (R, K) that were ranked; None where they are not those that will train.
        box_targets: None for a loss that leaves boxes alone.
    """

    values: dict[str, torch.Tensor]
    gradient: torch.Tensor
    num_proposals: float
    scores: torch.Tensor | None
    box_targets: BoxTargets | None = None

    def split(self, counts: Sequence[int]) -> list["GradientCache"]:
        """
        One for each pass, in order, of so many proposals: the losses of all, and the gradient of
        its own, multiplied by the number of passes, since the gradients of the passes are averaged.
        """
        if self.scores is None:
            raise ValueError("scores: expected those that were ranked, got None")
        num_passes = len(counts)
        passes = torch.arange(len(self.scores), device=self.scores.device).split(list(counts))
        return [
            GradientCache(
                self.values,
                self.gradient[inds] * num_passes,
                sum(counts) / num_passes,
                self.scores[inds],
                self.box_targets and self.box_targets.only(inds, num_passes),
            )
            for inds in passes
        ]

    def only(self, inds: torch.Tensor) -> "GradientCache":
        """
        For H of the proposals, scored as in training: they carry the gradient of all as far as
        :func:`~maploss.modeling.hard_example_mining.sparsify_gradient` says.
        """
        gradient, targets = sparsify_gradient(self.gradient, inds), self.box_targets
        if targets is not None:
            hard = targets.only(inds)
            factor = targets.weights.sum() / hard.weights.sum().clamp(min=1e-12)
            targets = hard._replace(weights=hard.weights * factor)
        return GradientCache(self.values, gradient, len(inds), None, targets)

    def check_scores(self, scores: torch.Tensor) -> None:
        """
        Raises:
            RuntimeError: they are of other proposals, or quite others, than those that were ranked:
                the model draws random numbers that do not come from torch.
        """
        if self.scores is None:
            return
        if self.scores.shape != scores.shape or _differ(self.scores, scores.detach()):
            raise RuntimeError(
                f"scores: expected those of the first round, {tuple(self.scores.shape)}, got "
                f"others, {tuple(scores.shape)}"
            )

    def losses(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        The losses, of which "loss_map" has the whole gradient by `scores` (R, K), with a graph.

        Raises:
            RuntimeError: as :meth:`check_scores`.
        """
        self.check_scores(scores)
        loss_map = attach_gradient(self.values["loss_map"], (scores,), (self.gradient,))
        return self.values | {"loss_map": loss_map}


def _differ(scores: torch.Tensor, others: torch.Tensor) -> bool:
    """By more than what rounding and the order of sums on a GPU explain."""
    if not scores.numel():
        return False
    away = (scores - others).abs().mean()
    return bool(away > 0.1 * (scores - scores.mean()).abs().mean() + 1e-6)
