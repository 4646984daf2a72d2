# SPDX-License-Identifier: Apache-2.0
"""
Mean average precision after NMS as a loss.

Shape letters: R windows of all images of the minibatch, K classes, G ground-truth objects.
"""

import math
from typing import Any, NamedTuple

import torch

from ..average_precision import AP_TYPES
from ..checks import check_choice, check_int64, check_scores, check_shape
from ..steps.nms_ap_steps import TRANSITIVITIES
from ..steps.pseudo_gradient import ESTIMATORS as STEP_ESTIMATORS
from ..steps.pseudo_gradient import PAIRINGS
from ..surrogate_gradient import attach_gradient
from .detection_memory import DetectionMemory
from .distributed import Group
from .error_driven_gradient import PAIR_TRANSITIVITIES, check_margin
from .rankings import ClassCurve, Objects, RankingSettings, Windows, rank_classes

ESTIMATORS = (*STEP_ESTIMATORS, "pairs")
_LARGEST_SCORE = 1e8


class MAPLossStats(NamedTuple):
    """
    What is watched, not minimised.

    map: 0-d, mAP of the minibatch over all K classes. ap_per_class: (K,), nan for classes without
    an object. up_per_class, down_per_class: (K,), what pushes scores up and what pushes them down,
    each summed over windows (0 or more). nonzero_share, clipped_share: 0-d, of the R * K scores,
    how many have a gradient, and how many one that was clipped. gradient: (R, K), of the loss.
    curves: the detections of each class present. seconds: what "match", "nms", "ap", "gradient"
    and "exchange" have taken.
    """

    map: torch.Tensor
    ap_per_class: torch.Tensor
    up_per_class: torch.Tensor
    down_per_class: torch.Tensor
    nonzero_share: torch.Tensor
    clipped_share: torch.Tensor
    gradient: torch.Tensor
    curves: dict[int, ClassCurve]
    seconds: dict[str, float]


