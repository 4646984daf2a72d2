# SPDX-License-Identifier: Apache-2.0
"""
Config keys of this project, beside Detectron2's own.

"paper" is Henderson & Ferrari, "End-to-end training of object class detectors for mean average
precision", ACCV 2016. Booleans end in _ON or are called ENABLED. What can be off is 0 then if it is
a number, "" if a text, [] if a list, "none" if a choice. None: as the rest of the config says.

These keys of Detectron2 take part in the method as well: MODEL.ROI_HEADS.NMS_THRESH_TEST is the NMS
of training and of test, and MODEL.ROI_HEADS.{BATCH_SIZE_PER_IMAGE (<= 0: all windows),
POSITIVE_FRACTION, IOU_THRESHOLDS} choose the windows that train.

The keys of Deformable DETR are in deformable_detr_config.py.

tools/config_reference.py makes docs/config.md of both files. It reads the docstring of a function
as a heading and the comment above a key or group as its text, in which a line that begins with
"Unit:" or "Source:" is set apart.
"""

from detectron2.config import CfgNode

from .deformable_detr_config import add_deformable_detr


def add_maploss_config(cfg: CfgNode) -> None:
    """Adds this project's keys to a Detectron2 config."""
    _add_detector(cfg)
    _add_map_loss(cfg)
    _add_map_loss_gradient(cfg)
    _add_map_loss_terms(cfg)
    _add_ohem(cfg)
    _add_ranking_loss(cfg)
    _add_parameterized_ap(cfg)
    add_deformable_detr(cfg)
    _add_backbones(cfg)
    _add_data(cfg)
    _add_solver(cfg)
    _add_test(cfg)


def _add_detector(cfg: CfgNode) -> None:
    """The detector"""
    # Windows over difficult objects train, too. The mAP loss ignores them all the same, as AP does.
    # Source: Girshick 2015, Table 1 (on: "07").
    cfg.MODEL.TRAIN_DIFFICULT_ON = False
    # Beginnings of names of the parameters that train; all others are frozen. [] = all train that
    # MODEL.BACKBONE.FREEZE_AT does not freeze. ["roi_heads.box_predictor.bbox_pred"] on the weights
    # of a classifier is stage-wise training.
    # Source: Girshick 2015, section 5.1.
    cfg.MODEL.TRAIN_ONLY = []
    # Names of the classes, written by tools/export_model.py. [] = those of DATASETS.TEST.
    cfg.MODEL.CLASS_NAMES = []
    # Ranks of the box head's linear layers, [1024, 256] for VGG16 in the paper named below. 0
    # leaves a layer whole, [] all. tools/compress_model.py makes such checkpoints.
    # Source: Girshick 2015, section 4.4.
    cfg.MODEL.ROI_BOX_HEAD.SVD_RANKS = []
    # Of MODEL.ROI_BOX_HEAD.NAME "FullyConnectedHead": fc6 and fc7 of the networks of Fast R-CNN.
    cfg.MODEL.ROI_BOX_HEAD.FULLY_CONNECTED = CfgNode()
    # Widths of the layers; half of their outputs are dropped in training.
    # Unit: outputs.
    cfg.MODEL.ROI_BOX_HEAD.FULLY_CONNECTED.DIMS = [4096, 4096]


def _add_map_loss(cfg: CfgNode) -> None:
    """The mAP loss: what is ranked"""
    # Of MODEL.ROI_HEADS.NAME "MAPROIHeads", and of MODEL.META_ARCHITECTURE "RankingDeformableDETR"
    # with MODEL.DEFORMABLE_DETR.LOSS "map".
    loss = cfg.MODEL.MAP_LOSS = CfgNode()
    # How AP weighs recall: "area" (VOC 2010 and later), "voc07" (11 points), "coco101" (101
    # points), or "auto": `ap_type` in the metadata of the first training set, so that training
    # matches the evaluation. The gradient of GRADIENT "error_driven" is that of "area" with any of
    # them.
    # Source: paper, section 5, Settings.
    loss.AP_TYPE = "auto"
    # Overlaps above which a window matches an object, rising, in [0, 1). The mAP is the mean over
    # them. A list; or "coco", .5, .55, .., .95; or None: those of the evaluation of the first data
    # set, ten for COCO's form, .5 for VOC's. (None, and not a word for it, since yacs puts both a
    # list and a word over it.)
    # Unit: IoU.
    # Source: paper, section 2.2.
    loss.IOU_THRESHS = None
    # Share, in [0, 1], of the AP of all classes in one list, which makes scores of different
    # classes comparable and lets the classes that a minibatch lacks take part; the rest is mAP. 0 =
    # off.
    # Source: AP-pool, Dave et al. 2021.
    loss.POOLED = 1.0
    # The detections of so many earlier minibatches stay in the ranking, as constants. 0 = off.
    # Unit: minibatches.
    loss.MEMORY = 0
    # "sampled": the loss is that of the windows that MODEL.ROI_HEADS samples; "all": of all.
    # "hard": of all, too, as a read-only pass without dropout scores them, but only those carry its
    # gradient, scaled to the same sums, in whose scores it is largest: as many as would be sampled,
    # chosen as by MODEL.OHEM.
    loss.WINDOWS = "sampled"
    # Every so many iterations TensorBoard gets pictures of the minibatch: PR curves, and windows
    # coloured by their pseudo-gradient by scores and by boxes. 0 = off.
    # Unit: iterations.
    loss.VIS_PERIOD = 200


