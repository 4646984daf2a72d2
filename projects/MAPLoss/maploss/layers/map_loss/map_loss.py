# SPDX-License-Identifier: Apache-2.0
"""
Mean average precision after NMS as a loss.

Shape letters: R windows of all images of the minibatch, K classes, G ground-truth objects.
"""

import math
from typing import NamedTuple

import torch

from ..checks import check_finite, check_int64, check_scores, check_shape
from ..match_detections import UNMATCHED, at_least_float32
from ..surrogate_gradient import attach_gradient
from .detection_memory import DetectionMemory
from .differentiate import BoxGradient, differentiate
from .distributed import Group
from .rank_minibatch import RankedMinibatch, rank_minibatch
from .settings import MAPLossSettings
from .windows import Objects, Windows

_LARGEST_SCORE = 1e8


class ClassDetections(NamedTuple):
    """
    The detections that the AP of a class is of, as :func:`average_precision` takes them.

    Args:
        scores: (D,).
        matched_gt: (D,) int64.
        num_gt: objects of the class.

    Example:
        >>> detections = ClassDetections(torch.tensor([0.9, 0.5]), torch.tensor([-1, 0]), 1)
        >>> len(detections.scores)
        2
    """

    scores: torch.Tensor
    matched_gt: torch.Tensor
    num_gt: int


class MAPLossStats(NamedTuple):
    """
    What is watched, not minimised.

    Args:
        map: 0-d, mAP of the minibatch, over all K classes and T overlaps.
        ap: (T, K), nan for classes without an object.
        ap_per_class: (K,), the mean over overlaps.
        up_per_class, down_per_class: (K,), what pushes scores up and what pushes them down, each
            summed over windows (0 or more).
        nonzero_share, clipped_share: 0-d, of the R * K scores, how many have a gradient, and how
            many one that was clipped.
        gradient: (R, K), of the loss by the scores.
        pooled_ap: 0-d, AP of all classes in one list; None where `settings.pooled` is 0.
        box_gradient: by how much the loss falls with the IoU of each box and its object; not
            clipped. None with `settings.box_gradient` "none".
        minibatch: what was ranked, for :meth:`class_detections` and :meth:`seconds`.

    Example:
        >>> boxes, zeros = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0])
        >>> _, stats = map_loss(torch.tensor([[2.0]]), boxes, zeros, boxes, zeros, zeros)
        >>> stats.class_detections(0)
        ClassDetections(scores=tensor([2.]), matched_gt=tensor([0]), num_gt=1)
    """

    map: torch.Tensor
    ap: torch.Tensor
    ap_per_class: torch.Tensor
    up_per_class: torch.Tensor
    down_per_class: torch.Tensor
    nonzero_share: torch.Tensor
    clipped_share: torch.Tensor
    gradient: torch.Tensor
    pooled_ap: torch.Tensor | None
    box_gradient: BoxGradient | None
    minibatch: RankedMinibatch

    def seconds(self) -> dict[str, float]:
        """What "match", "nms", "ap", "gradient" and "exchange" have taken; waits for a GPU."""
        return self.minibatch.timer.seconds()

    def class_detections(self, c: int, overlap: int = 0) -> ClassDetections | None:
        """
        What NMS keeps of class `c`, by falling score, with the detections of other processes and
        of a memory.

        Args:
            c: in [0, K).
            overlap: index of the overlap at which they are labelled.

        Returns:
            None if the class has no object, or if another process of a group has ranked it.

        Raises:
            IndexError: no such class or overlap.
        """
        for name, index, size in (("c", c, self.ap.shape[1]), ("overlap", overlap, len(self.ap))):
            if not 0 <= index < size:
                raise IndexError(f"{name}: expected 0 to {size - 1}, got {index}")
        ranking, pool = self.minibatch.ranking, self.minibatch.pool
        is_class = pool.ranked == c
        num_gt = int(ranking.num_gt[is_class & pool.is_ranked_here].sum())
        if not num_gt:
            return None
        is_listed = is_class[ranking.detections.classes] & ranking.detections.is_kept
        listed = ranking.detections.take(is_listed.nonzero().squeeze(1))
        matched_gt = torch.where(listed.levels > overlap, listed.objects, UNMATCHED)
        return ClassDetections(listed.scores, matched_gt, num_gt)


