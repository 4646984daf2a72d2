# SPDX-License-Identifier: Apache-2.0
"""
Anchors that are ranked together: Detectron2's RPN and RetinaNet with a ranking loss. And its RPN as
it is, but that it leaves out what the evaluation ignores.

Shapes: N images, R anchors of an image on all levels, K classes, P anchors over objects.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, RetinaNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from detectron2.utils.events import get_event_storage

from .cached_features import FeatureInputs
from .ranking_loss import RankingLoss, ranking_loss_from_config


@PROPOSAL_GENERATOR_REGISTRY.register()
class IgnoringRPN(RPN):
    """
    Detectron2's RPN for this project's mapper, which leaves difficult objects and crowds among the
    others: anchors over these are neither objects nor background.
    """

    @configurable
    def __init__(self, *, train_on_difficult: bool = False, **kwargs: Any) -> None:
        """
        Args:
            train_on_difficult: difficult objects are as others.
            kwargs: as RPN.
        """
        super().__init__(**kwargs)
        self.train_on_difficult = train_on_difficult

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["train_on_difficult"] = cfg.MODEL.TRAIN_DIFFICULT_ON
        return ret

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As RPN; gt_instances may have gt_difficult and gt_is_crowd."""
        is_ignored = [is_ignored_object(x, self.train_on_difficult) for x in gt_instances]
        counted = [x[~ignored] for x, ignored in zip(gt_instances, is_ignored, strict=True)]
        # Before they are sampled.
        self._over_ignored = [
            overlaps_ignored(anchors, x, ignored, self.anchor_matcher.thresholds[1])
            for x, ignored in zip(gt_instances, is_ignored, strict=True)
        ]
        return super().label_and_sample_anchors(anchors, counted)

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        return super()._subsample_labels(self._without_ignored(label))

    def _without_ignored(self, label: torch.Tensor) -> torch.Tensor:
        """Labels of the next image: RPN asks for them one by one, in order."""
        label[(label == 0) & self._over_ignored.pop(0)] = -1
        return label


@PROPOSAL_GENERATOR_REGISTRY.register()
class RankingRPN(IgnoringRPN):
    """
    Detectron2's RPN trained by MODEL.RANKING_LOSS, on all anchors: none are sampled.
    """

    @configurable
    def __init__(self, *, ranking_loss: RankingLoss, **kwargs: Any) -> None:
        """
        Args:
            ranking_loss: of one class.
            kwargs: as RPN.
        """
        super().__init__(**kwargs)
        self.ranking_loss = ranking_loss
        ranking_loss.set_prior(self.rpn_head.objectness_logits)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        weight = cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT
        ret["ranking_loss"] = ranking_loss_from_config(cfg, "RPN", weight)
        return ret

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        return self._without_ignored(label)

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """As RPN; the keys are those of the ranking loss with "rpn_" after "loss_"."""
        labels = torch.stack(gt_labels)
        _count("rpn/num_pos_anchors", labels == 1)
        _count("rpn/num_neg_anchors", labels == 0)
        losses = self.ranking_loss(
            torch.cat(pred_objectness_logits, dim=1).flatten()[:, None],
            # The class of an object is 0, background is 1.
            torch.where(labels < 0, labels, 1 - labels).long().flatten(),
            *_boxes(self.box2box_transform, anchors, pred_anchor_deltas, gt_boxes, labels == 1),
        )
        return {
            name.replace("loss_", "loss_rpn_", 1): self.loss_weight.get("loss_rpn_cls", 1.0) * loss
            for name, loss in losses.items()
        }


@META_ARCH_REGISTRY.register()
class RankingRetinaNet(FeatureInputs, RetinaNet):
    """Detectron2's RetinaNet trained by MODEL.RANKING_LOSS."""

    @configurable
    def __init__(
        self, *, ranking_loss: RankingLoss, train_on_difficult: bool = False, **kwargs: Any
    ) -> None:
        """
        Args:
            ranking_loss: the loss.
            train_on_difficult: difficult objects are as others.
            kwargs: as RetinaNet.
        """
        super().__init__(**kwargs)
        self.ranking_loss = ranking_loss
        self.train_on_difficult = train_on_difficult

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        ret = super().from_config(cfg)
        ret["ranking_loss"] = ranking_loss_from_config(cfg, "RETINANET")
        ret["train_on_difficult"] = cfg.MODEL.TRAIN_DIFFICULT_ON
        return ret

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As RetinaNet; anchors over difficult objects and crowds are ignored."""
        is_ignored = [is_ignored_object(x, self.train_on_difficult) for x in gt_instances]
        counted = [x[~ignored] for x, ignored in zip(gt_instances, is_ignored, strict=True)]
        labels, gt_boxes = super().label_anchors(anchors, counted)
        for label, x, ignored in zip(labels, gt_instances, is_ignored, strict=True):
            over = overlaps_ignored(anchors, x, ignored, self.anchor_matcher.thresholds[1])
            label[(label == self.num_classes) & over] = -1
        return labels, gt_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """As RetinaNet; the keys are those of the ranking loss."""
        labels = torch.stack(gt_labels)
        is_positive = (labels >= 0) & (labels < self.num_classes)
        _count("num_pos_anchors", is_positive)
        return self.ranking_loss(
            torch.cat(pred_logits, dim=1).flatten(0, 1),
            labels.flatten(),
            *_boxes(self.box2box_transform, anchors, pred_anchor_deltas, gt_boxes, is_positive),
        )


def is_ignored_object(objects: Instances, train_on_difficult: bool) -> torch.Tensor:
    """(G,) which objects of an image evaluation ignores."""
    is_ignored = torch.zeros_like(objects.gt_classes, dtype=torch.bool)
    if objects.has("gt_is_crowd"):
        is_ignored |= objects.gt_is_crowd != 0
    if objects.has("gt_difficult") and not train_on_difficult:
        is_ignored |= objects.gt_difficult != 0
    return is_ignored


def overlaps_ignored(
    anchors: list[Boxes], objects: Instances, is_ignored: torch.Tensor, iou_thresh: float
) -> torch.Tensor:
    """
    (R,) anchors of an image that overlap an ignored object from the threshold on by which they
    would be no background, or lie in a crowd by half.
    """
    every = Boxes.cat(anchors)
    result = torch.zeros(len(every), dtype=torch.bool, device=every.device)
    ignored = objects[is_ignored]
    if len(ignored):
        result |= (pairwise_iou(ignored.gt_boxes, every) >= iou_thresh).any(dim=0)
    if ignored.has("gt_is_crowd"):
        crowds = ignored.gt_boxes[ignored.gt_is_crowd != 0]
        result |= (pairwise_ioa(crowds, every) >= 0.5).any(dim=0)
    return result


def _count(name: str, mask: torch.Tensor) -> None:
    get_event_storage().put_scalar(name, int(mask.sum()) / len(mask))


def _boxes(
    transform: Box2BoxTransform,
    anchors: list[Boxes],
    deltas: list[torch.Tensor],
    gt_boxes: list[torch.Tensor],
    mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, 4) what becomes of the anchors of the mask (N, R), and (P, 4) their objects."""
    anchor_boxes = torch.cat([x.tensor for x in anchors]).expand(len(mask), -1, -1)[mask]
    boxes = transform.apply_deltas(torch.cat(deltas, dim=1)[mask], anchor_boxes)
    return boxes, torch.stack(gt_boxes)[mask]
