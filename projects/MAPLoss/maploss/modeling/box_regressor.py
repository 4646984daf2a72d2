# SPDX-License-Identifier: Apache-2.0
"""
Box regression of Fast R-CNN (Girshick 2015, section 2.3): targets, loss and regressed boxes.

Shape letters: R proposals, F of them over objects, B boxes of a proposal: K (of each class) or 1.
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss
from torch import nn
from torch.nn import functional as F

from ..layers.checks import check_choice

# MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE.
BOX_LOSSES = ("smooth_l1", "giou")

_TRANSFORM = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))


def box_deltas(proposals: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """
    (F, 4) t_x, t_y, t_w, t_h from each proposal to its box, both (F, 4) XYXY: the shift of the
    centre in units of the proposal's size, and the log of the ratio of sizes (R-CNN, appendix C).
    """
    return _TRANSFORM.get_deltas(proposals, boxes)


class BoxRegressor(nn.Linear):
    """
    The linear layer from features of a proposal to the deltas of B boxes, in units in which those
    of the training proposals have mean 0 and variance 1.

    The mean and the variance are buffers: they are in the checkpoint, so the deltas of a loaded
    model mean what they meant in training.
    """

    target_mean: torch.Tensor
    target_std: torch.Tensor

    def __init__(
        self,
        in_features: int,
        num_boxes: int,
        *,
        loss_weight: float = 1.0,
        target_std: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        beta: float = 1.0,
        loss_type: str = "smooth_l1",
    ) -> None:
        """
        Args:
            in_features: how many features a proposal has.
            num_boxes: B, the number of classes, or 1 for boxes that no class has to itself.
            loss_weight: lambda of equation 1.
            target_std: of the deltas, until they are measured
                (:func:`maploss.engine.set_box_targets`).
            beta: of smooth L1, where its quadratic part ends (1 in equation 3); 0 is L1.
            loss_type: "smooth_l1", of the deltas, or "giou", of the boxes: 1 - GIoU (Rezatofighi et
                al., CVPR 2019, section 4), for which beta says nothing.

        Raises:
            ValueError: a weight not above 0, an unknown loss.
        """
        if not loss_weight > 0:
            raise ValueError(f"loss_weight: expected a number above 0, got {loss_weight}")
        check_choice("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", loss_type, BOX_LOSSES)
        super().__init__(in_features, 4 * num_boxes)
        nn.init.normal_(self.weight, std=0.001)
        nn.init.zeros_(self.bias)
        self.num_boxes = num_boxes
        self.loss_weight = loss_weight
        self.beta = beta
        self.loss_type = loss_type
        self.register_buffer("target_mean", torch.zeros(num_boxes, 4))
        self.register_buffer("target_std", torch.tensor(target_std).repeat(num_boxes, 1))

    @torch.no_grad()
    def set_targets(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """
        Args:
            mean: (B, 4) of the deltas of the training proposals.
            std: (B, 4), above 0.
        """
        self.target_mean.copy_(mean)
        self.target_std.copy_(std)

    @torch.no_grad()
    def fold(self) -> None:
        """Puts mean and variance into weights and bias: the outputs are plain deltas from now."""
        mean, std = self.target_mean.flatten(), self.target_std.flatten()
        self.weight.mul_(std[:, None])
        self.bias.mul_(std).add_(mean)
        self.set_targets(torch.zeros_like(self.target_mean), torch.ones_like(self.target_std))

    def losses(
        self,
        outputs: torch.Tensor,
        proposals: torch.Tensor,
        gt_boxes: torch.Tensor,
        gt_classes: torch.Tensor,
        num_classes: int,
    ) -> torch.Tensor:
        """
        (R,) lambda times the loss of the box that each proposal over an object has for its class; 0
        for proposals over nothing.

        Smooth L1 (equations 2 and 3) is between the outputs and their normalised targets, 1 - GIoU
        between the regressed box, not clipped, and the object.

        Args:
            outputs: (R, 4 B) of :meth:`forward`.
            proposals: (R, 4) XYXY.
            gt_boxes: (R, 4) XYXY; those of proposals over nothing are not looked at.
            gt_classes: (R,) int64, `num_classes` means background.
            num_classes: K.
        """
        inds = (gt_classes < num_classes).nonzero().squeeze(1)
        foreground = outputs[inds], proposals[inds], gt_boxes[inds], gt_classes[inds]
        losses = self.giou_losses if self.loss_type == "giou" else self._smooth_l1_losses
        weighted = self.loss_weight * losses(*foreground)
        return outputs.new_zeros(len(outputs)).index_add(0, inds, weighted)

    def giou_losses(
        self,
        outputs: torch.Tensor,
        proposals: torch.Tensor,
        gt_boxes: torch.Tensor,
        classes: torch.Tensor,
    ) -> torch.Tensor:
        """
        (F,) 1 - GIoU of the regressed box, not clipped, that each of F proposals has for a class,
        and an object; nan for a box that is not finite.

        Args:
            outputs: (F, 4 B) of :meth:`forward`.
            proposals: (F, 4) XYXY.
            gt_boxes: (F, 4) XYXY of the objects.
            classes: (F,) int64 in [0, K).
        """
        deltas, mean, std = self._of_class(outputs, classes)
        boxes = _TRANSFORM.apply_deltas(deltas * std + mean, proposals)
        return _giou_losses(boxes, gt_boxes).to(deltas.dtype)

    def _smooth_l1_losses(
        self,
        outputs: torch.Tensor,
        proposals: torch.Tensor,
        gt_boxes: torch.Tensor,
        classes: torch.Tensor,
    ) -> torch.Tensor:
        """(F,) between the outputs and their targets; arguments as for :meth:`giou_losses`."""
        deltas, mean, std = self._of_class(outputs, classes)
        targets = ((box_deltas(proposals, gt_boxes) - mean) / std).to(deltas.dtype)
        return F.smooth_l1_loss(deltas, targets, reduction="none", beta=self.beta).sum(dim=1)

    def _of_class(
        self, outputs: torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(F, 4) each: the outputs for the box of a class, mean and deviation of their targets."""
        boxes = classes if self.num_boxes > 1 else torch.zeros_like(classes)
        each = torch.arange(len(boxes), device=boxes.device)
        deltas = outputs.view(len(outputs), self.num_boxes, 4)[each, boxes]
        return deltas, self.target_mean[boxes], self.target_std[boxes]

    def boxes(self, outputs: torch.Tensor, proposals: torch.Tensor) -> torch.Tensor:
        """(R, 4 B) outputs and (R, 4) proposals to (R, B, 4) boxes XYXY, not clipped."""
        deltas = outputs.view(len(outputs), self.num_boxes, 4)
        deltas = (deltas * self.target_std + self.target_mean).flatten(1)
        return _TRANSFORM.apply_deltas(deltas, proposals).view(-1, self.num_boxes, 4)


def _giou_losses(boxes: torch.Tensor, gt_boxes: torch.Tensor) -> torch.Tensor:
    """
    (F,) 1 - GIoU; nan for a box that is not finite, as smooth L1 has it.

    fvcore's stops with an AssertionError there, which tells neither image nor iteration.
    """
    is_finite = torch.isfinite(boxes.detach()).all(dim=1)
    losses = giou_loss(torch.where(is_finite[:, None], boxes, gt_boxes), gt_boxes.to(boxes))
    return torch.where(is_finite, losses, float("nan"))


def box_predictor_of(model: nn.Module) -> nn.Module | None:
    """What scores the proposals of a detector, perhaps a parallel one; None where nothing does."""
    heads = getattr(getattr(model, "module", model), "roi_heads", None)
    return getattr(heads, "box_predictor", None)


def box_regressor_of(model: nn.Module) -> BoxRegressor | None:
    """The box regression of a detector's box head, None where there is none of this kind."""
    regressor = getattr(box_predictor_of(model), "bbox_pred", None)
    return regressor if isinstance(regressor, BoxRegressor) else None
