# SPDX-License-Identifier: Apache-2.0
"""
ROI heads whose windows are trained for mAP.

Shape letters: N images, R windows of all images, K classes.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import ImageList, Instances

from ..layers.checks import check_choice
from .gradient_cache import GradientCache, LossInputs
from .hard_example_mining import check_finite, check_num_hard, without_lower_limit
from .map_output_layers import MAPOutputLayers
from .roi_heads import WindowROIHeads

# MODEL.MAP_LOSS.WINDOWS: which windows the mAP loss is made of.
MAP_WINDOWS = ("all", "sampled", "hard")


@ROI_HEADS_REGISTRY.register()
class MAPROIHeads(WindowROIHeads):
    """Windows scored without softmax and trained for mAP after NMS (the paper's detector)."""

    predictor_class = MAPOutputLayers

    @configurable
    def __init__(self, *, windows: str = "sampled", **kwargs):
        """
        Args:
            windows: "sampled"; "all"; or "hard": the loss is that of all windows, and those carry
                its gradient in whose scores it is largest, so many as would be sampled.
            kwargs: see :class:`WindowROIHeads`; `proposal_append_gt` must be False.

        Raises:
            ValueError: proposal_append_gt is True, another word for the windows, no hard ones, or
                hard ones of a loss whose gradient does not tell which these are.
        """
        super().__init__(**kwargs)
        check_choice("MODEL.MAP_LOSS.WINDOWS", windows, MAP_WINDOWS)
        if self.proposal_append_gt:
            raise ValueError(
                "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT: expected False (perfect windows would be "
                "ranked in training that the test does not have), got True"
            )
        if windows == "hard":
            check_num_hard(self.batch_size_per_image)
            if self.box_predictor.map_loss.settings.gradient == "reinforce":
                raise ValueError(
                    "MODEL.MAP_LOSS.WINDOWS: expected all or sampled with GRADIENT 'reinforce' "
                    "(the largest elements of its gradient are those of the largest noise), got "
                    "'hard'"
                )
        self.is_hard = windows == "hard"
        self.samples = windows == "sampled" and self.batch_size_per_image > 0
        if windows != "sampled":
            self.proposal_matcher = without_lower_limit(self.proposal_matcher)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["windows"] = cfg.MODEL.MAP_LOSS.WINDOWS
        return ret

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        gradient_cache: GradientCache | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """
        As :class:`WindowROIHeads`.

        Args: gradient_cache: of these proposals, ranked before with others; None ranks them.
        """
        if not self.training:
            return super().forward(images, features, proposals)
        windows, targets = self.training_windows(proposals, targets)
        if self.is_hard:
            windows, gradient_cache = self._mine(features, windows, targets, gradient_cache)
        outputs = self.score_windows(features, windows)
        losses = self.box_predictor.losses(outputs, windows, targets, gradient_cache)
        self._watch(windows)
        return windows, losses

    def loss_inputs(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances],
    ) -> LossInputs:
        """What the loss ranks of a minibatch; arguments as for :meth:`forward`."""
        return self._score_to_rank(features, *self.training_windows(proposals, targets))

    def _score_to_rank(
        self,
        features: dict[str, torch.Tensor],
        windows: list[Instances],
        targets: list[Instances],
    ) -> LossInputs:
        score = self.score_read_only if self.is_hard else self.score_windows
        outputs = score(features, windows)
        if self.is_hard:
            check_finite(outputs.scores.sum(dim=1), windows, "sum of scores")
        return self.box_predictor.loss_inputs(outputs, windows, targets)

    def _mine(
        self,
        features: dict[str, torch.Tensor],
        windows: list[Instances],
        targets: list[Instances],
        gradient_cache: GradientCache | None,
    ) -> tuple[list[Instances], GradientCache]:
        """The windows whose scores have the largest gradient of all, and what they carry of it."""
        inputs = self._score_to_rank(features, windows, targets)
        if gradient_cache is None:
            gradient_cache = self.box_predictor.rank(inputs)
        else:
            gradient_cache.check_scores(inputs.scores)
        sizes = gradient_cache.gradient.abs().sum(dim=1)
        inds, hard = self.mine_hard_proposals(sizes, windows)
        return hard, gradient_cache.only(inds)