def _add_map_loss_gradient(cfg: CfgNode) -> None:
    """The mAP loss: its gradient by the scores"""
    loss = cfg.MODEL.MAP_LOSS
    # What the gradient is made of. "error_driven": all true and false positives in the wrong order
    # (this project, after AP Loss). "mee" (mean envelope) or "sde" (symmetric difference): the
    # nearest steps of AP; "mee" is a bit better in the paper's Table 1. "reinforce": the rewards of
    # sampled detections, by the same mAP after NMS.
    # Source: paper, section 4.3; Pinto et al. 2023, section 3.
    loss.GRADIENT = "error_driven"
    # What a window suppressed by NMS gets: "none", "paper", or this project's "label_aware",
    # "object_aware" and "exact". GRADIENT "error_driven" has "none", "label_aware" (the gradient
    # that it would have if it were kept) and "object_aware" (the same, and the windows of an object
    # share its weight, so that it counts once however many cover it). "mee" and "sde" have all but
    # "object_aware". None: "object_aware" with "error_driven", "label_aware" with "mee" and "sde".
    # "reinforce" has None only: a window that NMS keeps in some samples learns from these.
    # Source: paper, section 4.4.
    loss.TRANSITIVITY = None
    # Each element of the gradient is clipped to [-GRAD_CLIP, GRAD_CLIP]. 0 = off. Not to be
    # confused with SOLVER.CLIP_GRADIENTS, which clips the gradients of parameters.
    # Unit: 1 / score.
    # Source: paper, section 4.5, which gives no value.
    loss.GRAD_CLIP = 0.0
    # Of GRADIENT and BOX_REG.GRADIENT "error_driven".
    loss.ERROR_DRIVEN = CfgNode()
    # A true positive is safe from false positives so far below it.
    # Unit: score.
    loss.ERROR_DRIVEN.MARGIN = 1.0
    # Of GRADIENT "mee" and "sde".
    loss.NEAREST_STEPS = CfgNode()
    # Least distance to a step, for "sde" and where one of the two steps is missing.
    # Unit: score.
    # Source: paper, section 4.3, which gives no value.
    loss.NEAREST_STEPS.MIN_DELTA = 0.5
    # "none": the slope goes to the window that moves, as in the paper. "paired": and, with the
    # opposite sign, to the window that it passes, so that the gradient of a class sums to zero.
    loss.NEAREST_STEPS.PAIRING = "paired"
    # Of GRADIENT "reinforce".
    loss.REINFORCE = CfgNode()
    # Noisy copies of all scores in each step, 2 or more; each is ranked, so each costs an NMS. The
    # baseline of a sample's AP is the mean of the others'.
    loss.REINFORCE.NUM_SAMPLES = 2
    # Standard deviation of the Gaussian noise.
    # Unit: score.
    loss.REINFORCE.NOISE = 0.5


