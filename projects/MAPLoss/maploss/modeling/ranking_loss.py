# SPDX-License-Identifier: Apache-2.0
"""
The loss of all proposals x classes of a detector, most in one ranking: which loss, and its boxes.

Shapes: R proposals or anchors of all images, K classes, P proposals over objects.
"""

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from fvcore.nn import giou_loss
from torch import nn

from ..layers import (
    ParameterizedAPLoss,
    alrp_loss,
    ap_loss,
    direct_ap_loss,
    focal_loss,
    quality_focal_loss,
    rank_sort_loss,
    smooth_ap_loss,
    varifocal_loss,
)
from ..layers.box_iou import paired_iou
from ..layers.checks import check_choice, check_positive
from ..layers.map_loss.settings import check_iou_threshs
from ..layers.ranking_losses.labels import IGNORED, NEGATIVE, POSITIVE
from ..layers.surrogate_gradient import scale_gradient
from ..utils.prefix_errors import prefix_errors
from .output_layers import at_least_float32

# MODEL.RANKING_LOSS.NAME: losses that rank, and those of each score by itself.
RANKING_LOSSES = (
    "parameterized_ap",
    "ap",
    "alrp",
    "rank_sort",
    "bucketed_rank_sort",
    "smooth_ap",
    "direct_ap",
)
# Those of them whose step has a width, MODEL.RANKING_LOSS.DELTA.
STEP_LOSSES = ("ap", "alrp", "rank_sort", "bucketed_rank_sort")
# Those of them that are for several overlaps, too.
OVERLAP_LOSSES = ("ap", "smooth_ap")
FOCAL_LOSSES = ("focal", "quality_focal", "varifocal")
# The probability that the scores of focal losses begin with (Lin et al. 2017, section 4.1).
_PRIOR = 0.01


