# SPDX-License-Identifier: Apache-2.0
"""
Config keys of this project, beside Detectron2's own.

"paper" is Henderson & Ferrari, "End-to-end training of object class detectors for mean average
precision", ACCV 2016.

These keys of Detectron2 take part in the method as well: MODEL.ROI_HEADS.NMS_THRESH_TEST is the NMS
of training and of test, and MODEL.ROI_HEADS.{BATCH_SIZE_PER_IMAGE (<= 0: all windows),
POSITIVE_FRACTION, IOU_THRESHOLDS} choose the windows that train.
"""

from detectron2.config import CfgNode


def add_maploss_config(cfg: CfgNode) -> None:
    """Adds this project's keys to a Detectron2 config."""
    _add_map_loss(cfg)
    _add_ohem(cfg)
    _add_ranking_losses(cfg)
    _add_backbones(cfg)
    # True: MODEL.WEIGHTS and proposal files may be pickles (.pkl), such as Detectron2's model zoo
    # has. Of these only arrays of numbers and strings and plain containers are read, without
    # running code.
    cfg.ALLOW_PICKLE = False
    # "SGD" (paper, section 4.1) or "AdamW". The size of the mAP loss's gradient says little about
    # the step to take; AdamW makes steps of a size of their own.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Passes of IMS_PER_BATCH images, forward and backward, whose mean gradient makes an update.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # True: windows over difficult objects train too, as in most of Girshick 2015 (Table 1: "07").
    # The mAP loss ignores them all the same, as AP does.
    cfg.MODEL.ROI_HEADS.TRAIN_ON_DIFFICULT = False
    # Names of the classes, written by tools/export_model.py; [] = those of DATASETS.TEST.
    cfg.MODEL.CLASS_NAMES = []
    # Beginnings of names of the parameters that train, all others are frozen; [] = none frozen but
    # by MODEL.BACKBONE.FREEZE_AT. ["roi_heads.box_predictor.bbox_pred"] on the weights of a
    # classifier is stage-wise training (Girshick 2015, section 5.1).
    cfg.MODEL.TRAIN_ONLY = []
    # Lengths of the shorter side of the images of a pyramid, in pixels, the longer one at most
    # INPUT.MAX_SIZE_TEST: at test each window is scored where its area is closest to that of a
    # square of PYRAMID_BEST_SIDE pixels (Girshick 2015, sections 2.4 and 5.2: 480, 576, 688, 864,
    # 1200; at most 2000; 224). [] = none.
    cfg.TEST.PYRAMID_SIZES = []
    cfg.TEST.PYRAMID_BEST_SIDE = 224.0
    # Above 1, the best regressed boxes of each class are scored and regressed again, so many times
    # in all, and NMS and votes are of the boxes of all times (Shrivastava et al. 2016, section 7:
    # 2).
    cfg.TEST.BOX_REG_ITERATIONS = 1
    # Above 0, a detection's box is the mean, weighted by scores, of all boxes of its class whose
    # IoU with it is above this (Shrivastava et al. 2016, section 7: .5).
    cfg.TEST.BOX_VOTING_IOU_THRESH = 0.0
    # False: the test leaves the windows as they are, whatever the box regression says (Girshick
    # 2015, Table 6). There is box regression where MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT > 0.
    cfg.TEST.BOX_REG = True
    # What an image does that turns out unreadable in training: "stop", or "skip": the next one that
    # can be read takes its place, with a warning and a count since the start or --resume
    # ("data/skipped_images"); ten in a row stop all the same.
    cfg.DATALOADER.UNREADABLE_IMAGES = "stop"
    # Folder of outputs of the backbone that are computed once and then read, "" = off: for models
    # whose backbone is frozen, or all of it below an FPN. Of each training image there is one for
    # each of INPUT.MIN_SIZE_TRAIN, and as many of the mirrored image with INPUT.RANDOM_FLIP
    # "horizontal". One folder serves several configs.
    cfg.DATALOADER.FEATURE_CACHE = ""
    # Largest size of what a run needs of it, in GiB; more stops the run before it is computed.
    cfg.DATALOADER.FEATURE_CACHE_LIMIT = 20.0
    # A user's own data sets: dictionaries with NAME, FORMAT, ROOT, SPLIT and CLASSES, see
    # `register_declared_datasets`.
    cfg.DATASETS.DECLARED = []