def _add_map_loss_terms(cfg: CfgNode) -> None:
    """The mAP loss: logarithm, regulariser, boxes"""
    loss = cfg.MODEL.MAP_LOSS
    # The logarithm of mAP.
    loss.LOG_SPACE = CfgNode()
    # True: the loss is -log((mAP + EPS) / (1 + EPS)); False: 1 - mAP.
    # Source: paper, section 4.5, Log-space.
    loss.LOG_SPACE.ENABLED = True
    # As large as 1, the size of the gradient hardly depends on the minibatch's mAP, much as without
    # the logarithm.
    # Unit: AP, in [0, 1].
    # Source: paper, section 4.5, which gives no value.
    loss.LOG_SPACE.EPS = 1.0
    # WEIGHT times the sum of |s|^POWER over all scores s.
    loss.SCORE_REG = CfgNode()
    # The sum is over windows and classes: more windows, more weight. 0 = off.
    # Unit: 1 / score^POWER.
    # Source: paper, section 4.5, which gives no value.
    loss.SCORE_REG.WEIGHT = 0.0
    # 4 in the paper, 2 in one of its ablations.
    # Source: paper, sections 4.5 and 5.
    loss.SCORE_REG.POWER = 4.0
    # Box regression beside the scores; MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT is its weight.
    loss.BOX_REG = CfgNode()
    # The boxes that the loss ranks, matches and suppresses: "windows", or "regressed", what the
    # regression makes of them, each class its own. "none": no box regression, as in the paper.
    loss.BOX_REG.BOXES = "none"
    # How boxes learn where they are regressed. "error_driven": 1 - GIoU of each box, as each class,
    # with its object, weighted by what AP would gain if it were the true positive (this project).
    # "mee", "sde": weighted by the slope to the nearest overlaps at which AP changes, for BOXES
    # "regressed" only. Scores and boxes then follow one number, with no weight between them other
    # than BBOX_REG_LOSS_WEIGHT 1. "none": MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE of the windows that
    # sampling labels.
    loss.BOX_REG.GRADIENT = "error_driven"


def _add_ohem(cfg: CfgNode) -> None:
    """Online hard example mining"""
    # Of MODEL.ROI_HEADS.NAME "OHEMROIHeads", and of MODEL.MAP_LOSS.WINDOWS "hard". B of the paper
    # (Shrivastava et al. 2016) is MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE times the number of images.
    ohem = cfg.MODEL.OHEM = CfgNode()
    # Of windows that overlap by more than this, only that of the largest loss is chosen.
    # Unit: IoU.
    # Source: Shrivastava et al. 2016, section 4.1.
    ohem.NMS_THRESH = 0.7
    # True: the hardest of each image, equally many; False: the hardest of all images together.
    ohem.PER_IMAGE_ON = False
    # All windows go through the backward pass too, for comparison. Of "OHEMROIHeads" only.
    # Source: Shrivastava et al. 2016, section 4.2.
    ohem.ONE_PASS_ON = False


def _add_ranking_loss(cfg: CfgNode) -> None:
    """Other losses"""
    # Losses of the scores of all windows and classes of a minibatch together, for
    # MODEL.ROI_HEADS.NAME "RankingROIHeads", MODEL.PROPOSAL_GENERATOR.NAME "RankingRPN" and
    # MODEL.META_ARCHITECTURE "RankingRetinaNet" and "RankingDeformableDETR". Most rank them; focal
    # losses do not, and are in this group because they train the same sigmoids of the same
    # detectors. The weights of the boxes are MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT,
    # MODEL.RPN.BBOX_REG_LOSS_WEIGHT and MODEL.DEFORMABLE_DETR.GIOU_WEIGHT; boxes learn by their
    # overlap, the mean of 1 - GIoU where the loss has nothing of its own for them, whatever the
    # keys of a BBOX_REG_LOSS_TYPE say.
    loss = cfg.MODEL.RANKING_LOSS = CfgNode()
    # "parameterized_ap", "ap" (AP Loss, Chen et al. 2019), "alrp" (Oksuz et al. 2020), "rank_sort"
    # (Oksuz et al. 2021), "bucketed_rank_sort" (Yavuz et al. 2024), "smooth_ap" (Brown et al.
    # 2020), "direct_ap" (direct loss minimisation, positive update, Song et al. 2016; each class by
    # itself; not for an RPN, where its table of positives x anchors is too large). Without a
    # ranking: "focal" (Lin et al. 2017: alpha .25, gamma 2), "quality_focal" (Generalized Focal
    # Loss, Li et al. 2020: beta 2), "varifocal" (Zhang et al. 2021: alpha .75, gamma 2), whose
    # scores begin at a probability of .01.
    loss.NAME = "parameterized_ap"
    # Half the width of the step between two scores, of "ap", "alrp", "rank_sort" and
    # "bucketed_rank_sort"; refused with another. 0 = that of their papers: 1, 1, .5, .5.
    # Unit: score.
    loss.DELTA = 0.0
    # Of "ap" and "smooth_ap"; refused with another. None: all windows over objects are positives. A
    # list of overlaps, or "coco" as in MAP_LOSS.IOU_THRESHS: the mean of the losses over them, in
    # which a window over an object is positive if the IoU of its regressed box exceeds the overlap,
    # else negative (this project's own).
    # Unit: IoU.
    loss.IOU_THRESHS = None
    # Of NAME "smooth_ap".
    loss.SMOOTH_AP = CfgNode()
    # Of the sigmoids in place of the steps.
    # Unit: score.
    loss.SMOOTH_AP.TEMPERATURE = 1.0
    # Of NAME "direct_ap".
    loss.DIRECT_AP = CfgNode()
    # Weight of the loss beside the scores in the inference.
    # Unit: score.
    loss.DIRECT_AP.EPSILON = 1.0


