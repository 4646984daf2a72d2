# SPDX-License-Identifier: Apache-2.0
"""
ROI heads: which proposals train, and which predictor scores them.

Shapes: N images, R proposals of all images (Ri of image i), K classes, Gi objects of image i.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import ROIHeads, build_box_head
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_ioa, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn

from .compression import factorize_linear
from .detections import best_of_each_class
from .hard_example_mining import check_num_hard, mine_hard_proposals, without_lower_limit
from .image_pyramid import Features, ImagePyramid, score_on_pyramid
from .output_layers import BoxOutputLayers, BoxPredictions, SoftmaxOutputLayers

# Which of the labelled proposals train.
TRAINED_ON = ("all", "sampled", "hard")


class BoxROIHeads(ROIHeads):
    """
    Scores given proposals: pooler, box head, predictor. A subclass names the predictor's class.

    Which proposals are sampled does not depend on the predictor: with the same seed, all see the
    same.
    """

    # Built from a config: SoftmaxOutputLayers or another BoxOutputLayers.
    predictor_class: Callable[..., BoxOutputLayers]
    proposal_matcher: Matcher
    box_predictor: BoxOutputLayers

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: BoxOutputLayers,
        trained_on: str = "sampled",
        train_on_difficult: bool = False,
        hard_iou_thresh: float = 0.7,
        hard_per_image: bool = False,
        test_box_iterations: int = 1,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            in_features: names of the backbone's outputs that are pooled.
            pooler: features of a proposal.
            box_head: what is made of them.
            box_predictor: scores, boxes, losses and detections.
            trained_on: "sampled", `batch_size_per_image` of an image, or all if that is <= 0;
                "all"; or "hard", chosen by the subclass, so many as would be sampled. Where they
                are not sampled background begins at IoU 0.
            train_on_difficult: proposals over difficult objects have their labels too.
            hard_iou_thresh: of the NMS among hard proposals, see
                :func:`maploss.layers.hard_examples`.
            hard_per_image: hard ones are chosen among those of each image, not of all.
            test_box_iterations: above 1 the best regressed boxes are scored and regressed again, so
                many times in all.
            kwargs: of Detectron2's ROIHeads.

        Raises:
            ValueError: no iteration, or more than one of what is not regressed; a number of hard
                proposals below 1.
        """
        super().__init__(**kwargs)
        if trained_on == "hard":
            check_num_hard(self.batch_size_per_image)
        if trained_on != "sampled":
            self.proposal_matcher = without_lower_limit(self.proposal_matcher)
        _check_iterations(test_box_iterations, box_predictor)
        self.in_features = in_features
        self.pooler = pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.train_on_difficult = train_on_difficult
        self.hard_iou_thresh = hard_iou_thresh
        self.hard_per_image = hard_per_image
        self.trained_on = trained_on
        self.test_box_iterations = test_box_iterations

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _check_parts(cfg)
        ret = super().from_config(cfg)
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        missing = [name for name in in_features if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES: expected names of {sorted(input_shape)}, "
                f"got {missing[0]!r}"
            )
        ret["in_features"] = in_features
        ret["train_on_difficult"] = cfg.MODEL.TRAIN_DIFFICULT_ON
        ret["hard_iou_thresh"] = cfg.MODEL.OHEM.NMS_THRESH
        ret["hard_per_image"] = cfg.MODEL.OHEM.PER_IMAGE_ON
        ret["test_box_iterations"] = cfg.TEST.BOX_REG.ITERATIONS
        ret["pooler"] = ROIPooler(
            output_size=resolution,
            scales=[1.0 / input_shape[name].stride for name in in_features],
            sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
            pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
        )
        channels = input_shape[in_features[0]].channels
        box_head = build_box_head(
            cfg, ShapeSpec(channels=channels, height=resolution, width=resolution)
        )
        if cfg.MODEL.ROI_BOX_HEAD.SVD_RANKS:
            factorize_linear(box_head, cfg.MODEL.ROI_BOX_HEAD.SVD_RANKS)
        ret["box_head"] = box_head
        # The last part to be built: all before it starts the same for every predictor.
        ret["box_predictor"] = cls.predictor_class(cfg, box_head.output_shape)
        return ret

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """
        Args:
            images: as Detectron2's ROIHeads.
            features: as there.
            proposals: as there.
            targets: as there. They may have gt_difficult (Gi,), 1 or True for objects that are
                difficult, and gt_is_crowd for crowds, which are difficult as well; without these
                no object is.

        Returns:
            In training the proposals that train and the losses, at test the detections and {}.
        """
        if not self.training:
            return self.inference(features, proposals), {}
        proposals, targets = self.training_proposals(proposals, targets)
        proposals, predictions = self.score_to_train(features, proposals)
        losses = self.box_predictor.losses(predictions, proposals, targets)
        self._watch(proposals)
        return proposals, losses

    def inference(self, features: Features, proposals: list[Instances]) -> list[Instances]:
        """
        Detections of each image.

        With iterations (Gidaris & Komodakis 2015, section 4; Shrivastava et al. 2016, section 7)
        NMS and votes are of the boxes of all iterations. Each scores again, of each class, the best
        R / K of the boxes before: as many boxes as there are proposals.
        """
        predictor = self.box_predictor
        predictions = self.score_proposals(features, proposals)
        if self.test_box_iterations == 1:
            return predictor.inference(predictions, proposals)
        candidates = newest = predictor.candidates(predictions, proposals)
        num_best = [math.ceil(len(x) / self.num_classes) for x in proposals]
        for _ in range(self.test_box_iterations - 1):
            best = [best_of_each_class(x, n) for x, n in zip(newest, num_best, strict=True)]
            classes = [x.pred_classes for x in best]
            proposals = [Instances(x.image_size, proposal_boxes=x.pred_boxes) for x in best]
            predictions = self.score_proposals(features, proposals)
            newest = predictor.candidates_of_classes(predictions, proposals, classes)
            candidates = [Instances.cat(pair) for pair in zip(candidates, newest, strict=True)]
        return predictor.detect(candidates)

    def training_proposals(
        self, proposals: list[Instances], targets: list[Instances] | None
    ) -> tuple[list[Instances], list[Instances]]:
        """
        The proposals of :meth:`label_and_sample_proposals`, and the targets with gt_difficult: also
        those that no proposal matches, since they count in AP's number of objects.
        """
        if targets is None:
            raise ValueError("targets: expected the objects of each image in training, got None")
        targets = [_with_difficult(x) for x in targets]
        if self.proposal_append_gt:
            # As Boxes, which Detectron2 0.5 and 0.6 both take.
            proposals = add_ground_truth_to_proposals([x.gt_boxes for x in targets], proposals)
        return self.label_and_sample_proposals(proposals, targets), targets

    def score_to_train(
        self, features: Features, proposals: list[Instances]
    ) -> tuple[list[Instances], BoxPredictions]:
        """Those of the labelled proposals that train, and what the predictor says of them."""
        return proposals, self.score_proposals(features, proposals)

    def _watch(self, proposals: list[Instances]) -> None:
        """Puts how many proposals of an image train, over objects and over nothing."""
        num_foreground = sum(int((x.gt_classes < self.num_classes).sum()) for x in proposals)
        num_background = sum(len(x) for x in proposals) - num_foreground
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", num_foreground / len(proposals))
        storage.put_scalar("roi_head/num_bg_samples", num_background / len(proposals))

    @torch.no_grad()
    def score_read_only(self, features: Features, proposals: list[Instances]) -> BoxPredictions:
        """
        As :meth:`score_proposals`, keeping nothing for a backward pass, and as the test does:
        without dropout, and not changing the statistics of norms.
        """
        modules = [*self.box_head.modules(), *self.box_predictor.modules()]
        were_training = [x.training for x in modules]
        try:
            for module in modules:
                module.training = False
            return self.score_proposals(features, proposals)
        finally:
            for module, was_training in zip(modules, were_training, strict=True):
                module.training = was_training
            # Under autocast torch keeps half-precision copies of the weights, and those made
            # without a graph would cut the ordinary pass off from the weights.
            torch.clear_autocast_cache()

    def mine_hard_proposals(
        self, losses: torch.Tensor, proposals: list[Instances]
    ) -> tuple[torch.Tensor, list[Instances]]:
        """:func:`maploss.modeling.hard_example_mining.mine_hard_proposals` as configured."""
        return mine_hard_proposals(
            losses,
            proposals,
            self.batch_size_per_image,
            iou_thresh=self.hard_iou_thresh,
            per_image=self.hard_per_image,
        )

    def score_proposals(self, features: Features, proposals: list[Instances]) -> BoxPredictions:
        """What the predictor says of all proposals of all images, or of one image's pyramid."""
        if isinstance(features, ImagePyramid):
            (of_image,) = proposals
            return score_on_pyramid(self, features, of_image)
        return self.box_predictor(self.proposal_features(features, proposals))

    def proposal_features(
        self, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> torch.Tensor:
        """(R, ...) what the box head makes of the proposals of all images."""
        pooled = self.pooler(
            [features[name] for name in self.in_features], [x.proposal_boxes for x in proposals]
        )
        return self.box_head(pooled)

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """
        The proposals that train, each image's in the order of its proposals.

        A proposal's label is the class of the object that it overlaps most if the IoU reaches the
        last of MODEL.ROI_HEADS.IOU_THRESHOLDS, else background (K), or what IOU_LABELS says of
        lower ones. A proposal whose object is difficult is left out (unless
        MODEL.TRAIN_DIFFICULT_ON): it is neither an example of the class nor of the background, and
        in AP it counts as neither too. So is a proposal over no object that lies in a crowd by as
        large a share of its area.
        Sampling takes BATCH_SIZE_PER_IMAGE proposals of an image, at most POSITIVE_FRACTION of them
        foreground (Henderson & Ferrari 2016, section 4.5: 5%).

        Args:
            proposals: N Instances with proposal_boxes.
            targets: N Instances with gt_boxes, gt_classes, gt_difficult, and perhaps
                gt_is_crowd.

        Returns:
            N Instances: some of the proposals, with gt_classes, the labels, and gt_boxes, the
            object that each overlaps most (zeros where there is none).
        """
        sampled = []
        for of_image, objects in zip(proposals, targets, strict=True):
            labels, object_inds = self._labels(of_image, objects)
            inds = self._sample(labels)
            of_image = of_image[inds]
            of_image.gt_classes = labels[inds]
            gt_boxes = of_image.proposal_boxes.tensor * 0
            if len(objects):
                gt_boxes = objects.gt_boxes.tensor[object_inds[inds]]
            of_image.gt_boxes = Boxes(gt_boxes)
            sampled.append(of_image)
        return sampled

    def _labels(
        self, proposals: Instances, objects: Instances
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        (Ri,) class, K for background, -1 for proposals that are left out; and (Ri,) the object that
        each overlaps most.
        """
        # No object: an IoU of 0 with all.
        iou = pairwise_iou(objects.gt_boxes, proposals.proposal_boxes)
        object_inds, match_labels = self.proposal_matcher(iou)
        labels = torch.full_like(object_inds, self.num_classes)
        if len(objects):
            labels = objects.gt_classes[object_inds]
            if not self.train_on_difficult:
                labels[objects.gt_difficult[object_inds] != 0] = -1
        labels[match_labels == 0] = self.num_classes
        labels[match_labels == -1] = -1
        if objects.has("gt_is_crowd") and objects.gt_is_crowd.any():
            crowds = objects.gt_boxes[objects.gt_is_crowd != 0]
            share = pairwise_ioa(crowds, proposals.proposal_boxes).amax(0)
            least = self.proposal_matcher.thresholds[-2]
            labels[(labels == self.num_classes) & (share >= least)] = -1
        return labels, object_inds

    def _sample(self, labels: torch.Tensor) -> torch.Tensor:
        """Indices of the proposals that train, rising: ties in score are broken by this order."""
        if self.trained_on != "sampled" or self.batch_size_per_image <= 0:
            return (labels != -1).nonzero(as_tuple=True)[0]
        foreground, background = subsample_labels(
            labels, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        return torch.cat([foreground, background]).sort()[0]


@ROI_HEADS_REGISTRY.register()
class SoftmaxROIHeads(BoxROIHeads):
    """The same proposals classified by a softmax: Fast R-CNN's detector."""

    predictor_class = SoftmaxOutputLayers


def _check_iterations(num: int, predictor: BoxOutputLayers) -> None:
    if num < 1:
        raise ValueError(f"test_box_iterations: expected at least 1, got {num}")
    if num > 1 and (predictor.bbox_pred is None or not predictor.regress_at_test):
        raise ValueError(f"test_box_iterations: expected 1 without box regression, got {num}")


def _check_parts(cfg: CfgNode) -> None:
    """What Detectron2's own heads have and these do not is refused, not left out."""
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if cfg.MODEL[key]:
            raise ValueError(f"MODEL.{key}: expected False (these heads detect boxes), got True")
    box_head = cfg.MODEL.ROI_BOX_HEAD
    if not box_head.NAME:
        raise ValueError(
            "MODEL.ROI_BOX_HEAD.NAME: expected the name of a box head (the C4 detectors' res5 is "
            "none), got ''"
        )


def _with_difficult(targets: Instances) -> Instances:
    """The targets, with gt_difficult (Gi,) bool: crowds too, none where the mapper gave neither."""
    targets = Instances(targets.image_size, **targets.get_fields())
    flags = [targets.get(x) != 0 for x in ("gt_difficult", "gt_is_crowd") if targets.has(x)]
    none = torch.zeros_like(targets.gt_classes, dtype=torch.bool)
    targets.gt_difficult = torch.stack([none, *flags]).any(0)
    return targets
