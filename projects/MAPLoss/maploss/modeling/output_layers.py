# SPDX-License-Identifier: Apache-2.0
"""
Predictors: from the features of windows to class scores and boxes, to losses, and to detections.

Shapes: N images, R windows of all images (Ri of image i), K classes, G objects of all images, B
boxes of a window: K or 1.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F

from ..layers import MAPLoss
from ..layers.checks import check_choice
from .box_head import num_features
from .box_regressor import BoxRegressor

logger = logging.getLogger(__name__)

# MODEL.MAP_LOSS.BOX_REG: no box regression, or with it and NMS in training on these boxes.
MAP_BOX_REGS = ("none", "windows", "regressed")


class WindowOutputs(NamedTuple):
    """
    What a predictor says of R windows.

    scores: (R, number of scores), raw, at least of single precision. deltas: (R, 4 B) of
    :class:`maploss.modeling.box_regressor.BoxRegressor`, None without box regression.
    """

    scores: torch.Tensor
    deltas: torch.Tensor | None = None


def window_detections(
    scores: torch.Tensor,
    windows: torch.Tensor,
    image_size: tuple[int, int],
    *,
    score_thresh: float,
    nms_iou_thresh: float,
    detections_per_image: int,
) -> Instances:
    """
    Detections of one image: its windows after greedy NMS of each class, scores at full precision.

    Args:
        scores: (Ri, K). windows: (Ri, 4) XYXY in pixels, or (Ri, K, 4), a box of its own for each
            class; clipped to the image here.
        image_size: height and width in pixels.
        score_thresh: scores not above it are dropped; -inf drops none.
        nms_iou_thresh: a window is suppressed by a better one of IoU above it.
        detections_per_image: the best so many of all classes together; <= 0 means all.

    Returns:
        Instances with pred_boxes, scores, pred_classes, by falling score.

    Raises:
        FloatingPointError: a score is not finite.
    """
    check_finite_scores(scores)
    window_inds, class_inds = (scores > score_thresh).nonzero(as_tuple=True)
    scores = scores[window_inds, class_inds]
    boxes = Boxes(windows[window_inds] if windows.dim() == 2 else windows[window_inds, class_inds])
    boxes.clip(image_size)
    box_tensor = boxes.tensor
    # Which it keeps does not depend on the order of ties, but its own order does.
    keep = batched_nms(box_tensor, scores, class_inds, nms_iou_thresh).sort()[0]
    keep = keep[torch.argsort(scores[keep], descending=True, stable=True)]
    if detections_per_image > 0:
        keep = keep[:detections_per_image]
    result = Instances(image_size)
    result.pred_boxes = Boxes(box_tensor[keep])
    result.scores = scores[keep]
    result.pred_classes = class_inds[keep]
    return result


def check_finite_scores(scores: torch.Tensor) -> None:
    """Raises FloatingPointError where a score is infinite or not a number."""
    is_finite = torch.isfinite(scores)
    if not is_finite.all():
        raise FloatingPointError(
            f"scores: expected finite values, got {int((~is_finite).sum())} of {scores.numel()} "
            "that are infinite or not a number"
        )


class WindowOutputLayers(nn.Module):
    """
    One linear layer over the features of a window for the scores, and one for boxes if asked.

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
        is_class_agnostic: bool = False,
        regress_at_test: bool = True,
        test_score_thresh: float = float("-inf"),
        test_nms_iou_thresh: float = 0.3,
        test_detections_per_image: int = -1,
    ):
        """
        Args:
            input_shape: of the features of one window.
            num_classes: K. num_outputs: how many scores a window has.
            box_reg_weight: lambda of the box regression's loss, 0 for none: windows are boxes.
            box_reg_std: of the targets, until they are measured.
            is_class_agnostic: one box of a window for all classes. regress_at_test: False leaves
                the windows as they are (Girshick 2015, Table 6).
            test_score_thresh, test_nms_iou_thresh, test_detections_per_image: see
                :func:`window_detections`.
        """
        super().__init__()
        self.num_classes = num_classes
        self.test_score_thresh = test_score_thresh
        self.test_nms_iou_thresh = test_nms_iou_thresh
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
                input_size, num_boxes, loss_weight=box_reg_weight, target_std=box_reg_std
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "box_reg_weight": cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT,
            "box_reg_std": [1 / x for x in cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS],
            "is_class_agnostic": cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG,
            "regress_at_test": cfg.TEST.BOX_REG,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_iou_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, features: torch.Tensor) -> WindowOutputs:
        """(R, ...) features to what is said of the windows."""
        x = features.flatten(1)
        deltas = None if self.bbox_pred is None else _single(self.bbox_pred(x))
        return WindowOutputs(_single(self.cls_score(x)), deltas)

    def losses(
        self, outputs: WindowOutputs, windows: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """
        The losses of the scores, and with box regression loss_box_reg.

        Args:
            outputs: of :meth:`forward`, for all windows of the minibatch.
            windows: N Instances with proposal_boxes, gt_classes (the window's label, K means
                background), and for box regression gt_boxes (of its object).
            targets: N Instances with gt_boxes, gt_classes, gt_difficult: all objects, whether a
                window matches them or not.
        """
        losses = self.score_losses(outputs, windows, targets)
        if self.bbox_pred is not None:
            losses["loss_box_reg"] = self.bbox_pred.loss(
                outputs.deltas,
                torch.cat([x.proposal_boxes.tensor for x in windows]),
                torch.cat([x.gt_boxes.tensor for x in windows]),
                torch.cat([x.gt_classes for x in windows]),
                self.num_classes,
            )
        return losses

    def score_losses(
        self, outputs: WindowOutputs, windows: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """The losses of the scores; arguments as for :meth:`losses`."""
        raise NotImplementedError

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """(R, num_outputs) raw scores to (R, K) scores of detections."""
        raise NotImplementedError

    def boxes(self, outputs: WindowOutputs, windows: list[Instances]) -> torch.Tensor:
        """
        (R, 4), the windows or their regressed boxes, or (R, K, 4), those of each class; regressed
        ones clipped to their images, as at test.
        """
        own = torch.cat([x.proposal_boxes.tensor for x in windows])
        if self.bbox_pred is None or outputs.deltas is None:
            return own
        boxes = self.bbox_pred.boxes(outputs.deltas, own)
        if not torch.isfinite(boxes).all():
            raise FloatingPointError("boxes: box regression gave some that are not finite")
        limits = [own.new_tensor(x.image_size[::-1]).repeat(2).expand(len(x), 4) for x in windows]
        boxes = boxes.clamp(min=0).minimum(torch.cat(limits)[:, None])
        return boxes[:, 0] if boxes.shape[1] == 1 else boxes

    def inference(self, outputs: WindowOutputs, windows: list[Instances]) -> list[Instances]:
        """Detections of each image (see :func:`window_detections`)."""
        if not self.regress_at_test:
            outputs = outputs._replace(deltas=None)
        counts = [len(x) for x in windows]
        scores = self.detection_scores(outputs.scores).split(counts)
        boxes = self.boxes(outputs, windows).split(counts)
        return [
            window_detections(
                scores_per_image,
                boxes_per_image,
                windows_per_image.image_size,
                score_thresh=self.test_score_thresh,
                nms_iou_thresh=self.test_nms_iou_thresh,
                detections_per_image=self.test_detections_per_image,
            )
            for scores_per_image, boxes_per_image, windows_per_image in zip(
                scores, boxes, windows, strict=True
            )
        ]


class MAPOutputLayers(WindowOutputLayers):
    """
    K raw class scores, trained for mAP after NMS (Henderson & Ferrari 2016, section 4.1).

    There is no softmax and no background column. Raw scores have no scale, and those of different
    classes cannot be compared: Detectron2's default threshold (.05) and limit of detections per
    image (100, over all classes) would cut the PR curves. The project's configs turn both off.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        map_loss: MAPLoss,
        nms_on_regressed: bool = False,
        **kwargs,
    ):
        """
        Args:
            map_loss: the loss; its NMS should be that of the test (`test_nms_iou_thresh`).
            nms_on_regressed: the loss takes the regressed boxes for what is detected, as the test
                does, instead of the windows. They are constants to it.
            input_shape, num_classes, kwargs: see :class:`WindowOutputLayers`.
        """
        super().__init__(input_shape, num_classes=num_classes, num_outputs=num_classes, **kwargs)
        self.map_loss = map_loss
        self.nms_on_regressed = nms_on_regressed

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        ret = super().from_config(cfg, input_shape)
        box_reg = cfg.MODEL.MAP_LOSS.BOX_REG
        check_choice("MODEL.MAP_LOSS.BOX_REG", box_reg, MAP_BOX_REGS)
        if box_reg == "none":
            ret["box_reg_weight"] = 0.0
        elif not ret["box_reg_weight"] > 0:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT: expected a number above 0 with "
                f"MODEL.MAP_LOSS.BOX_REG {box_reg!r}, got {ret['box_reg_weight']}"
            )
        ret["nms_on_regressed"] = box_reg == "regressed"
        ret["map_loss"] = MAPLoss(
            ap_type=ap_type_from_config(cfg),
            nms_thresh=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            match_iou_thresh=cfg.MODEL.MAP_LOSS.MATCH_IOU_THRESH,
            estimator=cfg.MODEL.MAP_LOSS.ESTIMATOR,
            min_delta=cfg.MODEL.MAP_LOSS.MIN_DELTA,
            transitivity=cfg.MODEL.MAP_LOSS.TRANSITIVITY,
            pairing=cfg.MODEL.MAP_LOSS.PAIRING,
            margin=cfg.MODEL.MAP_LOSS.MARGIN,
            grad_clip=cfg.MODEL.MAP_LOSS.GRAD_CLIP or None,
            log_space=cfg.MODEL.MAP_LOSS.LOG_SPACE,
            eps=cfg.MODEL.MAP_LOSS.EPS,
            score_reg_weight=cfg.MODEL.MAP_LOSS.SCORE_REG_WEIGHT,
            score_reg_power=cfg.MODEL.MAP_LOSS.SCORE_REG_POWER,
        )
        return ret

    def score_losses(
        self, outputs: WindowOutputs, windows: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """
        loss_map and loss_score_reg, see :class:`maploss.layers.MAPLoss`.

        The labels of the windows are not used: the loss matches them to the objects of each class.
        """
        scores = outputs.scores
        if not self.nms_on_regressed:
            outputs = outputs._replace(deltas=None)
        losses, stats = self.map_loss(
            scores,
            self.boxes(outputs, windows),
            _image_inds(windows, scores.device),
            torch.cat([x.gt_boxes.tensor for x in targets]),
            torch.cat([x.gt_classes for x in targets]),
            _image_inds(targets, scores.device),
            torch.cat([x.gt_difficult for x in targets]),
        )
        largest_score = scores.detach().abs().max() if scores.numel() else scores.new_zeros(())
        watched = {
            "map/minibatch_map": stats.map,
            "map/gradient_up": stats.up_per_class.sum(),
            "map/gradient_down": stats.down_per_class.sum(),
            "map/nonzero_share": stats.nonzero_share,
            "map/clipped_share": stats.clipped_share,
            "map/largest_score": largest_score,
        }
        storage = get_event_storage()
        for name, value in watched.items():
            storage.put_scalar(name, float(value))
        return losses

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores


class SoftmaxOutputLayers(WindowOutputLayers):
    """K + 1 logits, the last for background: Fast R-CNN's classifier, the paper's baseline."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_classes: int, **kwargs):
        """Args: see :class:`WindowOutputLayers`."""
        super().__init__(
            input_shape, num_classes=num_classes, num_outputs=num_classes + 1, **kwargs
        )

    def score_losses(
        self, outputs: WindowOutputs, windows: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """loss_cls: the negative log likelihood, the mean over windows; 0 if there are none."""
        scores = outputs.scores
        if len(scores) == 0:
            return {"loss_cls": scores.sum() * 0.0}
        return {"loss_cls": F.cross_entropy(scores, torch.cat([x.gt_classes for x in windows]))}

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return F.softmax(scores, dim=1)[:, : self.num_classes]


def ap_type_from_config(cfg: CfgNode) -> str:
    """
    MODEL.MAP_LOSS.AP_TYPE, or if that is "auto", `ap_type` of the first data set's metadata.

    Raises:
        ValueError: "auto", and there is no data set or its metadata has no ap_type.
    """
    ap_type = cfg.MODEL.MAP_LOSS.AP_TYPE
    if ap_type != "auto":
        return ap_type
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    ap_type = MetadataCatalog.get(names[0]).get("ap_type", None) if names else None
    if ap_type is None:
        raise ValueError(
            "MODEL.MAP_LOSS.AP_TYPE 'auto': expected `ap_type` in the metadata of "
            f"{repr(names[0]) if names else 'DATASETS.TRAIN[0]'}, got none; "
            "set AP_TYPE to 'area', 'voc07' or 'coco101'"
        )
    logger.info(f"AP type of the loss: {ap_type!r}, as in the evaluation of {names[0]!r}")
    return ap_type


def _image_inds(instances: list[Instances], device: torch.device) -> torch.Tensor:
    """(sum of lengths,) index of the image that each instance belongs to."""
    counts = torch.tensor([len(x) for x in instances], device=device)
    return torch.arange(len(instances), device=device).repeat_interleave(counts)


def _single(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
