# SPDX-License-Identifier: Apache-2.0
"""From the keys of MODEL.MAP_LOSS to the loss."""

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from ..layers import MAPLoss, MAPLossSettings
from ..layers.average_precision import AP_TYPES
from ..layers.checks import check_choice
from ..layers.map_loss.settings import COCO_IOU_THRESHS, check_iou_threshs
from ..utils.prefix_errors import prefix_errors

logger = logging.getLogger(__name__)


def map_loss_from_config(cfg: CfgNode) -> MAPLoss:
    """
    The loss of MODEL.MAP_LOSS, whose NMS is MODEL.ROI_HEADS.NMS_THRESH_TEST.

    Raises:
        ValueError, TypeError: a value out of its range, also of a gradient that is not chosen; the
            message begins with the name of the key's group.
    """
    keys = cfg.MODEL.MAP_LOSS
    settings = settings_from_config(cfg)
    if keys.MEMORY < 0:
        raise ValueError(
            f"MODEL.MAP_LOSS.MEMORY: expected 0 or more minibatches, got {keys.MEMORY}"
        )
    with prefix_errors("MODEL.MAP_LOSS"):
        return MAPLoss(
            settings,
            score_reg_weight=keys.SCORE_REG.WEIGHT,
            score_reg_power=keys.SCORE_REG.POWER,
            memory_size=keys.MEMORY,
        )


def uses_map_loss(cfg: CfgNode) -> bool:
    """A detector of this config is trained by MODEL.MAP_LOSS."""
    if cfg.MODEL.META_ARCHITECTURE == "RankingDeformableDETR":
        return cfg.MODEL.DEFORMABLE_DETR.LOSS == "map"
    return cfg.MODEL.ROI_HEADS.NAME == "MAPROIHeads"


def settings_from_config(cfg: CfgNode) -> MAPLossSettings:
    """
    Of the groups ERROR_DRIVEN, NEAREST_STEPS, REINFORCE and LOG_SPACE, those that are chosen take
    part.

    Raises:
        ValueError, TypeError: as :func:`map_loss_from_config`.
    """
    keys = cfg.MODEL.MAP_LOSS
    error_driven = {"margin": keys.ERROR_DRIVEN.MARGIN}
    steps = {"min_delta": keys.NEAREST_STEPS.MIN_DELTA, "pairing": keys.NEAREST_STEPS.PAIRING}
    reinforce = {"num_samples": keys.REINFORCE.NUM_SAMPLES, "noise": keys.REINFORCE.NOISE}
    log_space = {"eps": keys.LOG_SPACE.EPS}
    nms = {"nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST}
    with prefix_errors("MODEL.MAP_LOSS.ERROR_DRIVEN"):
        MAPLossSettings(**error_driven)
    with prefix_errors("MODEL.MAP_LOSS.NEAREST_STEPS"):
        MAPLossSettings(gradient="mee", **steps)
    with prefix_errors("MODEL.MAP_LOSS.REINFORCE"):
        MAPLossSettings(gradient="reinforce", **reinforce)
    with prefix_errors("MODEL.MAP_LOSS.LOG_SPACE"):
        MAPLossSettings(**log_space)
    with prefix_errors("MODEL.ROI_HEADS.NMS_THRESH_TEST"):
        MAPLossSettings(**nms)
    with prefix_errors("MODEL.MAP_LOSS"):
        MAPLossSettings(box_gradient=keys.BOX_REG.GRADIENT)
    # Boxes that are not trained need no gradient.
    box_gradient = keys.BOX_REG.GRADIENT if keys.BOX_REG.BOXES != "none" else "none"
    iou_threshs = iou_threshs_from_config(cfg)
    chosen = {**error_driven} if box_gradient == "error_driven" else {}
    chosen |= {"error_driven": error_driven, "reinforce": reinforce}.get(keys.GRADIENT, steps)
    chosen |= log_space if keys.LOG_SPACE.ENABLED else {}
    ap_type = ap_type_from_config(cfg)
    with prefix_errors("MODEL.MAP_LOSS"):
        return MAPLossSettings(
            iou_threshs=iou_threshs,
            ap_type=ap_type,
            gradient=keys.GRADIENT,
            transitivity=keys.TRANSITIVITY,
            box_gradient=box_gradient,
            pooled=keys.POOLED,
            grad_clip=keys.GRAD_CLIP or None,
            log_space=keys.LOG_SPACE.ENABLED,
            **chosen,
            **nms,
        )


def ap_type_from_config(cfg: CfgNode) -> str:
    """
    MODEL.MAP_LOSS.AP_TYPE, or if that is "auto", `ap_type` of the first data set's metadata.

    Raises:
        ValueError: another word, or "auto", and there is no data set or its metadata has no
            ap_type.
    """
    ap_type = cfg.MODEL.MAP_LOSS.AP_TYPE
    check_choice("MODEL.MAP_LOSS.AP_TYPE", ap_type, ("auto", *AP_TYPES))
    if ap_type != "auto":
        return ap_type
    name, metadata = first_data_set(cfg)
    ap_type = metadata.get("ap_type", None) if metadata is not None else None
    if ap_type is None:
        raise ValueError(
            "MODEL.MAP_LOSS.AP_TYPE 'auto': expected `ap_type` in the metadata of "
            f"{repr(name) if name else 'DATASETS.TRAIN[0]'}, got none; "
            "set AP_TYPE to 'area', 'voc07' or 'coco101'"
        )
    logger.info(f"AP type of the loss: {ap_type!r}, as in the evaluation of {name!r}")
    return ap_type


def iou_threshs_from_config(cfg: CfgNode) -> tuple[float, ...]:
    """
    MODEL.MAP_LOSS.IOU_THRESHS, or if that is None, those by which the first data set is judged: ten
    where its metadata has the ap_type or the evaluator of COCO, else .5. Warns of overlaps at which
    no evaluation is made.

    Raises:
        ValueError, TypeError: as :func:`map_loss_from_config`.
    """
    threshs = cfg.MODEL.MAP_LOSS.IOU_THRESHS
    if threshs is not None:
        with prefix_errors("MODEL.MAP_LOSS"):
            threshs = check_iou_threshs(threshs)
        others = [f"{x:g}" for x in threshs if x not in COCO_IOU_THRESHS]
        if others:
            logger.warning(
                f"MODEL.MAP_LOSS.IOU_THRESHS: the loss has {', '.join(others)}, the evaluation "
                ".5, .55, .., .95 only"
            )
        return threshs
    name, metadata = first_data_set(cfg)
    is_coco = metadata is not None and (
        metadata.get("ap_type", None) == "coco101" or metadata.get("evaluator_type", None) == "coco"
    )
    if metadata is not None:
        overlaps = "ten overlaps, .5 to .95" if is_coco else "one overlap, .5"
        logger.info(f"Overlaps of the loss: {overlaps}, as in the evaluation of {name!r}")
    return COCO_IOU_THRESHS if is_coco else (0.5,)


def first_data_set(cfg: CfgNode) -> tuple[str | None, Metadata | None]:
    """Name and metadata of the first training set, or test set; None without any."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return (names[0], MetadataCatalog.get(names[0])) if names else (None, None)