def _add_map_loss(cfg: CfgNode) -> None:
    cfg.MODEL.MAP_LOSS = CfgNode()
    # How AP weighs recall: "area" (VOC 2010 and later), "voc07" (11 points), "coco101" (101
    # points), or "auto": `ap_type` in the metadata of the first training set, so that training
    # matches the evaluation (paper, section 5, Settings). The gradient of GRADIENT "error_driven"
    # is that of "area" with any of them.
    cfg.MODEL.MAP_LOSS.AP_TYPE = "auto"
    # Overlaps: IoUs in [0, 1), rising, above which a window matches an object. The mAP is the mean
    # over them. A list; or "coco", .5, .55, .., .95; or None: those of the evaluation of the first
    # data set, ten for COCO's form, .5 for VOC's (paper, section 2.2). None, and not a word for it,
    # since yacs puts both a list and a word over it.
    cfg.MODEL.MAP_LOSS.IOU_THRESHS = None
    # What the gradient is made of. "error_driven": all true and false positives in the wrong order
    # (this project, after AP Loss). "mee" (mean envelope) or "sde" (symmetric difference): the
    # nearest steps of AP (paper, section 4.3; MEE is a bit better in its Table 1). "reinforce":
    # the rewards of sampled detections (Pinto et al. 2023, section 3), the same mAP after NMS.
    cfg.MODEL.MAP_LOSS.GRADIENT = "error_driven"
    # What a window suppressed by NMS gets: "none", "paper" (section 4.4), or this project's
    # "label_aware", "object_aware" and "exact". GRADIENT "error_driven" has "none", "label_aware"
    # (the push that it would have if it were kept) and "object_aware" (the same, and the windows of
    # an object share its weight, so that it counts once however many cover it). "mee" and "sde"
    # have all but "object_aware". None, the default: "object_aware" with "error_driven",
    # "label_aware" with "mee" and "sde". "reinforce" has None only: a window that NMS keeps in some
    # samples learns from these. None, and not a word for it, as in IOU_THRESHS.
    cfg.MODEL.MAP_LOSS.TRANSITIVITY = None
    # Each element of the loss's gradient by the scores is clipped to [-GRAD_CLIP, GRAD_CLIP]
    # (paper, section 4.5; no value given); 1 / units of score; 0 = off. Not to be confused with
    # SOLVER.CLIP_GRADIENTS, which clips the gradients of parameters.
    cfg.MODEL.MAP_LOSS.GRAD_CLIP = 0.0
    # Of GRADIENT and BOX_GRADIENT "error_driven".
    cfg.MODEL.MAP_LOSS.ERROR_DRIVEN = CfgNode()
    # A true positive is safe from false positives so far below it, in units of score.
    cfg.MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN = 1.0
    # Of GRADIENT "mee" and "sde".
    cfg.MODEL.MAP_LOSS.NEAREST_STEPS = CfgNode()
    # Least distance to a step in units of score, for SDE and where one of the two steps is missing
    # (paper, section 4.3, gives no value).
    cfg.MODEL.MAP_LOSS.NEAREST_STEPS.MIN_DELTA = 0.5
    # "none": the slope goes to the window that moves (paper). "paired": and, with the opposite
    # sign, to the window that it passes, so that the gradient of a class sums to zero (this
    # project).
    cfg.MODEL.MAP_LOSS.NEAREST_STEPS.PAIRING = "paired"
    # Of GRADIENT "reinforce".
    cfg.MODEL.MAP_LOSS.REINFORCE = CfgNode()
    # Noisy copies of all scores in each step, 2 or more; each is ranked, so each costs an NMS. The
    # baseline of a sample's AP is the mean of the others'.
    cfg.MODEL.MAP_LOSS.REINFORCE.NUM_SAMPLES = 2
    # Standard deviation of the Gaussian noise, in units of score.
    cfg.MODEL.MAP_LOSS.REINFORCE.NOISE = 0.5
    # The logarithm of mAP (paper, section 4.5, Log-space).
    cfg.MODEL.MAP_LOSS.LOG_SPACE = CfgNode()
    # True: the loss is -log((mAP + EPS) / (1 + EPS)); False: 1 - mAP.
    cfg.MODEL.MAP_LOSS.LOG_SPACE.ENABLED = True
    # In units of AP (no value given). As large as 1, the size of the gradient hardly depends on the
    # minibatch's mAP, much as without the log.
    cfg.MODEL.MAP_LOSS.LOG_SPACE.EPS = 1.0
    # WEIGHT times the sum of |s|^POWER over all scores s (paper, section 4.5).
    cfg.MODEL.MAP_LOSS.SCORE_REG = CfgNode()
    # 1 / (units of score)^POWER (no value given). The sum is over windows and classes: more
    # windows, more weight. 0 = off.
    cfg.MODEL.MAP_LOSS.SCORE_REG.WEIGHT = 0.0
    # 4; 2 in the ablation of section 5.
    cfg.MODEL.MAP_LOSS.SCORE_REG.POWER = 4.0
    # "none": windows are boxes (paper). "windows", "regressed": box regression is learned
    # beside, and the boxes that the loss ranks, matches and suppresses are the windows or what the
    # regression makes of them, each class its own.
    cfg.MODEL.MAP_LOSS.BOX_REG = "none"
    # How boxes learn where they are regressed. "error_driven": 1 - GIoU of each box, as each class,
    # with its object, weighted by what AP would gain if it were the true positive (this project).
    # "mee", "sde": weighted by the slope to the nearest overlaps at which AP changes, for BOX_REG
    # "regressed" only. Scores and boxes then follow one number, with no weight between them other
    # than MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT 1. "none":
    # MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE of the windows that sampling labels.
    cfg.MODEL.MAP_LOSS.BOX_GRADIENT = "error_driven"
    # Share, in [0, 1], of the AP of all classes in one list (AP-pool, Dave et al. 2021), which
    # makes scores of different classes comparable and lets the classes that a minibatch lacks take
    # part; the rest is mAP.
    cfg.MODEL.MAP_LOSS.POOLED = 1.0
    # The detections of so many earlier minibatches stay in the ranking, as constants; 0 = none.
    cfg.MODEL.MAP_LOSS.MEMORY = 0
    # Every so many iterations TensorBoard gets pictures of the minibatch: PR curves, and windows
    # coloured by their pseudo-gradient by scores and by boxes; 0 = never.
    cfg.MODEL.MAP_LOSS.VIS_PERIOD = 200
    # "sampled": the loss is that of the windows that MODEL.ROI_HEADS samples; "all": of all.
    # "hard": of all, too, as a read-only pass without dropout scores them, but only those carry its
    # gradient, scaled to the same sums, in whose scores it is largest: as many as would be sampled,
    # chosen as by MODEL.OHEM.
    cfg.MODEL.MAP_LOSS.WINDOWS = "sampled"


