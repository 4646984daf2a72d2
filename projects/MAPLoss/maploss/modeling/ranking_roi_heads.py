# SPDX-License-Identifier: Apache-2.0
"""
A box head whose proposals x classes are ranked together.

Shapes: N images, R proposals of all images, K classes, P proposals over objects.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Instances

from .output_layers import BoxOutputLayers, BoxPredictions
from .ranking_loss import RankingLoss, ranking_loss_from_config
from .roi_heads import BoxROIHeads


class RankingOutputLayers(BoxOutputLayers):
    """
    K logits, trained by MODEL.RANKING_LOSS; a detection's score is the sigmoid of its logit.

    Boxes, where there is regression, are trained by their overlap (GIoU), after decoding.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, ranking_loss: RankingLoss, **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: see :class:`BoxOutputLayers`.
            num_classes: as there.
            ranking_loss: the loss.
            kwargs: as there.
        """
        super().__init__(input_shape, num_classes=num_classes, num_outputs=num_classes, **kwargs)
        self.ranking_loss = ranking_loss
        ranking_loss.set_prior(self.cls_score)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        ret = super().from_config(cfg, input_shape)
        weight = ret["box_reg_weight"]
        # Without box regression the boxes are constants, and no weight changes that.
        ret["ranking_loss"] = ranking_loss_from_config(cfg, "BOX_HEAD", weight if weight > 0 else 1)
        return ret

    def losses(
        self, predictions: BoxPredictions, proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """The losses of :class:`maploss.modeling.ranking_loss.RankingLoss`, for all proposals."""
        classes = torch.cat([x.gt_classes for x in proposals])
        proposal_boxes = torch.cat([x.proposal_boxes.tensor for x in proposals])
        gt_boxes = torch.cat([x.gt_boxes.tensor for x in proposals])
        inds = (classes < self.num_classes).nonzero().squeeze(1)
        boxes = proposal_boxes[inds]
        if self.bbox_pred is not None and predictions.deltas is not None:
            boxes = self.bbox_pred.boxes(predictions.deltas[inds], boxes)
            box_inds = classes[inds] if self.bbox_pred.num_boxes > 1 else classes[inds] * 0
            boxes = boxes[torch.arange(len(inds), device=inds.device), box_inds]
        losses = self.ranking_loss(predictions.scores, classes, boxes, gt_boxes[inds])
        if self.bbox_pred is None:
            losses.pop("loss_box_giou", None)
        return losses

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.sigmoid()

    def vote_log_weights(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.log()


@ROI_HEADS_REGISTRY.register()
class RankingROIHeads(BoxROIHeads):
    """
    Proposals trained by MODEL.RANKING_LOSS, those of all images and all classes together.

    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE <= 0 takes all proposals, as the papers do.
    """

    predictor_class = RankingOutputLayers
