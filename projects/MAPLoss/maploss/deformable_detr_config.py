# SPDX-License-Identifier: Apache-2.0
"""Config keys of Deformable DETR, a part of :func:`maploss.config.add_maploss_config`."""

from detectron2.config import CfgNode


def add_deformable_detr(cfg: CfgNode) -> None:
    """Deformable DETR"""
    # Of MODEL.META_ARCHITECTURE "RankingDeformableDETR" (pip install -e '.[detr]'): one stage with
    # box refinement (Zhu et al. 2021). The number of classes is MODEL.ROI_HEADS.NUM_CLASSES. There
    # is no NMS, so MODEL.ROI_HEADS.NMS_THRESH_TEST has to be 1.0.
    detr = cfg.MODEL.DEFORMABLE_DETR = CfgNode()
    # "ranking": MODEL.RANKING_LOSS, whose positives are the queries that the Hungarian matching
    # gives an object; with NAME "focal" it is the detector's own loss. "map": MODEL.MAP_LOSS with
    # NMS off and BOX_REG.BOXES "regressed", in which the matching of AP says which query is right.
    # Boxes learn by BOX_REG.GRADIENT, which pulls those that overlap their object already. With
    # BOX_REG.GRADIENT "none" they learn by L1 and GIoU of the Hungarian matching, which a training
    # from scratch needs.
    detr.LOSS = "ranking"
    # Outputs of the backbone.
    # Source: Zhu et al. 2021, appendix A.2.
    detr.IN_FEATURES = ["res3", "res4", "res5"]
    # Levels in all. Those beyond IN_FEATURES are made of the last output by convolutions of stride
    # 2.
    # Source: Zhu et al. 2021, appendix A.2.
    detr.NUM_FEATURE_LEVELS = 4
    # Detections of an image are at most so many times the number of classes.
    # Source: Zhu et al. 2021, section 5.
    detr.NUM_QUERIES = 300
    # Width of the transformer, a multiple of 32 and of NUM_HEADS.
    # Unit: channels.
    detr.D_MODEL = 256
    # Hidden width of the feed-forward parts.
    # Unit: channels.
    detr.FFN_DIM = 1024
    # Heads of each attention.
    # Source: Zhu et al. 2021, section 5.
    detr.NUM_HEADS = 8
    # Points that a head samples on each level.
    # Source: Zhu et al. 2021, section 5.
    detr.NUM_POINTS = 4
    # Layers of the encoder.
    detr.ENCODER_LAYERS = 6
    # Layers of the decoder, each with its own losses.
    detr.DECODER_LAYERS = 6
    # Share of outputs that training drops, in [0, 1).
    detr.DROPOUT = 0.1
    # Of the class in the Hungarian matching. In the loss it is of the focal losses only.
    detr.CLASS_WEIGHT = 2.0
    # Of the L1 distance of boxes, in the Hungarian matching and in the loss.
    detr.L1_WEIGHT = 5.0
    # Of GIoU, in the Hungarian matching and in the loss. It is also that of the boxes' gradient
    # where a loss trains boxes itself ("alrp", "parameterized_ap").
    detr.GIOU_WEIGHT = 2.0