def map_loss(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    image_ids: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_classes: torch.Tensor,
    gt_image_ids: torch.Tensor,
    gt_difficult: torch.Tensor | None = None,
    *,
    settings: MAPLossSettings = MAPLossSettings(),  # noqa: B008 (frozen)
    group: Group | None = None,
    memory: DetectionMemory | None = None,
) -> tuple[torch.Tensor, MAPLossStats]:
    """
    -log((mAP + eps) / (1 + eps)), or 1 - mAP out of log space, of the minibatch.

    mAP is the mean of AP after NMS over the overlaps of `settings.iou_threshs` and all K classes; a
    class without an object counts 0. The gradient by a score is -PPD / (K (mAP + eps)), or
    -PPD / K out of log space, PPD the pseudo partial derivative of its class's AP, the mean over
    overlaps, each element clipped to [-grad_clip, grad_clip] (Henderson & Ferrari 2016, sections
    4.3 to 4.5). Classes without an object in the minibatch get none. The error-driven gradient
    weighs recall by area whatever `settings.ap_type` says: that then changes the value only.

    With `settings.pooled` p, (1 - p) mAP + p AP-pool takes the place of mAP: AP-pool is the AP of
    all classes in one list, the mean over overlaps. Then all classes have a gradient, unless the
    minibatch is without any object. Boxes are constants to the loss; what better ones are worth is
    in the stats, see :class:`MAPLossStats`.

    Args:
        scores: (R, K) raw class scores, float32 or float64, without background.
        boxes: (R, 4) XYXY in pixels, or (R, K, 4), a box of its own for each class.
        image_ids: (R,) int64.
        gt_boxes: (G, 4) XYXY in pixels.
        gt_classes: (G,) int64 in [0, K).
        gt_image_ids: (G,) int64.
        gt_difficult: (G,) bool or 0/1; None means that none is.
        settings: see :class:`MAPLossSettings`.
        group: of processes that call this together, each with its own images: the mAP is that of
            all, and each has its own windows' gradient of it.
        memory: detections of earlier minibatches that are ranked too, as constants; the gradient is
            multiplied by the number of minibatches ranked. Takes up those of this one, where
            gradients are enabled.

    Returns:
        The loss, 0-d of the scores' dtype, and :class:`MAPLossStats`.

    Raises:
        ValueError, TypeError: a wrong shape, dtype or class.
        FloatingPointError: a score or a box that is not finite.

    Example:
        The background window has the best score.

        >>> scores = torch.tensor([[0.2], [0.9]], requires_grad=True)
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
        >>> image_ids, gt_classes = torch.zeros(2, dtype=torch.int64), torch.tensor([0])
        >>> loss, stats = map_loss(scores, boxes, image_ids, boxes[:1], gt_classes, image_ids[:1])
        >>> stats.map
        tensor(0.5000, dtype=torch.float64)
        >>> loss.backward()
        >>> scores.grad
        tensor([[-0.3063],
                [ 0.3063]])
    """
    if not isinstance(settings, MAPLossSettings):
        raise TypeError(f"settings: expected MAPLossSettings, got {type(settings).__name__}")
    objects = _check_input(
        scores, boxes, image_ids, gt_boxes, gt_classes, gt_image_ids, gt_difficult
    )
    windows = Windows(scores.detach(), at_least_float32(boxes.detach()), image_ids)
    ranked = rank_minibatch(windows, objects, settings, group, memory)
    by_score, box_gradient = differentiate(ranked, settings)
    num_classes = max(scores.shape[1], 1)
    ap_per_class = ranked.ap.mean(0)
    scale = ranked.value + settings.eps if settings.log_space else 1
    gradient = -(by_score / scale).to(scores.dtype)
    nonzero_share = _share(gradient != 0)
    clipped_share = torch.zeros_like(nonzero_share)
    if settings.grad_clip is not None:
        clipped_share = _share(gradient.abs() > settings.grad_clip)
        gradient = gradient.clamp(-settings.grad_clip, settings.grad_clip)
    if settings.log_space:
        value = math.log1p(settings.eps) - torch.log(ranked.value + settings.eps)
    else:
        value = 1 - ranked.value
    loss = attach_gradient(value.to(scores.dtype), (scores,), (gradient,))
    return loss, MAPLossStats(
        map=ap_per_class.nansum() / num_classes,
        ap=ranked.ap,
        ap_per_class=ap_per_class,
        up_per_class=gradient.clamp(max=0).sum(0).neg(),
        down_per_class=gradient.clamp(min=0).sum(0),
        nonzero_share=nonzero_share,
        clipped_share=clipped_share,
        gradient=gradient,
        pooled_ap=None if ranked.pooled_ap is None else ranked.pooled_ap.mean(),
        box_gradient=_by_loss(box_gradient, scale),
        minibatch=ranked,
    )