def map_loss(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    image_ids: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_classes: torch.Tensor,
    gt_image_ids: torch.Tensor,
    gt_difficult: torch.Tensor | None = None,
    *,
    ap_type: str = "area",
    nms_thresh: float = 0.3,
    match_iou_thresh: float = 0.5,
    estimator: str = "pairs",
    min_delta: float = 0.5,
    transitivity: str = "label_aware",
    pairing: str = "paired",
    margin: float = 1.0,
    grad_clip: float | None = None,
    log_space: bool = True,
    eps: float = 1.0,
    group: Group | None = None,
    memory: DetectionMemory | None = None,
) -> tuple[torch.Tensor, MAPLossStats]:
    """
    -log(mAP + eps) with mAP = sum of AP over the classes present / K, AP taken after NMS.

    The gradient by a score is -PPD / (K (mAP + eps)), or -PPD / K out of log space, PPD the pseudo
    partial derivative of its class's AP, each clipped to [-grad_clip, grad_clip] (Henderson &
    Ferrari 2016, sections 4.3 to 4.5). Classes without an object in the minibatch get none.
    Estimators "mee" and "sde" are the paper's; "pairs", this project's own, takes
    :func:`error_driven_gradient` for the PPD, which weighs recall by area whatever `ap_type` says:
    that then changes the value only.

    Args:
        scores: (R, K) raw class scores, float32 or float64, without background. boxes: (R, 4) XYXY
            in pixels, or (R, K, 4), a box of its own for each class. image_ids: (R,) int64.
            gt_boxes: (G, 4). gt_classes: (G,) int64 in [0, K). gt_image_ids: (G,) int64.
            gt_difficult: (G,) bool or 0/1, None means that none is.
        ap_type: "area", "voc07" or "coco101". nms_thresh: IoU over which windows suppress each
            other. match_iou_thresh: IoU over which a window is matched to an object. estimator:
            "mee", "sde" or "pairs". transitivity: what windows that NMS suppresses get, see
            :func:`nms_ap_steps` for "mee" and "sde", :func:`error_driven_gradient` for "pairs".
            min_delta, pairing: for "mee" and "sde", see :func:`pseudo_gradient`. margin: for
            "pairs". grad_clip: None for no clipping. log_space: False for 1 - mAP. eps: above 0.
        group: of processes that call this together, each with its own images: the mAP is that of
            all, and each has its own windows' gradient of it. memory: detections that are ranked
            too, as constants (see :func:`rank_classes`); then takes up those of this minibatch,
            where gradients are enabled.

    Returns:
        The loss, 0-d of the scores' dtype, and :class:`MAPLossStats`.

    Raises:
        ValueError, TypeError: an unknown name, a wrong shape, dtype or class.
        FloatingPointError: a score that is not finite.
    """
    _check_settings(
        ap_type=ap_type,
        nms_thresh=nms_thresh,
        match_iou_thresh=match_iou_thresh,
        estimator=estimator,
        min_delta=min_delta,
        transitivity=transitivity,
        pairing=pairing,
        margin=margin,
        grad_clip=grad_clip,
        log_space=log_space,
        eps=eps,
    )
    objects = _check_input(
        scores, boxes, image_ids, gt_boxes, gt_classes, gt_image_ids, gt_difficult
    )
    num_classes = scores.shape[1]
    windows = Windows(scores.detach().t().contiguous(), boxes, image_ids)
    settings = RankingSettings(
        ap_type, nms_thresh, match_iou_thresh, estimator, min_delta, transitivity, pairing, margin
    )
    rankings = rank_classes(windows, objects, settings, group, memory)
    mean_ap = rankings.ap_per_class.nansum() / max(num_classes, 1)
    scale = num_classes * (mean_ap + eps if log_space else torch.ones_like(mean_ap))
    gradient = -rankings.ppd / scale.to(scores.dtype)
    nonzero_share = _share(gradient != 0)
    clipped_share = torch.zeros_like(nonzero_share)
    if grad_clip is not None:
        clipped_share = _share(gradient.abs() > grad_clip)
        gradient = gradient.clamp(-grad_clip, grad_clip)
    up, down = gradient.clamp(max=0).sum(0).neg(), gradient.clamp(min=0).sum(0)
    value = -torch.log(mean_ap + eps) if log_space else 1 - mean_ap
    loss = attach_gradient(value.to(scores.dtype), (scores,), (gradient,))
    return loss, MAPLossStats(
        map=mean_ap,
        ap_per_class=rankings.ap_per_class,
        up_per_class=up,
        down_per_class=down,
        nonzero_share=nonzero_share,
        clipped_share=clipped_share,
        gradient=gradient,
        curves=rankings.curves,
        seconds=rankings.seconds,
    )


