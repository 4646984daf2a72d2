# SPDX-License-Identifier: Apache-2.0
"""ROI heads that train on hard proposals."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Instances

from .image_pyramid import Features
from .output_layers import BoxPredictions, SoftmaxOutputLayers
from .roi_heads import SoftmaxROIHeads


@ROI_HEADS_REGISTRY.register()
class OHEMROIHeads(SoftmaxROIHeads):
    """
    Softmax, trained on the proposals of the largest losses (Shrivastava et al. 2016, section 4).

    All proposals go forward through a read-only pass of the box head and the predictor (no graph,
    no dropout); those of the largest loss of classification and box together, after NMS by loss, go
    through the ordinary pass. Background begins at IoU 0, and no share of foreground is asked for:
    MODEL.ROI_HEADS.POSITIVE_FRACTION and the lower of its IOU_THRESHOLDS do not count.

    `one_pass` is for comparison (section 4.2): all proposals go through the ordinary pass and the
    losses of the easy ones are dropped. It chooses the same and gives the same gradient where the
    head has no dropout and no batch normalisation, and needs the backward pass of all proposals.
    """

    box_predictor: SoftmaxOutputLayers

    @configurable
    def __init__(self, *, one_pass: bool = False, **kwargs: Any) -> None:
        """
        Args:
            one_pass: see above.
            kwargs: see :class:`maploss.modeling.roi_heads.BoxROIHeads`; `batch_size_per_image` is
                the number of hard proposals.

        Raises:
            ValueError: a number of hard proposals below 1.
        """
        super().__init__(trained_on="hard", **kwargs)
        self.one_pass = one_pass

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["one_pass"] = cfg.MODEL.OHEM.ONE_PASS_ON
        return ret

    def score_to_train(
        self, features: Features, proposals: list[Instances]
    ) -> tuple[list[Instances], BoxPredictions]:
        """The hard proposals, and what the predictor says of them."""
        score = self.score_proposals if self.one_pass else self.score_read_only
        predictions = score(features, proposals)
        with torch.no_grad():
            losses = self.box_predictor.proposal_losses(predictions, proposals)
        inds, hard = self.mine_hard_proposals(losses, proposals)
        return hard, predictions.of(inds) if self.one_pass else self.score_proposals(features, hard)