def _add_ohem(cfg: CfgNode) -> None:
    # Online hard example mining (Shrivastava et al. 2016), MODEL.ROI_HEADS.NAME "OHEMROIHeads": B
    # of the paper is MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE times the number of images.
    cfg.MODEL.OHEM = CfgNode()
    # Of windows whose IoU is above this, only that of the largest loss is chosen (section 4.1).
    cfg.MODEL.OHEM.NMS_THRESH = 0.7
    # True: the hardest of each image, equally many; False: the hardest of all images together.
    cfg.MODEL.OHEM.PER_IMAGE = False
    # True: all windows go through the backward pass too, for comparison (section 4.2).
    cfg.MODEL.OHEM.ONE_PASS = False


def _add_ranking_losses(cfg: CfgNode) -> None:
    # Losses of the scores of all windows and classes of a minibatch together, for
    # MODEL.ROI_HEADS.NAME "RankingROIHeads", MODEL.PROPOSAL_GENERATOR.NAME "RankingRPN" and
    # MODEL.META_ARCHITECTURE "RankingRetinaNet". Most rank them; focal losses do not, and are in
    # this group because they train the same sigmoids of the same detectors.
    cfg.MODEL.RANKING_LOSS = CfgNode()
    # "parameterized_ap", "ap" (AP Loss, Chen et al. 2019), "alrp" (Oksuz et al. 2020), "rank_sort"
    # (Oksuz et al. 2021), "bucketed_rank_sort" (Yavuz et al. 2024), "smooth_ap" (Brown et al.
    # 2020), "direct_ap" (direct loss minimisation, positive update, Song et al. 2016; each class by
    # itself; not for an RPN, where its table of positives x anchors is too large). Without a
    # ranking: "focal" (Lin et al. 2017: alpha .25, gamma 2), "quality_focal" (Generalized Focal
    # Loss, Li et al. 2020: beta 2), "varifocal" (Zhang et al. 2021: alpha .75, gamma 2), whose
    # scores begin at a probability of .01. The weights of the boxes are
    # MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT and MODEL.RPN.BBOX_REG_LOSS_WEIGHT; boxes learn by
    # their overlap, the mean of 1 - GIoU where the loss has nothing of its own for them, whatever
    # the keys of a BBOX_REG_LOSS_TYPE say.
    cfg.MODEL.RANKING_LOSS.NAME = "parameterized_ap"
    # Half the width of the step between two scores, in units of score, of "ap", "alrp", "rank_sort"
    # and "bucketed_rank_sort"; 0 = that of their papers: 1, 1, .5, .5.
    cfg.MODEL.RANKING_LOSS.DELTA = 0.0
    # Of the sigmoids of "smooth_ap", in units of score.
    cfg.MODEL.RANKING_LOSS.TEMPERATURE = 1.0
    # Of "direct_ap": weight of the loss beside the scores in the inference, in units of score.
    cfg.MODEL.RANKING_LOSS.EPSILON = 1.0
    # Of "ap" and "smooth_ap". None: all windows over objects are positives. A list of overlaps, or
    # "coco" as in MAP_LOSS.IOU_THRESHS: the mean of the losses over them, in which a window over an
    # object is positive if the IoU of its *regressed* box exceeds the overlap, else negative (this
    # project's own).
    cfg.MODEL.RANKING_LOSS.IOU_THRESHS = None

    # Parameterized AP Loss (Tao et al. 2021).
    cfg.MODEL.PARAMETERIZED_AP = CfgNode()
    # "searched": the functions of POINTS; "linear": identity functions; "sigmoid", "square".
    cfg.MODEL.PARAMETERIZED_AP.FORM = "searched"
    # The loss ranks so many of the best scores.
    cfg.MODEL.PARAMETERIZED_AP.NUM_RANKED = 100000
    # Of each part: POINTS, four [x, y] for each of H1, H2, I1, I2, I3, as tools/search_loss.py
    # finds them, [] for identity functions; and what the gradient of the boxes is multiplied with
    # (published values).
    for part, gradient_scale in (("RPN", 1.70), ("BOX_HEAD", 7.13), ("RETINANET", 4.12)):
        cfg.MODEL.PARAMETERIZED_AP[part] = CfgNode()
        cfg.MODEL.PARAMETERIZED_AP[part].POINTS = []
        cfg.MODEL.PARAMETERIZED_AP[part].GRADIENT_SCALE = gradient_scale