class MAPLoss(torch.nn.Module):
    """
    :func:`map_loss` and the term that keeps scores from growing.

    L = -log(mAP + eps) + score_reg_weight * sum |s|^score_reg_power (Henderson & Ferrari 2016,
    section 4.5: the fourth power; 2 in its ablation).

    Args:
        score_reg_weight: per score, 0 or more. score_reg_power: 1 or more. memory_size: number of
            minibatches whose detections stay in the ranking, 0 for none. settings: those of
            :func:`map_loss`, with its defaults.

    Raises:
        ValueError, TypeError: an unknown setting or name, a number out of range, when it is built.
    """

    def __init__(
        self,
        *,
        score_reg_weight: float = 0.0,
        score_reg_power: float = 4.0,
        memory_size: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not 0 <= score_reg_weight < math.inf:
            raise ValueError(f"score_reg_weight: expected 0 or more, got {score_reg_weight}")
        if not 1 <= score_reg_power < math.inf:
            raise ValueError(f"score_reg_power: expected 1 or more, got {score_reg_power}")
        self.score_reg_weight = score_reg_weight
        self.score_reg_power = score_reg_power
        self.memory = DetectionMemory(memory_size) if memory_size else None
        self.settings: dict[str, Any] = {**(map_loss.__kwdefaults__ or {}), **settings}
        del self.settings["group"], self.settings["memory"]
        _check_settings(**self.settings)

    def forward(
        self,
        scores: torch.Tensor,
        boxes: torch.Tensor,
        image_ids: torch.Tensor,
        gt_boxes: torch.Tensor,
        gt_classes: torch.Tensor,
        gt_image_ids: torch.Tensor,
        gt_difficult: torch.Tensor | None = None,
        group: Group | None = None,
    ) -> tuple[dict[str, torch.Tensor], MAPLossStats]:
        """
        Returns:
            {"loss_map": 0-d, "loss_score_reg": 0-d} and what is watched; arguments and errors as
            for :func:`map_loss`. With a group loss_score_reg is that of this process's scores.
        """
        loss, stats = map_loss(
            scores,
            boxes,
            image_ids,
            gt_boxes,
            gt_classes,
            gt_image_ids,
            gt_difficult,
            group=group,
            memory=self.memory,
            **self.settings,
        )
        # In float64 and bounded, so that scores that have run away do not make it infinite.
        sizes = scores.double().clamp(-_LARGEST_SCORE, _LARGEST_SCORE).abs()
        powers = sizes.pow(self.score_reg_power).sum()
        score_reg = (self.score_reg_weight * powers).to(scores.dtype)
        return {"loss_map": loss, "loss_score_reg": score_reg}, stats

    def extra_repr(self) -> str:
        settings = {
            **self.settings,
            "score_reg_weight": self.score_reg_weight,
            "score_reg_power": self.score_reg_power,
            "memory_size": self.memory.size if self.memory else 0,
        }
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _check_settings(
    *,
    ap_type: str,
    nms_thresh: float,
    match_iou_thresh: float,
    estimator: str,
    min_delta: float,
    transitivity: str,
    pairing: str,
    margin: float,
    grad_clip: float | None,
    log_space: bool,
    eps: float,
) -> None:
    if not isinstance(log_space, bool):
        raise TypeError(f"log_space: expected True or False, got {log_space!r}")
    check_choice("ap_type", ap_type, AP_TYPES)
    check_choice("estimator", estimator, ESTIMATORS)
    levels = PAIR_TRANSITIVITIES if estimator == "pairs" else TRANSITIVITIES
    check_choice(f"transitivity of estimator {estimator!r}", transitivity, levels)
    check_choice("pairing", pairing, PAIRINGS)
    for name, thresh in (("nms_thresh", nms_thresh), ("match_iou_thresh", match_iou_thresh)):
        if not 0 <= thresh <= 1:
            raise ValueError(f"{name}: expected a number in [0, 1], got {thresh}")
    check_margin(margin)
    numbers = {"min_delta": min_delta, "eps": eps}
    if grad_clip is not None:
        numbers["grad_clip"] = grad_clip
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a number above 0, got {value}")


def _check_input(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    image_ids: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_classes: torch.Tensor,
    gt_image_ids: torch.Tensor,
    gt_difficult: torch.Tensor | None,
) -> Objects:
    check_scores(scores, ("R", "K"))
    is_shared = isinstance(boxes, torch.Tensor) and boxes.dim() != 3
    check_shape("boxes", boxes, (len(scores), 4) if is_shared else (*scores.shape, 4))
    check_shape("image_ids", image_ids, (len(scores),))
    check_shape("gt_boxes", gt_boxes, ("G", 4))
    check_shape("gt_classes", gt_classes, (len(gt_boxes),))
    check_shape("gt_image_ids", gt_image_ids, (len(gt_boxes),))
    inds = {"image_ids": image_ids, "gt_classes": gt_classes, "gt_image_ids": gt_image_ids}
    for name, index in inds.items():
        check_int64(name, index)
    last = scores.shape[1] - 1
    if len(gt_classes) and not 0 <= int(gt_classes.min()) <= int(gt_classes.max()) <= last:
        raise ValueError(f"gt_classes: expected 0 to {last}, got {gt_classes.unique().tolist()}")
    if gt_difficult is None:
        gt_difficult = torch.zeros_like(gt_classes)
    check_shape("gt_difficult", gt_difficult, (len(gt_boxes),))
    return Objects(gt_boxes, gt_classes, gt_image_ids, gt_difficult.bool())


def _share(mask: torch.Tensor) -> torch.Tensor:
    return mask.sum().double() / max(mask.numel(), 1)