def _add_parameterized_ap(cfg: CfgNode) -> None:
    """Other losses: Parameterized AP Loss"""
    # Of MODEL.RANKING_LOSS.NAME "parameterized_ap" (Tao et al. 2021).
    loss = cfg.MODEL.RANKING_LOSS.PARAMETERIZED_AP = CfgNode()
    # "searched": the functions of POINTS; "linear": identity functions; "sigmoid", "square". With
    # the last three POINTS are refused.
    loss.FORM = "searched"
    # The loss ranks so many of the best scores.
    # Unit: scores.
    loss.NUM_RANKED = 100000
    # Of an RPN.
    loss.RPN = CfgNode()
    # Four control points [x, y] for each of the functions H1, H2, I1, I2, I3, as
    # tools/search_loss.py finds them. [] = identity functions.
    loss.RPN.POINTS = []
    # What the gradient of the boxes is multiplied with, the published value.
    loss.RPN.GRADIENT_SCALE = 1.70
    # Of a box head.
    loss.BOX_HEAD = CfgNode()
    # As RPN.POINTS.
    loss.BOX_HEAD.POINTS = []
    # As RPN.GRADIENT_SCALE.
    loss.BOX_HEAD.GRADIENT_SCALE = 7.13
    # Of RetinaNet.
    loss.RETINANET = CfgNode()
    # As RPN.POINTS.
    loss.RETINANET.POINTS = []
    # As RPN.GRADIENT_SCALE.
    loss.RETINANET.GRADIENT_SCALE = 4.12
    # Of Deformable DETR.
    loss.DEFORMABLE_DETR = CfgNode()
    # As RPN.POINTS.
    loss.DEFORMABLE_DETR.POINTS = []
    # As RPN.GRADIENT_SCALE, but none is published: this project's choice. It is doubled by
    # MODEL.DEFORMABLE_DETR.GIOU_WEIGHT, which makes it about RetinaNet's.
    loss.DEFORMABLE_DETR.GRADIENT_SCALE = 2.0


def _add_backbones(cfg: CfgNode) -> None:
    """Backbones"""
    # SqueezeNet 1.0, MODEL.BACKBONE.NAME "build_squeezenet_backbone". MODEL.BACKBONE.FREEZE_AT: 0
    # freezes nothing, 1 conv1, n conv1 to fire<n>.
    cfg.MODEL.SQUEEZENET = CfgNode()
    # Any of "conv1" (stride 2), "fire2" to "fire4" (4), "fire5" to "fire8" (8), "fire9" (16).
    cfg.MODEL.SQUEEZENET.OUT_FEATURES = ["fire9"]
    # Networks of timm (pip install -e '.[timm]'), MODEL.BACKBONE.NAME "build_timm_backbone", or
    # below an FPN "build_timm_fpn_backbone". FREEZE_AT: 0 freezes nothing but BatchNorm, n all up
    # to the n-th output, 5 all of EfficientNet.
    cfg.MODEL.TIMM = CfgNode()
    # As timm calls it.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # "stride2", "stride4", ..: outputs by their strides, those that the network has.
    cfg.MODEL.TIMM.OUT_FEATURES = ["stride16"]
    # The networks of Fast R-CNN, MODEL.BACKBONE.NAME "build_plain_convnet_backbone".
    # MODEL.BACKBONE.FREEZE_AT: 0 freezes nothing, n all of conv1 to conv<n>.
    cfg.MODEL.PLAIN_CONVNET = CfgNode()
    # "alexnet", "caffenet" (S), "vgg_cnn_m_1024" (M), "vgg16" (L).
    # Source: Girshick 2015, section 5.
    cfg.MODEL.PLAIN_CONVNET.NETWORK = "vgg16"
    # A few convolutions 3 x 3 trained from scratch, MODEL.BACKBONE.NAME
    # "build_small_convnet_backbone"; output "conv<number of stages>".
    cfg.MODEL.SMALL_CONVNET = CfgNode()
    # Of each stage.
    # Unit: output channels.
    cfg.MODEL.SMALL_CONVNET.CHANNELS = [32, 64, 64, 64]
    # Stride of each stage.
    # Unit: pixels of its input.
    cfg.MODEL.SMALL_CONVNET.STRIDES = [2, 2, 1, 1]
    # Normalisation after each convolution, as Detectron2's get_norm takes it; "" = none.
    cfg.MODEL.SMALL_CONVNET.NORM = "GN"