def _add_backbones(cfg: CfgNode) -> None:
    # SqueezeNet 1.0. MODEL.BACKBONE.FREEZE_AT: 0 freezes nothing, 1 conv1, n conv1 to fire<n>.
    cfg.MODEL.SQUEEZENET = CfgNode()
    # Any of "conv1" (stride 2), "fire2" to "fire4" (4), "fire5" to "fire8" (8), "fire9" (16).
    cfg.MODEL.SQUEEZENET.OUT_FEATURES = ["fire9"]

    # Networks of timm (pip install -e '.[timm]'), MODEL.BACKBONE.NAME "build_timm_backbone", or
    # below an FPN "build_timm_fpn_backbone". FREEZE_AT: 0 freezes nothing but BatchNorm, n all up
    # to the n-th output, 5 all of EfficientNet.
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # "stride2", "stride4", ..: outputs by their strides, those that the network has.
    cfg.MODEL.TIMM.OUT_FEATURES = ["stride16"]

    # The networks of Fast R-CNN: "alexnet", "caffenet" (S), "vgg_cnn_m_1024" (M), "vgg16" (L).
    # MODEL.BACKBONE.FREEZE_AT: 0 freezes nothing, n all of conv1 to conv<n>.
    cfg.MODEL.PLAIN_CONVNET = CfgNode()
    cfg.MODEL.PLAIN_CONVNET.NETWORK = "vgg16"
    # Their fc6 and fc7, MODEL.ROI_BOX_HEAD.NAME "FullyConnectedHead": widths, and the share of
    # outputs dropped in training.
    cfg.MODEL.ROI_BOX_HEAD.FC_DIMS = [4096, 4096]
    cfg.MODEL.ROI_BOX_HEAD.DROPOUT = 0.5
    # Ranks of the box head's linear layers, [1024, 256] for VGG16 in Fast R-CNN (section 4.4); 0
    # leaves a layer whole, [] all. tools/compress_model.py makes such checkpoints.
    cfg.MODEL.ROI_BOX_HEAD.SVD_RANKS = []

    # A few convolutions 3 x 3 trained from scratch; output "conv<number of stages>".
    cfg.MODEL.SMALL_CONVNET = CfgNode()
    # Output channels of each stage.
    cfg.MODEL.SMALL_CONVNET.CHANNELS = [32, 64, 64, 64]
    # Stride of each stage.
    cfg.MODEL.SMALL_CONVNET.STRIDES = [2, 2, 1, 1]
    # Normalisation after each convolution, as Detectron2's get_norm takes it; "" = none.
    cfg.MODEL.SMALL_CONVNET.NORM = "GN"
