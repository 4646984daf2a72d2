# SPDX-License-Identifier: Apache-2.0
"""
ROI heads whose proposals are trained for mAP.

Shape letters: N images, R proposals of all images, K classes.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import ImageList, Instances

from ..layers.checks import check_choice
from .gradient_cache import GradientCache, LossInputs
from .hard_example_mining import check_finite
from .image_pyramid import Features
from .map_output_layers import MAPOutputLayers
from .roi_heads import TRAINED_ON, BoxROIHeads


@ROI_HEADS_REGISTRY.register()
class MAPROIHeads(BoxROIHeads):
    """Proposals scored without softmax and trained for mAP after NMS (the paper's detector)."""

    predictor_class = MAPOutputLayers
    box_predictor: MAPOutputLayers

    @configurable
    def __init__(self, *, trained_on: str = "sampled", **kwargs: Any) -> None:
        """
        Args:
            trained_on: "sampled"; "all"; or "hard": the loss is that of all proposals, and those
                carry its gradient in whose scores it is largest, so many as would be sampled.
            kwargs: see :class:`BoxROIHeads`; `proposal_append_gt` must be False.

        Raises:
            ValueError: proposal_append_gt is True, another word for the proposals, no hard ones, or
                hard ones of a loss whose gradient does not tell which these are.
        """
        check_choice("MODEL.MAP_LOSS.WINDOWS", trained_on, TRAINED_ON)
        super().__init__(trained_on=trained_on, **kwargs)
        if self.proposal_append_gt:
            raise ValueError(
                "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT: expected False (perfect proposals would be "
                "ranked in training that the test does not have), got True"
            )
        is_noise = self.box_predictor.map_loss.settings.gradient == "reinforce"
        if trained_on == "hard" and is_noise:
            raise ValueError(
                "MODEL.MAP_LOSS.WINDOWS: expected all or sampled with GRADIENT 'reinforce' (the "
                "largest elements of its gradient are those of the largest noise), got 'hard'"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["trained_on"] = cfg.MODEL.MAP_LOSS.WINDOWS
        if ret["trained_on"] == "hard" and cfg.MODEL.OHEM.ONE_PASS_ON:
            raise ValueError(
                "MODEL.OHEM.ONE_PASS_ON: expected False with MODEL.MAP_LOSS.WINDOWS 'hard' (only "
                "OHEMROIHeads have it), got True"
            )
        return ret

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        gradient_cache: GradientCache | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """
        As :class:`BoxROIHeads`.

        Args:
            images: as there.
            features: as there.
            proposals: as there.
            targets: as there.
            gradient_cache: of these proposals, ranked before with others; None ranks them.
        """
        if not self.training:
            return self.inference(features, proposals), {}
        proposals, targets = self.training_proposals(proposals, targets)
        if self.trained_on == "hard":
            inputs = self._score_to_rank(features, proposals, targets)
            if gradient_cache is None:
                gradient_cache = self.box_predictor.rank(inputs)
            else:
                gradient_cache.check_scores(inputs.scores)
            # By the size of their scores' gradient; they carry what the others have of it.
            sizes = gradient_cache.gradient.abs().sum(dim=1)
            inds, proposals = self.mine_hard_proposals(sizes, proposals)
            gradient_cache = gradient_cache.only(inds)
        predictions = self.score_proposals(features, proposals)
        losses = self.box_predictor.losses(predictions, proposals, targets, gradient_cache)
        self._watch(proposals)
        return proposals, losses

    def loss_inputs(
        self,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances],
    ) -> LossInputs:
        """What the loss ranks of a minibatch; arguments as for :meth:`forward`."""
        return self._score_to_rank(features, *self.training_proposals(proposals, targets))

    def _score_to_rank(
        self,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances],
    ) -> LossInputs:
        if self.trained_on == "hard":
            predictions = self.score_read_only(features, proposals)
            check_finite(predictions.scores.sum(dim=1), proposals, "sum of scores")
        else:
            predictions = self.score_proposals(features, proposals)
        return self.box_predictor.loss_inputs(predictions, proposals, targets)
