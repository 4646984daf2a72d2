# SPDX-License-Identifier: Apache-2.0
"""
ROI heads: which windows train, and which predictor scores them.

Shapes: N images, R windows of all images (Ri of image i), K classes, Gi objects of image i.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import ROIHeads, build_box_head
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_ioa, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn

from .compression import factorize_linear
from .hard_example_mining import mine_hard_proposals
from .output_layers import SoftmaxOutputLayers, WindowOutputs


class WindowROIHeads(ROIHeads):
    """
    Scores given windows: pooler, box head, predictor. A subclass names the predictor's class.

    Which windows train does not depend on the predictor: with the same seed, all see the same.
    """

    predictor_class: type[nn.Module]

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        train_on_difficult: bool = False,
        hard_iou_thresh: float = 0.7,
        hard_per_image: bool = False,
        **kwargs,
    ):
        """
        Args:
            in_features: names of the backbone's outputs that are pooled.
            pooler, box_head: features of a window. box_predictor: a
                :class:`maploss.modeling.output_layers.WindowOutputLayers`.
            train_on_difficult: windows over difficult objects have their labels too.
            hard_iou_thresh, hard_per_image: where hard windows are chosen, see
                :func:`maploss.layers.hard_examples`: among those of each image, or of all.
            kwargs: of Detectron2's ROIHeads. `batch_size_per_image` <= 0 keeps all windows.
        """
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.train_on_difficult = train_on_difficult
        self.hard_iou_thresh = hard_iou_thresh
        self.hard_per_image = hard_per_image
        self.samples = self.batch_size_per_image > 0

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
        ret["train_on_difficult"] = cfg.MODEL.ROI_HEADS.TRAIN_ON_DIFFICULT
        ret["hard_iou_thresh"] = cfg.MODEL.OHEM.NMS_THRESH
        ret["hard_per_image"] = cfg.MODEL.OHEM.PER_IMAGE
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
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """
        Args: as Detectron2's ROIHeads. targets may have gt_difficult (Gi,), 1 or True for objects
            that are difficult, and gt_is_crowd for crowds, which are difficult as well; without
            these no object is.

        Returns:
            In training the windows that train and the losses, at test the detections and {}.
        """
        if not self.training:
            return self.box_predictor.inference(
                lambda windows: self.score_windows(features, windows), proposals
            ), {}
        windows, targets = self.training_windows(proposals, targets)
        windows, outputs = self.score_to_train(features, windows)
        losses = self.box_predictor.losses(outputs, windows, targets)
        self._watch(windows)
        return windows, losses

    def training_windows(
        self, proposals: list[Instances], targets: list[Instances] | None
    ) -> tuple[list[Instances], list[Instances]]:
        """
        The windows of :meth:`label_and_sample_proposals`, and the targets with gt_difficult: also
        those that no window matches, since they count in AP's number of objects.
        """
        if targets is None:
            raise ValueError("targets: expected the objects of each image in training, got None")
        targets = [_with_difficult(x) for x in targets]
        if self.proposal_append_gt:
            # As Boxes, which Detectron2 0.5 and 0.6 both take.
            proposals = add_ground_truth_to_proposals([x.gt_boxes for x in targets], proposals)
        return self.label_and_sample_proposals(proposals, targets), targets

    def score_to_train(
        self, features: dict[str, torch.Tensor], windows: list[Instances]
    ) -> tuple[list[Instances], WindowOutputs]:
        """Those of the labelled windows that train, and what the predictor says of them."""
        return windows, self.score_windows(features, windows)

    def _watch(self, windows: list[Instances]) -> None:
        """Puts how many windows of an image train, over objects and over nothing."""
        num_foreground = sum(int((x.gt_classes < self.num_classes).sum()) for x in windows)
        num_background = sum(len(x) for x in windows) - num_foreground
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", num_foreground / len(windows))
        storage.put_scalar("roi_head/num_bg_samples", num_background / len(windows))

    @torch.no_grad()
    def score_read_only(
        self, features: dict[str, torch.Tensor], windows: list[Instances]
    ) -> WindowOutputs:
        """
        As :meth:`score_windows`, keeping nothing for a backward pass, and as the test does: without
        dropout, and not changing the statistics of norms.
        """
        modules = [*self.box_head.modules(), *self.box_predictor.modules()]
        were_training = [x.training for x in modules]
        try:
            for module in modules:
                module.training = False
            return self.score_windows(features, windows)
        finally:
            for module, was_training in zip(modules, were_training, strict=True):
                module.training = was_training
            # Under autocast torch keeps half-precision copies of the weights, and those made
            # without a graph would cut the ordinary pass off from the weights.
            torch.clear_autocast_cache()

    def mine_hard_proposals(
        self, losses: torch.Tensor, windows: list[Instances]
    ) -> tuple[torch.Tensor, list[Instances]]:
        """:func:`maploss.modeling.hard_example_mining.mine_hard_proposals` as configured."""
        return mine_hard_proposals(
            losses,
            windows,
            self.batch_size_per_image,
            iou_thresh=self.hard_iou_thresh,
            per_image=self.hard_per_image,
        )

    def score_windows(
        self, features: dict[str, torch.Tensor], windows: list[Instances]
    ) -> WindowOutputs:
        """What the predictor says of all windows of all images."""
        return self.box_predictor(self.window_features(features, windows))

    def window_features(
        self, features: dict[str, torch.Tensor], windows: list[Instances]
    ) -> torch.Tensor:
        """(R, ...) what the box head makes of the windows of all images."""
        pooled = self.pooler(
            [features[name] for name in self.in_features], [x.proposal_boxes for x in windows]
        )
        return self.box_head(pooled)

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """
        The windows that train, each image's in the order of its proposals.

        A window's label is the class of the object that it overlaps most if the IoU reaches the
        last of MODEL.ROI_HEADS.IOU_THRESHOLDS, else background (K), or what IOU_LABELS says of
        lower ones. A window whose object is difficult is left out (unless TRAIN_ON_DIFFICULT): it
        is neither an example of the class nor of the background, and in AP it counts as neither
        too. So is a window over no object that lies in a crowd by as large a share of its area.
        Sampling takes BATCH_SIZE_PER_IMAGE windows of an image, at most POSITIVE_FRACTION of them
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
        for windows, objects in zip(proposals, targets, strict=True):
            labels, object_inds = self._labels(windows, objects)
            inds = self._sample(labels)
            windows = windows[inds]
            windows.gt_classes = labels[inds]
            own = objects.gt_boxes.tensor[object_inds[inds]] if len(objects) else None
            windows.gt_boxes = Boxes(windows.proposal_boxes.tensor * 0 if own is None else own)
            sampled.append(windows)
        return sampled

    def _labels(self, windows: Instances, objects: Instances) -> tuple[torch.Tensor, torch.Tensor]:
        """
        (Ri,) class, K for background, -1 for windows that are left out; and (Ri,) the object that
        each overlaps most.
        """
        # No object: an IoU of 0 with all.
        iou = pairwise_iou(objects.gt_boxes, windows.proposal_boxes)
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
            share = pairwise_ioa(crowds, windows.proposal_boxes).amax(0)
            least = self.proposal_matcher.thresholds[-2]
            labels[(labels == self.num_classes) & (share >= least)] = -1
        return labels, object_inds

    def _sample(self, labels: torch.Tensor) -> torch.Tensor:
        """Indices of the windows that train, rising: ties in score are broken by this order."""
        if not self.samples:
            return (labels != -1).nonzero(as_tuple=True)[0]
        foreground, background = subsample_labels(
            labels, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        return torch.cat([foreground, background]).sort()[0]


@ROI_HEADS_REGISTRY.register()
class SoftmaxROIHeads(WindowROIHeads):
    """The same windows classified by a softmax: Fast R-CNN's detector."""

    predictor_class = SoftmaxOutputLayers


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