class MAPLoss(torch.nn.Module):
    """
    :func:`map_loss` and the term that keeps scores from growing.

    L = -log((mAP + eps) / (1 + eps)) + score_reg_weight * sum |s|^score_reg_power (Henderson &
    Ferrari 2016, section 4.5: the fourth power; 2 in its ablation).

    Args:
        settings: of :func:`map_loss`.
        score_reg_weight: per score, 0 or more.
        score_reg_power: 1 or more.
        memory_size: number of minibatches whose detections stay in the ranking, 0 for none.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> boxes, image_ids = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0])
        >>> loss = MAPLoss(score_reg_weight=0.5)
        >>> losses, _ = loss(torch.tensor([[2.0]]), boxes, image_ids, boxes, image_ids, image_ids)
        >>> losses
        {'loss_map': tensor(0.), 'loss_score_reg': tensor(8.)}
    """

    def __init__(
        self,
        settings: MAPLossSettings = MAPLossSettings(),  # noqa: B008 (frozen)
        *,
        score_reg_weight: float = 0.0,
        score_reg_power: float = 4.0,
        memory_size: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= score_reg_weight < math.inf:
            raise ValueError(f"score_reg_weight: expected 0 or more, got {score_reg_weight}")
        if not 1 <= score_reg_power < math.inf:
            raise ValueError(f"score_reg_power: expected 1 or more, got {score_reg_power}")
        if isinstance(memory_size, bool) or not isinstance(memory_size, int) or memory_size < 0:
            raise ValueError(f"memory_size: expected 0 or more minibatches, got {memory_size!r}")
        self.settings = settings
        self.score_reg_weight = score_reg_weight
        self.score_reg_power = score_reg_power
        self.memory = DetectionMemory(memory_size) if memory_size else None

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
            settings=self.settings,
            group=group,
            memory=self.memory,
        )
        # In float64 and bounded, so that scores that have run away do not make it infinite.
        sizes = scores.double().clamp(-_LARGEST_SCORE, _LARGEST_SCORE).abs()
        powers = sizes.pow(self.score_reg_power).sum()
        score_reg = (self.score_reg_weight * powers).to(scores.dtype)
        return {"loss_map": loss, "loss_score_reg": score_reg}, stats

    def extra_repr(self) -> str:
        memory_size = self.memory.size if self.memory is not None else 0
        return (
            f"{self.settings}, score_reg_weight={self.score_reg_weight}, "
            f"score_reg_power={self.score_reg_power}, memory_size={memory_size}"
        )


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
    check_finite("boxes", boxes)
    check_finite("gt_boxes", gt_boxes)
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


def _by_loss(boxes: BoxGradient | None, scale: torch.Tensor | int) -> BoxGradient | None:
    """By how much the loss falls with a rising IoU."""
    return None if boxes is None else boxes._replace(by_overlap=boxes.by_overlap / scale)


def _share(mask: torch.Tensor) -> torch.Tensor:
    return mask.sum().double() / max(mask.numel(), 1)
