# SPDX-License-Identifier: Apache-2.0
"""
Predictors: from the features of proposals to class scores and boxes, to losses, and to detections.

Shapes: N images, R proposals of all images (Ri of image i), K classes, G objects of all images, B
boxes of a proposal: K or 1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F

from .box_head import num_features
from .box_regressor import BoxRegressor
from .detections import (
    check_finite_scores,
    detections,
    make_candidates,
    proposal_candidates,
)


class BoxPredictions(NamedTuple):
    """
    What a predictor says of R proposals.

    scores: (R, number of scores), raw, at least of single precision. deltas: (R, 4 B) of
    :class:`maploss.modeling.box_regressor.BoxRegressor`, None without box regression.
    """

    scores: torch.Tensor
    deltas: torch.Tensor | None = None

    def of(self, inds: torch.Tensor) -> "BoxPredictions":
        """What is said of some of the proposals."""
        return BoxPredictions(self.scores[inds], None if self.deltas is None else self.deltas[inds])


class BoxOutputLayers(nn.Module):
    """
    One linear layer over the features of a proposal for the scores, and one for boxes if asked.

    A subclass says how many scores there are, their loss, and what is the score of a detection.
    """

    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        num_outputs: int,
        box_reg_weight: float = 0.0,
        box_reg_std: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
        box_reg_beta: float = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        is_class_agnostic: bool = False,
        regress_at_test: bool = True,
        test_score_thresh: float = float("-inf"),
        test_nms_iou_thresh: float = 0.3,
        test_vote_iou_thresh: float = 0.0,
        test_detections_per_image: int = -1,
    ) -> None:
        """
        Args:
            input_shape: of the features of one proposal.
            num_classes: K.
            num_outputs: how many scores a proposal has.
            box_reg_weight: lambda of the box regression's loss, 0 for none: proposals are boxes.
            box_reg_std: of the targets, until they are measured.
            box_reg_beta: of smooth L1.
            box_reg_loss_type: see :class:`maploss.modeling.box_regressor.BoxRegressor`.
            is_class_agnostic: one box of a proposal for all classes.
            regress_at_test: False leaves the proposals as they are (Girshick 2015, Table 6).
            test_score_thresh: see :mod:`maploss.modeling.detections`.
            test_nms_iou_thresh: see :mod:`maploss.modeling.detections`.
            test_vote_iou_thresh: see :mod:`maploss.modeling.detections`.
            test_detections_per_image: see :mod:`maploss.modeling.detections`.

        Raises:
            ValueError: a threshold of votes out of [0, 1].
        """
        super().__init__()
        if not 0 <= test_vote_iou_thresh <= 1:
            raise ValueError(
                f"test_vote_iou_thresh: expected a number in [0, 1], got {test_vote_iou_thresh}"
            )
        self.num_classes = num_classes
        self.test_score_thresh = test_score_thresh
        self.test_nms_iou_thresh = test_nms_iou_thresh
        self.test_vote_iou_thresh = test_vote_iou_thresh
        self.test_detections_per_image = test_detections_per_image
        input_size = num_features(input_shape)
        self.cls_score = nn.Linear(input_size, num_outputs)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)
        self.regress_at_test = regress_at_test
        self.bbox_pred = None
        if box_reg_weight > 0:
            num_boxes = 1 if is_class_agnostic else num_classes
            self.bbox_pred = BoxRegressor(
                input_size,
                num_boxes,
                loss_weight=box_reg_weight,
                target_std=box_reg_std,
                beta=box_reg_beta,
                loss_type=box_reg_loss_type,
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "box_reg_weight": cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT,
            "box_reg_std": [1 / x for x in cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS],
            "is_class_agnostic": cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG,
            "box_reg_beta": cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA,
            "box_reg_loss_type": cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE,
            "regress_at_test": cfg.TEST.BOX_REG.ENABLED,
            "test_vote_iou_thresh": cfg.TEST.BOX_VOTING_IOU_THRESH,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_iou_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, features: torch.Tensor) -> BoxPredictions:
        """(R, ...) features to what is said of the proposals."""
        x = features.flatten(1)
        deltas = None if self.bbox_pred is None else at_least_float32(self.bbox_pred(x))
        return BoxPredictions(at_least_float32(self.cls_score(x)), deltas)

    def losses(
        self, predictions: BoxPredictions, proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """
        The losses of the scores, and with box regression loss_box_reg.

        Args:
            predictions: of :meth:`forward`, for all proposals of the minibatch.
            proposals: N Instances with proposal_boxes, gt_classes (the label, K means background),
                and for box regression gt_boxes (of its object).
            targets: N Instances with gt_boxes, gt_classes, gt_difficult: all objects, whether a
                proposal matches them or not.
        """
        raise NotImplementedError

    def box_losses(self, predictions: BoxPredictions, proposals: list[Instances]) -> torch.Tensor:
        """
        (R,) the loss of the box regression of each proposal, 0 over nothing.

        Raises:
            ValueError: there is no box regression.
        """
        regressor, deltas = self._box_regression(predictions)
        return regressor.losses(
            deltas,
            torch.cat([x.proposal_boxes.tensor for x in proposals]),
            torch.cat([x.gt_boxes.tensor for x in proposals]),
            torch.cat([x.gt_classes for x in proposals]),
            self.num_classes,
        )

    def _box_regression(self, predictions: BoxPredictions) -> tuple[BoxRegressor, torch.Tensor]:
        """What made the deltas, and the deltas."""
        if self.bbox_pred is None or predictions.deltas is None:
            raise ValueError("predictions: expected deltas of box regression, got none")
        return self.bbox_pred, predictions.deltas

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """(R, num_outputs) raw scores to (R, K) scores of detections."""
        raise NotImplementedError

    def boxes(self, predictions: BoxPredictions, proposals: list[Instances]) -> torch.Tensor:
        """
        (R, 4), the proposals or their regressed boxes, or (R, K, 4), those of each class; regressed
        ones clipped to their images, as at test.
        """
        proposal_boxes = torch.cat([x.proposal_boxes.tensor for x in proposals])
        if self.bbox_pred is None or predictions.deltas is None:
            return proposal_boxes
        boxes = self.bbox_pred.boxes(predictions.deltas, proposal_boxes)
        if not torch.isfinite(boxes).all():
            raise FloatingPointError("boxes: box regression gave some that are not finite")
        sizes = [proposal_boxes.new_tensor(x.image_size[::-1]) for x in proposals]
        limits = [
            size.repeat(2).expand(len(x), 4) for size, x in zip(sizes, proposals, strict=True)
        ]
        boxes = boxes.clamp(min=0).minimum(torch.cat(limits)[:, None])
        return boxes[:, 0] if boxes.shape[1] == 1 else boxes

    def vote_log_weights(self, scores: torch.Tensor) -> torch.Tensor:
        """(C,) scores of detections to the logarithms of their weights in box voting."""
        raise NotImplementedError

    def inference(self, predictions: BoxPredictions, proposals: list[Instances]) -> list[Instances]:
        """
        Detections of each image.

        Args:
            predictions: of :meth:`forward`, for all proposals of the images.
            proposals: N Instances with proposal_boxes.
        """
        return self.detect(self.candidates(predictions, proposals))

    def candidates(
        self, predictions: BoxPredictions, proposals: list[Instances]
    ) -> list[Instances]:
        """Of each image, each proposal as each class; arguments as for :meth:`inference`."""
        if not self.regress_at_test:
            predictions = predictions._replace(deltas=None)
        counts = [len(x) for x in proposals]
        return [
            proposal_candidates(scores, boxes, x.image_size, self.test_score_thresh)
            for scores, boxes, x in zip(
                self.detection_scores(predictions.scores).split(counts),
                self.boxes(predictions, proposals).split(counts),
                proposals,
                strict=True,
            )
        ]

    def candidates_of_classes(
        self, predictions: BoxPredictions, proposals: list[Instances], classes: list[torch.Tensor]
    ) -> list[Instances]:
        """
        As :meth:`candidates`, each proposal as one class only.

        Args:
            predictions: with deltas.
            proposals: N Instances with proposal_boxes.
            classes: of each image, (Ri,) int64.

        Raises:
            FloatingPointError: a score is not finite.
        """
        classes_of_all = torch.cat(classes)
        rows = torch.arange(len(classes_of_all), device=classes_of_all.device)
        scores = self.detection_scores(predictions.scores)[rows, classes_of_all]
        check_finite_scores(scores)
        boxes = self.boxes(predictions, proposals)
        if boxes.dim() == 3:
            boxes = boxes[rows, classes_of_all]
        counts = [len(x) for x in proposals]
        candidates = [
            make_candidates(of_boxes, of_scores, of_classes, x.image_size)
            for of_boxes, of_scores, of_classes, x in zip(
                boxes.split(counts), scores.split(counts), classes, proposals, strict=True
            )
        ]
        return [x[x.scores > self.test_score_thresh] for x in candidates]

    def detect(self, candidates: list[Instances]) -> list[Instances]:
        """What NMS, votes and limits make of them, see :mod:`maploss.modeling.detections`."""
        has_votes = self.test_vote_iou_thresh > 0
        return [
            detections(
                x,
                nms_iou_thresh=self.test_nms_iou_thresh,
                detections_per_image=self.test_detections_per_image,
                vote_iou_thresh=self.test_vote_iou_thresh,
                log_weights=self.vote_log_weights(x.scores) if has_votes else None,
            )
            for x in candidates
        ]


class SoftmaxOutputLayers(BoxOutputLayers):
    """K + 1 logits, the last for background: Fast R-CNN's classifier, the paper's baseline."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_classes: int, **kwargs: Any) -> None:
        """
        Args:
            input_shape: see :class:`BoxOutputLayers`.
            num_classes: as there.
            kwargs: as there.
        """
        super().__init__(
            input_shape, num_classes=num_classes, num_outputs=num_classes + 1, **kwargs
        )

    def losses(
        self, predictions: BoxPredictions, proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """
        loss_cls, the negative log likelihood, the mean over proposals, 0 if there are none; and
        loss_box_reg. Arguments as for :class:`BoxOutputLayers`; the targets are not used.
        """
        scores = predictions.scores
        if len(scores) == 0:
            losses = {"loss_cls": scores.sum() * 0.0}
        else:
            labels = torch.cat([x.gt_classes for x in proposals])
            losses = {"loss_cls": F.cross_entropy(scores, labels)}
        if self.bbox_pred is not None:
            losses["loss_box_reg"] = self.box_loss(predictions, proposals)
        return losses

    def box_loss(self, predictions: BoxPredictions, proposals: list[Instances]) -> torch.Tensor:
        """
        The sum of :meth:`box_losses` by the number of all proposals, background too (Girshick 2015,
        equation 1; Detectron2), whichever loss it is; 0 if there are none.
        """
        return self.box_losses(predictions, proposals).sum() / max(len(predictions.scores), 1)

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return F.softmax(scores, dim=1)[:, : self.num_classes]

    def vote_log_weights(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.log()

    def proposal_losses(
        self, predictions: BoxPredictions, proposals: list[Instances]
    ) -> torch.Tensor:
        """(R,) what each proposal adds to the losses: of its classification and of its box."""
        labels = torch.cat([x.gt_classes for x in proposals])
        losses = F.cross_entropy(predictions.scores, labels, reduction="none")
        return (
            losses if self.bbox_pred is None else losses + self.box_losses(predictions, proposals)
        )


def image_inds(instances: list[Instances], device: torch.device) -> torch.Tensor:
    """(sum of lengths,) index of the image that each instance belongs to."""
    counts = torch.tensor([len(x) for x in instances], device=device)
    return torch.arange(len(instances), device=device).repeat_interleave(counts)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x, at least of single precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