def _add_data(cfg: CfgNode) -> None:
    """Data"""
    # A user's own data sets: dictionaries with NAME, FORMAT, ROOT, SPLIT and CLASSES, see
    # `register_declared_datasets`. [] = none.
    cfg.DATASETS.DECLARED = []
    # MODEL.WEIGHTS and proposal files may be pickles (.pkl), such as Detectron2's model zoo has. Of
    # these only arrays of numbers and strings and plain containers are read, without running code.
    cfg.PICKLE_ON = False
    # What an image does that turns out unreadable in training: "stop", or "skip": the next one that
    # can be read takes its place, with a warning and a count since the start or --resume
    # ("data/skipped_images"); ten in a row stop all the same.
    cfg.DATALOADER.UNREADABLE_IMAGES = "stop"
    # Outputs of the backbone that are computed once and then read, for models whose backbone is
    # frozen, or all of it below an FPN. See feature_cache.md.
    cache = cfg.DATALOADER.FEATURE_CACHE = CfgNode()
    # Where they lie; "" = off. Of each training image there is one for each of
    # INPUT.MIN_SIZE_TRAIN, and as many of the mirrored image with INPUT.RANDOM_FLIP "horizontal".
    # One folder serves several configs.
    cache.FOLDER = ""
    # Largest size of what a run needs of it; more stops the run before it is computed.
    # Unit: GiB.
    cache.MAX_GIB = 20.0


def _add_solver(cfg: CfgNode) -> None:
    """Solver"""
    # "SGD" or "AdamW". The size of the mAP loss's gradient says little about the step to take;
    # AdamW makes steps of a size of their own.
    # Source: paper, section 4.1 ("SGD").
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Passes of IMS_PER_BATCH images, forward and backward, whose mean gradient makes an update.
    # Unit: passes.
    cfg.SOLVER.ACCUMULATE_STEPS = 1


def _add_test(cfg: CfgNode) -> None:
    """Test"""
    # Box regression at test; there is some where MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT > 0.
    cfg.TEST.BOX_REG = CfgNode()
    # False: the test leaves the windows as they are, whatever the box regression says.
    # Source: Girshick 2015, Table 6.
    cfg.TEST.BOX_REG.ENABLED = True
    # Above 1, the best regressed boxes of each class are scored and regressed again, so many times
    # in all, and NMS and votes are of the boxes of all times. 1 = once.
    # Source: Shrivastava et al. 2016, section 7 (2).
    cfg.TEST.BOX_REG.ITERATIONS = 1
    # Above 0, a detection's box is the mean, weighted by scores, of all boxes of its class that
    # overlap it by more than this. 0 = off.
    # Unit: IoU.
    # Source: Shrivastava et al. 2016, section 7 (.5).
    cfg.TEST.BOX_VOTING_IOU_THRESH = 0.0
    # At test each window is scored in the image of a pyramid where its area is closest to that of a
    # square of a given side.
    pyramid = cfg.TEST.PYRAMID = CfgNode()
    # Lengths of the shorter side of the images, the longer one at most INPUT.MAX_SIZE_TEST. [] =
    # off.
    # Unit: pixels.
    # Source: Girshick 2015, section 5.2 (480, 576, 688, 864, 1200; at most 2000).
    pyramid.SIZES = []
    # Side of that square.
    # Unit: pixels.
    # Source: Girshick 2015, section 2.4.
    pyramid.BEST_SIDE = 224.0
