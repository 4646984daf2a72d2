# SPDX-License-Identifier: Apache-2.0
"""
The predictor that is trained for mAP.

Shape letters: N images, R proposals of all images, K classes, T overlaps.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from ..layers import MAPLoss, MAPLossStats
from ..layers.checks import check_choice
from ..layers.steps.pseudo_gradient import ESTIMATORS
from .box_regressor import box_predictor_of
from .gradient_cache import BoxTargets, GradientCache, LossInputs
from .map_loss_config import first_data_set, map_loss_from_config
from .output_layers import BoxOutputLayers, BoxPredictions, image_inds
from .process_group import all_ranks, scale_for_all_ranks

# MODEL.MAP_LOSS.BOX_REG.BOXES: no box regression, or with it and NMS in training on these boxes.
MAP_BOX_REGS = ("none", "windows", "regressed")


class MAPOutputLayers(BoxOutputLayers):
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
        class_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: see :class:`BoxOutputLayers`.
            num_classes: as there.
            map_loss: the loss; its NMS should be that of the test (`test_nms_iou_thresh`).
            nms_on_regressed: the loss takes the regressed boxes for what is detected, as the test
                does, instead of the proposals. They are constants to it.
            class_names: K names, for what is watched; None for numbers.
            kwargs: as there.
        """
        super().__init__(input_shape, num_classes=num_classes, num_outputs=num_classes, **kwargs)
        self.map_loss = map_loss
        self.nms_on_regressed = nms_on_regressed
        self.class_names = class_names or [str(c) for c in range(num_classes)]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        ret = super().from_config(cfg, input_shape)
        box_reg = cfg.MODEL.MAP_LOSS.BOX_REG.BOXES
        check_choice("MODEL.MAP_LOSS.BOX_REG.BOXES", box_reg, MAP_BOX_REGS)
        if box_reg == "none":
            ret["box_reg_weight"] = 0.0
        elif not ret["box_reg_weight"] > 0:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT: expected a number above 0 with "
                f"MODEL.MAP_LOSS.BOX_REG.BOXES {box_reg!r}, got {ret['box_reg_weight']}"
            )
        box_gradient = cfg.MODEL.MAP_LOSS.BOX_REG.GRADIENT
        if box_reg == "windows" and box_gradient in ESTIMATORS:
            raise ValueError(
                "MODEL.MAP_LOSS.BOX_REG.GRADIENT: expected error_driven or none with BOXES "
                "'windows' (no regression moves the proposals over an overlap), got "
                f"{box_gradient!r}"
            )
        ret["nms_on_regressed"] = box_reg == "regressed"
        ret["class_names"] = _class_names(cfg)
        ret["map_loss"] = map_loss_from_config(cfg)
        return ret

    def losses(
        self,
        predictions: BoxPredictions,
        proposals: list[Instances],
        targets: list[Instances],
        gradient_cache: GradientCache | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        loss_map and loss_score_reg, see :class:`maploss.layers.MAPLoss`, and with box regression
        loss_map_box (see :meth:`map_box_loss`) or, without MODEL.MAP_LOSS.BOX_REG.GRADIENT,
        loss_box_reg.

        The labels of the proposals are used for the last one only: the loss matches the proposals
        to the objects of each class. With several processes the mAP is that of the images of all.

        Args:
            predictions: as :class:`BoxOutputLayers`.
            proposals: as there.
            targets: as there.
            gradient_cache: the losses and their gradient by the scores of these predictions, made
                before; None ranks the predictions.
        """
        if gradient_cache is None:
            inputs = self.loss_inputs(predictions, proposals, targets)
            losses, stats = self.map_loss(*inputs, group=all_ranks())
            losses = scale_for_all_ranks(losses)
            self._watch(inputs.scores.detach(), stats)
            num_proposals: float = len(inputs.scores)
            box_targets = BoxTargets.of(stats.box_gradient, inputs.gt_boxes)
        else:
            losses = gradient_cache.losses(predictions.scores)
            num_proposals, box_targets = gradient_cache.num_proposals, gradient_cache.box_targets
        if self.bbox_pred is None:
            return losses
        if box_targets is None:
            losses["loss_box_reg"] = self.box_loss(predictions, proposals, num_proposals)
        else:
            losses["loss_map_box"] = self.map_box_loss(predictions, proposals, box_targets)
        return losses

    def map_box_loss(
        self, predictions: BoxPredictions, proposals: list[Instances], targets: BoxTargets
    ) -> torch.Tensor:
        """
        loss_weight sum_i w_i (1 - GIoU_i) over proposals i as each class, the sum of all processes:
        by w_i the loss of mAP falls with the IoU of box i and its object, so that scores and boxes
        follow one number. GIoU takes the place of IoU, from which it differs by the share of the
        hull that neither box covers.

        Args:
            predictions: for the R proposals.
            proposals: N Instances with proposal_boxes.
            targets: for them; weights are constants.
        """
        proposal, classes = (targets.weights != 0).nonzero().unbind(1)
        proposal_boxes = torch.cat([x.proposal_boxes.tensor for x in proposals])[proposal]
        gt_boxes = targets.gt_boxes[targets.objects[proposal, classes]]
        regressor, deltas = self._box_regression(predictions)
        losses = regressor.giou_losses(deltas[proposal], proposal_boxes, gt_boxes, classes)
        loss = (targets.weights[proposal, classes].to(losses.dtype) * losses).sum()
        return regressor.loss_weight * comm.get_world_size() * loss

    def rank(self, inputs: LossInputs) -> GradientCache:
        """
        The losses of a minibatch but that of its boxes, their gradient by its scores, and what its
        boxes are to learn.
        """
        with torch.enable_grad():
            inputs = inputs._replace(scores=inputs.scores.detach().requires_grad_())
            losses, stats = self.map_loss(*inputs, group=all_ranks())
            losses = scale_for_all_ranks(losses)
            total = losses["loss_map"] + losses["loss_score_reg"]
            (gradient,) = torch.autograd.grad(total, inputs.scores)
        scores = inputs.scores.detach()
        self._watch(scores, stats)
        values = {name: loss.detach() for name, loss in losses.items()}
        targets = BoxTargets.of(stats.box_gradient, inputs.gt_boxes)
        return GradientCache(values, gradient, len(scores), scores, targets)

    def loss_inputs(
        self, predictions: BoxPredictions, proposals: list[Instances], targets: list[Instances]
    ) -> LossInputs:
        """What the loss takes of them; arguments as for :meth:`losses`."""
        if not self.nms_on_regressed:
            predictions = predictions._replace(deltas=None)
        scores = predictions.scores
        return LossInputs(
            scores,
            self.boxes(predictions, proposals).detach(),
            image_inds(proposals, scores.device),
            torch.cat([x.gt_boxes.tensor for x in targets]),
            torch.cat([x.gt_classes for x in targets]),
            image_inds(targets, scores.device),
            torch.cat([x.gt_difficult for x in targets]),
        )

    def _watch(self, scores: torch.Tensor, stats: MAPLossStats) -> None:
        """Puts scalars: mAP and AP of all processes, the rest of this one's proposals."""
        watched = {
            "map/minibatch_map": stats.map,
            "map/gradient_up": stats.up_per_class.sum(),
            "map/gradient_down": stats.down_per_class.sum(),
            "map/nonzero_share": stats.nonzero_share,
            "map/clipped_share": stats.clipped_share,
            "map/largest_score": scores.abs().max() if scores.numel() else scores.new_zeros(()),
        }
        if stats.pooled_ap is not None:
            watched["map/minibatch_pooled_ap"] = stats.pooled_ap
        if len(stats.ap) > 1:
            overlaps = zip(self.map_loss.settings.iou_threshs, stats.ap, strict=True)
            watched |= {f"map_per_overlap/{x:g}": y.nansum() / len(y) for x, y in overlaps}
        named_ap = zip(self.class_names, stats.ap_per_class, strict=True)
        watched |= {f"map_per_class/{name}": ap for name, ap in named_ap}
        # One transfer: each waits for the device.
        values = torch.stack([x.to(scores.device, torch.float64) for x in watched.values()])
        storage = get_event_storage()
        last = storage.latest()
        for name, value in zip(watched, values.tolist(), strict=True):
            if value == value:
                storage.put_scalar(name, value)
            elif name in last:
                # Of the last minibatch that had the class: what is not put in each iteration gets
                # lines of its own in metrics.json.
                storage.put_scalar(name, last[name][0])
        for part, value in stats.seconds().items():
            storage.put_scalar(f"map_seconds/{part}", value)

    def box_loss(
        self, predictions: BoxPredictions, proposals: list[Instances], count: float
    ) -> torch.Tensor:
        """
        The sum over proposals of :meth:`box_losses` by `count`, that of a pass, mean of all
        processes.
        """
        number = predictions.scores.new_tensor(count)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(number)
        number = (number / comm.get_world_size()).clamp(min=1)
        return self.box_losses(predictions, proposals).sum() / number

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores

    def vote_log_weights(self, scores: torch.Tensor) -> torch.Tensor:
        return scores


def map_output_layers_of(model: nn.Module) -> MAPOutputLayers | None:
    """Those of a detector, perhaps a parallel one; None where it is trained otherwise."""
    predictor = box_predictor_of(model)
    return predictor if isinstance(predictor, MAPOutputLayers) else None


def _class_names(cfg: CfgNode) -> list[str] | None:
    """Of the first data set, where it says as many as there are classes."""
    _, metadata = first_data_set(cfg)
    classes = metadata.get("thing_classes", None) if metadata is not None else None
    if classes is None or len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        return None
    return list(classes)
