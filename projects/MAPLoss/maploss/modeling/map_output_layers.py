# SPDX-License-Identifier: Apache-2.0
"""
The predictor that is trained for mAP. Shapes: N images, R windows of all images, K classes.
"""

import logging
import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from ..layers import MAPLoss, MAPLossStats
from ..layers.checks import check_choice
from ..layers.surrogate_gradient import scale_gradient
from .box_regressor import box_predictor_of
from .joint_ranking import JointRanking, LossInputs
from .output_layers import WindowOutputLayers, WindowOutputs, image_inds

logger = logging.getLogger(__name__)

# MODEL.MAP_LOSS.BOX_REG: no box regression, or with it and NMS in training on these boxes.
MAP_BOX_REGS = ("none", "windows", "regressed")


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
        class_names: list[str] | None = None,
        **kwargs,
    ):
        """
        Args:
            map_loss: the loss; its NMS should be that of the test (`test_nms_iou_thresh`).
            nms_on_regressed: the loss takes the regressed boxes for what is detected, as the test
                does, instead of the windows. They are constants to it.
            class_names: K names, for what is watched; None for numbers.
            input_shape, num_classes, kwargs: see :class:`WindowOutputLayers`.
        """
        super().__init__(input_shape, num_classes=num_classes, num_outputs=num_classes, **kwargs)
        self.map_loss = map_loss
        self.nms_on_regressed = nms_on_regressed
        self.class_names = class_names or [str(c) for c in range(num_classes)]
        # Set by the trainer while several passes make one minibatch.
        self.joint: JointRanking | None = None
        self._last_ap: dict[str, float] = {}
        # For pictures: if asked for, the last minibatch that was ranked.
        self.is_watched = False
        self.watched: tuple[LossInputs, MAPLossStats] | None = None

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
        ret["class_names"] = _class_names(cfg)
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
            memory_size=cfg.MODEL.MAP_LOSS.MEMORY,
        )
        return ret

    def score_losses(
        self, outputs: WindowOutputs, windows: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """
        loss_map and loss_score_reg, see :class:`maploss.layers.MAPLoss`.

        The labels of the windows are not used: the loss matches them to the objects of each class.
        """
        if not self.nms_on_regressed:
            outputs = outputs._replace(deltas=None)
        scores = outputs.scores
        inputs = LossInputs(
            scores,
            self.boxes(outputs, windows),
            image_inds(windows, scores.device),
            torch.cat([x.gt_boxes.tensor for x in targets]),
            torch.cat([x.gt_classes for x in targets]),
            image_inds(targets, scores.device),
            torch.cat([x.gt_difficult for x in targets]),
        )
        if self.joint is None:
            return self.rank(inputs)
        if self.joint.is_ranked:
            return self.joint.next_losses(scores)
        self.joint.collect(inputs, len(windows))
        return {}

    def rank(self, inputs: LossInputs) -> dict[str, torch.Tensor]:
        """
        The losses of a minibatch whose other parts are in other processes.

        DistributedDataParallel averages gradients over processes, and logs average losses. Here
        they are of the sum: the one mAP of all has the gradients of all windows.
        """
        num_ranks = comm.get_world_size()
        group = torch.distributed.group.WORLD if num_ranks > 1 else None
        losses, stats = self.map_loss(*inputs, group=group)
        losses["loss_map"] = scale_gradient(losses["loss_map"], num_ranks)
        losses["loss_score_reg"] = losses["loss_score_reg"] * num_ranks
        scores = inputs.scores.detach()
        self._watch(scores, stats)
        if self.is_watched:
            self.watched = (inputs._replace(scores=scores, boxes=inputs.boxes.detach()), stats)
        return losses

    def _watch(self, scores: torch.Tensor, stats: MAPLossStats) -> None:
        # mAP and AP are those of all processes, the rest is of this one's windows.
        watched = {
            "map/minibatch_map": stats.map,
            "map/gradient_up": stats.up_per_class.sum(),
            "map/gradient_down": stats.down_per_class.sum(),
            "map/nonzero_share": stats.nonzero_share,
            "map/clipped_share": stats.clipped_share,
            "map/largest_score": scores.abs().max() if scores.numel() else 0.0,
            **{f"map_seconds/{part}": value for part, value in stats.seconds.items()},
        }
        aps = enumerate(stats.ap_per_class.tolist())
        self._last_ap |= {self.class_names[c]: ap for c, ap in aps if not math.isnan(ap)}
        # Of the last minibatch that had the class: what is not put in each iteration gets lines of
        # its own in metrics.json.
        watched |= {f"map_per_class/{name}": ap for name, ap in self._last_ap.items()}
        storage = get_event_storage()
        for name, value in watched.items():
            storage.put_scalar(name, float(value))

    def losses(
        self, outputs: WindowOutputs, windows: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        losses = self.score_losses(outputs, windows, targets)
        if self.bbox_pred is not None and losses:
            count = len(outputs.scores) if self.joint is None else self.joint.mean_num_windows
            losses["loss_box_reg"] = self.box_loss(outputs, windows, count)
        return losses

    def box_loss(
        self, outputs: WindowOutputs, windows: list[Instances], count: float | None = None
    ) -> torch.Tensor:
        """
        The sum over windows of :meth:`box_losses` by their number: the mean of all processes, and
        of all passes if `count` is theirs.
        """
        number = outputs.scores.new_tensor(len(outputs.scores) if count is None else count)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(number)
        number = (number / comm.get_world_size()).clamp(min=1)
        return self.box_losses(outputs, windows).sum() / number

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
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    classes = MetadataCatalog.get(names[0]).get("thing_classes", None) if names else None
    if classes is None or len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        return None
    return list(classes)


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