class RankingLoss(nn.Module):
    """
    Losses of class scores and boxes, most of which rank all of a minibatch's scores together.

    - parameterized_ap, alrp: one loss of both, the quality of a box being (GIoU + 1) / 2.
    - ap, smooth_ap, direct_ap: scores alone; for boxes the mean of 1 - GIoU. direct_ap, direct
      loss minimisation, ranks each class by itself and takes the mean of those with an object.
    - rank_sort, bucketed_rank_sort: the IoU of the boxes sorts positives; for boxes the mean of
      1 - GIoU, weighted by the probability of their class and scaled to the value of the other
      loss (Oksuz et al., ICCV 2021: self-balancing).
    - focal, quality_focal, varifocal: each score by itself, with the settings of their papers; the
      IoU of the boxes is the target of the last two. For boxes the mean of 1 - GIoU.
    """

    def __init__(
        self,
        name: str,
        *,
        delta: float | None = None,
        temperature: float = 1.0,
        epsilon: float = 1.0,
        iou_threshs: Sequence[float] | str | None = None,
        parameterized_ap: ParameterizedAPLoss | None = None,
        box_weight: float = 1.0,
    ) -> None:
        """
        Args:
            name: one of RANKING_LOSSES or FOCAL_LOSSES.
            delta: half the width of the step in units of score, of ap, alrp and rank_sort; None for
                that of the paper.
            temperature: of smooth_ap, in units of score.
            epsilon: of direct_ap, in units of score.
            iou_threshs: of ap and smooth_ap, overlaps as :class:`maploss.layers.MAPLossSettings`
                has them: the loss is the mean over them, a proposal over an object being positive
                where the IoU of its box with the object exceeds the overlap, else negative. None:
                each proposal over an object is positive, whatever its box.
            parameterized_ap: with its settings; None for identity functions.
            box_weight: of the boxes' part or, where there is none, of the gradient by the boxes,
                above 0.

        Raises:
            ValueError, TypeError: an unknown name, a number not above 0, overlaps that are none or
                of another loss.
        """
        super().__init__()
        check_choice("MODEL.RANKING_LOSS.NAME", name, (*RANKING_LOSSES, *FOCAL_LOSSES))
        if delta is None:
            delta = 0.5 if name in ("rank_sort", "bucketed_rank_sort") else 1.0
        check_positive("MODEL.RANKING_LOSS.DELTA", delta)
        check_positive("MODEL.RANKING_LOSS.SMOOTH_AP.TEMPERATURE", temperature)
        check_positive("MODEL.RANKING_LOSS.DIRECT_AP.EPSILON", epsilon)
        check_positive("box_weight", box_weight)
        self.name = name
        self.delta = delta
        self.temperature = temperature
        self.epsilon = epsilon
        self.box_weight = box_weight
        self.iou_threshs = _check_overlaps(name, iou_threshs)
        if name == "parameterized_ap":
            self.parameterized_ap = parameterized_ap or ParameterizedAPLoss()

    def set_prior(self, layer: nn.Linear | nn.Conv2d) -> None:
        """
        The bias that the layer of the scores begins with: with a focal loss all probabilities are
        .01, else the many negatives would be most of it at first. The other losses leave it.
        """
        if self.name in FOCAL_LOSSES and layer.bias is not None:
            nn.init.constant_(layer.bias, math.log(_PRIOR / (1 - _PRIOR)))

    def forward(
        self,
        scores: torch.Tensor,
        classes: torch.Tensor,
        boxes: torch.Tensor,
        gt_boxes: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            scores: (R, K) logits.
            classes: (R,) int64, K for background, -1 for what is ignored.
            boxes: (P, 4) XYXY of the proposals over objects, in their order, as box regression
                makes them.
            gt_boxes: (P, 4) XYXY of their objects.

        Returns:
            {"loss_<name>"} and, for those that do not train boxes, "loss_box_giou": 0-d.

        Raises:
            FloatingPointError: scores or boxes that are not finite.
        """
        is_finite = torch.isfinite(boxes.detach()).all(dim=1)
        if not is_finite.all():
            raise FloatingPointError(
                f"boxes: {int((~is_finite).sum())} of {len(boxes)} over objects are not finite"
            )
        scores = at_least_float32(scores)
        labels = _labels(scores, classes)
        boxes, gt_boxes = boxes.to(scores.dtype), gt_boxes.to(scores.dtype)
        localization_error = giou_loss(boxes, gt_boxes)  # 1 - GIoU, (P,)
        if self.name in ("parameterized_ap", "alrp"):
            quality = scale_gradient((1 - localization_error / 2).clamp(0, 1), self.box_weight)
            flat = scores.flatten(), labels.flatten(), quality
            if self.name == "alrp":
                return {"loss_alrp": alrp_loss(*flat, delta=self.delta)}
            return {"loss_parameterized_ap": self.parameterized_ap(*flat)}
        overlaps = paired_iou(boxes.detach(), gt_boxes)
        if self.name in ("rank_sort", "bucketed_rank_sort"):
            loss = self._sorting_loss(scores, labels, overlaps)
            weights = scores.detach()[labels == POSITIVE].sigmoid()
            box_loss = (weights * localization_error).sum() / weights.sum().clamp(min=1e-12)
            value = box_loss.detach()
            box_loss = box_loss * torch.where(value > 0, loss.detach() / value, 0.0)
        else:
            if self.name in FOCAL_LOSSES:
                loss = self._focal_loss(scores, labels, overlaps)
            else:
                loss = self._score_loss(scores, labels, overlaps)
            box_loss = localization_error.sum() / max(len(boxes), 1)
        return {f"loss_{self.name}": loss, "loss_box_giou": self.box_weight * box_loss}

    def _sorting_loss(
        self, scores: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor
    ) -> torch.Tensor:
        return rank_sort_loss(
            scores.flatten(),
            labels.flatten(),
            quality,
            delta=self.delta,
            bucketed=self.name == "bucketed_rank_sort",
        )

    def _focal_loss(
        self, scores: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor
    ) -> torch.Tensor:
        if self.name == "focal":
            return focal_loss(scores.flatten(), labels.flatten())
        loss = quality_focal_loss if self.name == "quality_focal" else varifocal_loss
        return loss(scores.flatten(), labels.flatten(), quality)

    def _score_loss(
        self, scores: torch.Tensor, labels: torch.Tensor, overlaps: torch.Tensor
    ) -> torch.Tensor:
        if self.name in OVERLAP_LOSSES:
            is_matched = None
            if self.iou_threshs is not None:
                is_matched = overlaps > overlaps.new_tensor(self.iou_threshs)[:, None]
            flat = scores.flatten(), labels.flatten()
            if self.name == "ap":
                return ap_loss(*flat, delta=self.delta, is_matched=is_matched)
            return smooth_ap_loss(*flat, temperature=self.temperature, is_matched=is_matched)
        # One class at a time, as direct loss minimisation is defined.
        present = (labels == POSITIVE).any(dim=0).nonzero().squeeze(1).tolist()
        if not present:
            return (scores * 0.0).sum()
        total = scores.new_zeros(())
        for c in present:
            total = total + direct_ap_loss(scores[:, c], labels[:, c], epsilon=self.epsilon)
        return total / len(present)


def _labels(scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(R, K) int64, of each score as the losses take them."""
    is_positive = (classes >= 0) & (classes < scores.shape[1])
    labels = torch.full_like(scores, NEGATIVE, dtype=torch.int64)
    labels[is_positive, classes[is_positive]] = POSITIVE
    labels[classes < 0] = IGNORED
    return labels


def _check_overlaps(name: str, iou_threshs: Sequence[float] | str | None) -> tuple | None:
    if iou_threshs is None:
        return None
    if name not in OVERLAP_LOSSES:
        raise ValueError(
            f"MODEL.RANKING_LOSS.IOU_THRESHS: expected None with NAME {name!r} (only "
            f"{' and '.join(OVERLAP_LOSSES)} take overlaps), got {iou_threshs!r}"
        )
    with prefix_errors("MODEL.RANKING_LOSS.IOU_THRESHS"):
        return check_iou_threshs(iou_threshs)


def ranking_loss_from_config(cfg: CfgNode, part: str, box_weight: float = 1.0) -> RankingLoss:
    """
    MODEL.RANKING_LOSS as a loss.

    Args:
        cfg: the config of the detector.
        part: of the detector, "RPN", "BOX_HEAD", "RETINANET" or "DEFORMABLE_DETR", each with its
            own functions.
        box_weight: see :class:`RankingLoss`.

    Raises:
        ValueError, TypeError: an unknown name, a number out of range or of another loss, overlaps
            or control points that are none.
    """
    settings = cfg.MODEL.RANKING_LOSS
    keys = settings.PARAMETERIZED_AP
    functions = keys[part]
    try:
        points = (
            torch.tensor(functions.POINTS, dtype=torch.float64) if len(functions.POINTS) else None
        )
        parameterized_ap = ParameterizedAPLoss(
            points=points,
            gradient_scale=functions.GRADIENT_SCALE,
            form=keys.FORM,
            num_ranked=keys.NUM_RANKED,
        )
        if points is not None and keys.FORM != "searched":
            raise ValueError(f"POINTS: expected none with FORM {keys.FORM!r}, got some")
    except (TypeError, ValueError) as error:
        raise ValueError(f"MODEL.RANKING_LOSS.PARAMETERIZED_AP.{part}: {error}") from error
    loss = RankingLoss(
        settings.NAME,
        delta=settings.DELTA or None,
        temperature=settings.SMOOTH_AP.TEMPERATURE,
        epsilon=settings.DIRECT_AP.EPSILON,
        iou_threshs=settings.IOU_THRESHS,
        parameterized_ap=parameterized_ap,
        box_weight=box_weight,
    )
    if settings.DELTA and settings.NAME not in STEP_LOSSES:
        raise ValueError(
            f"MODEL.RANKING_LOSS.DELTA: expected 0 with NAME {settings.NAME!r} (only "
            f"{', '.join(STEP_LOSSES)} take it), got {settings.DELTA}"
        )
    return loss
