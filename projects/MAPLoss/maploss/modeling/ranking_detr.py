# SPDX-License-Identifier: Apache-2.0
"""
Deformable DETR, a detector without NMS, trained by ranking losses or by mAP.

Shape letters: N images, Q queries, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from ..layers.checks import check_choice
from ..utils.prefix_errors import prefix_errors
from .deformable_transformer import (
    DeformableTransformer,
    QueryOutputs,
    TransformerSettings,
    import_transformers,
)
from .feature_levels import FeatureLevels
from .map_loss_config import map_loss_from_config
from .query_losses import MAPQueryLoss, MatchedQueryLoss, QueryLoss
from .query_matching import QueryMatcher, QueryTargets, to_corners
from .ranking_loss import ranking_loss_from_config

# MODEL.DEFORMABLE_DETR.LOSS.
QUERY_LOSSES = ("ranking", "map")


@META_ARCH_REGISTRY.register()
class RankingDeformableDETR(nn.Module):
    """
    Deformable DETR (Zhu et al., ICLR 2021), one stage with box refinement, on any backbone.

    A detection is a query as a class: of all queries x classes of an image the best are given, and
    there is no NMS. MODEL.DEFORMABLE_DETR has its keys.
    """

    pixel_mean: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        settings: TransformerSettings,
        loss: QueryLoss,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        train_on_difficult: bool = False,
        test_score_thresh: float = -math.inf,
        detections_per_image: int = 100,
    ) -> None:
        """
        Args:
            backbone: Detectron2's or this project's.
            in_features: names of its outputs that are used, one or more.
            settings: of the transformer.
            loss: of each layer of its decoder.
            pixel_mean: of each channel.
            pixel_std: of each channel.
            train_on_difficult: difficult objects are as others.
            test_score_thresh: detections are above it.
            detections_per_image: at most so many, 0 or less for all queries x classes.

        Raises:
            ValueError: no library, or outputs that the backbone does not have.
        """
        super().__init__()
        shapes = backbone.output_shape()
        unknown = [x for x in in_features if x not in shapes]
        if unknown:
            raise ValueError(
                "MODEL.DEFORMABLE_DETR.IN_FEATURES: expected some of the backbone's outputs, "
                f"{sorted(shapes)}, got {list(in_features)}"
            )
        used = sorted((shapes[x] for x in in_features), key=lambda shape: shape.stride)
        self.in_features = sorted(in_features, key=lambda x: shapes[x].stride)
        self.backbone = backbone
        self.levels = FeatureLevels(
            [x.channels for x in used],
            [x.stride for x in used],
            settings.d_model,
            settings.num_levels,
        )
        self.transformer = DeformableTransformer(settings)
        self.loss = loss
        score_heads: Any = self.transformer.class_embed  # of nn.Linear
        for layer in score_heads:
            loss.set_prior(layer)
        self.num_classes = settings.num_classes
        self.train_on_difficult = train_on_difficult
        self.test_score_thresh = test_score_thresh
        self.detections_per_image = detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        import_transformers()
        _check_config(cfg)
        keys = cfg.MODEL.DEFORMABLE_DETR
        with prefix_errors("MODEL.DEFORMABLE_DETR"):
            settings = TransformerSettings(
                num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                num_queries=keys.NUM_QUERIES,
                num_levels=keys.NUM_FEATURE_LEVELS,
                d_model=keys.D_MODEL,
                num_heads=keys.NUM_HEADS,
                ffn_dim=keys.FFN_DIM,
                encoder_layers=keys.ENCODER_LAYERS,
                decoder_layers=keys.DECODER_LAYERS,
                num_points=keys.NUM_POINTS,
                dropout=keys.DROPOUT,
            )
        is_map = keys.LOSS == "map"
        return {
            "backbone": build_backbone(cfg),
            "in_features": keys.IN_FEATURES,
            "settings": settings,
            "loss": _loss_from_config(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            # The mAP ignores them, as the evaluation does.
            "train_on_difficult": cfg.MODEL.TRAIN_DIFFICULT_ON and not is_map,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: N dicts with "image", (3, H, W), in training also "instances"; at test
                "height" and "width" may say of what size the detections' boxes are to be.

        Returns:
            In training the losses by name; at test N dicts with "instances": pred_boxes, scores and
            pred_classes, the best first.

        Raises:
            ValueError: in training an image without "instances" or with an object of an unknown
                class.
            FloatingPointError: in training a score or a box that is not finite.
        """
        if self.training:
            self._check(batched_inputs)
            instances = [x["instances"].to(self.device) for x in batched_inputs]
            targets = QueryTargets.of(instances, self.train_on_difficult)
            return self.loss(self._query(batched_inputs), targets)
        last = self._query(batched_inputs)[-1]
        results = []
        for inputs, scores, boxes in zip(batched_inputs, *last, strict=True):
            height, width = inputs["image"].shape[1:]
            found = self._detect(scores, boxes, (height, width))
            size = inputs.get("height", height), inputs.get("width", width)
            results.append({"instances": detector_postprocess(found, *size)})
        return results

    def _query(self, batched_inputs: list[dict]) -> list[QueryOutputs]:
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return self.transformer(self.levels(self.backbone, self.in_features, images))

    def _detect(
        self, scores: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]
    ) -> Instances:
        """
        The best queries as classes.

        Args:
            scores: (Q, K) logits.
            boxes: (Q, 4), as :class:`QueryOutputs` has them.
            size: height and width of the image.
        """
        ranked, inds = (
            self.loss.detection_scores(scores.float()).flatten().sort(descending=True, stable=True)
        )
        if self.detections_per_image > 0:
            ranked, inds = ranked[: self.detections_per_image], inds[: self.detections_per_image]
        is_above = ranked > self.test_score_thresh
        ranked, inds = ranked[is_above], inds[is_above]
        height, width = size
        found = Instances(size)
        scale = boxes.new_tensor([width, height, width, height])
        queries = torch.div(inds, self.num_classes, rounding_mode="floor")
        found.pred_boxes = Boxes(to_corners(boxes[queries]).float() * scale.float())
        found.pred_boxes.clip(size)
        found.scores = ranked
        found.pred_classes = inds % self.num_classes
        return found

    def _check(self, batched_inputs: list[dict]) -> None:
        """Raises ValueError for images that cannot train; it names the image."""
        for inputs in batched_inputs:
            name = inputs.get("file_name", inputs.get("image_id", "of unknown name"))
            if "instances" not in inputs:
                raise ValueError(f"image {name}: expected 'instances', got only {sorted(inputs)}")
            classes, last = inputs["instances"].gt_classes, self.num_classes - 1
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) <= last:
                raise ValueError(
                    f"image {name}: expected objects of classes 0 to {last}, "
                    f"got {classes.unique().tolist()}"
                )


def _loss_from_config(cfg: CfgNode) -> QueryLoss:
    keys = cfg.MODEL.DEFORMABLE_DETR
    weights = keys.CLASS_WEIGHT, keys.L1_WEIGHT, keys.GIOU_WEIGHT
    if keys.LOSS == "ranking":
        return MatchedQueryLoss(
            ranking_loss_from_config(cfg, "DEFORMABLE_DETR", keys.GIOU_WEIGHT),
            QueryMatcher(*weights),
            class_weight=keys.CLASS_WEIGHT,
            l1_weight=keys.L1_WEIGHT,
        )
    has_own_boxes = cfg.MODEL.MAP_LOSS.BOX_REG.GRADIENT != "none"
    return MAPQueryLoss(
        map_loss_from_config(cfg),
        None if has_own_boxes else QueryMatcher(*weights),
        l1_weight=keys.L1_WEIGHT,
        giou_weight=keys.GIOU_WEIGHT,
    )


def _check_config(cfg: CfgNode) -> None:
    """No setting of other detectors is ignored without a word."""
    keys = cfg.MODEL.DEFORMABLE_DETR
    check_choice("MODEL.DEFORMABLE_DETR.LOSS", keys.LOSS, QUERY_LOSSES)
    heads, map_loss = cfg.MODEL.ROI_HEADS, cfg.MODEL.MAP_LOSS
    expected = [
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", heads.NMS_THRESH_TEST, 1, " (there is no NMS)"),
        ("MODEL.LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS, False, ""),
        ("TEST.BOX_VOTING_IOU_THRESH", cfg.TEST.BOX_VOTING_IOU_THRESH, 0, ""),
        ("TEST.BOX_REG.ITERATIONS", cfg.TEST.BOX_REG.ITERATIONS, 1, ""),
        ("DATALOADER.FEATURE_CACHE.FOLDER", cfg.DATALOADER.FEATURE_CACHE.FOLDER, "", ""),
    ]
    if keys.LOSS == "map":
        expected += [
            ("MODEL.MAP_LOSS.BOX_REG.BOXES", map_loss.BOX_REG.BOXES, "regressed", ""),
            ("MODEL.MAP_LOSS.WINDOWS", map_loss.WINDOWS, "sampled", " (all queries are ranked)"),
            ("MODEL.MAP_LOSS.MEMORY", map_loss.MEMORY, 0, ""),
        ]
    for name, value, wanted, reason in expected:
        if value != wanted:
            raise ValueError(
                f"{name}: expected {wanted!r} with MODEL.META_ARCHITECTURE "
                f"RankingDeformableDETR{reason}, got {value!r}"
            )
    for name in ("CLASS_WEIGHT", "L1_WEIGHT"):
        if not 0 <= keys[name] < math.inf:
            raise ValueError(
                f"MODEL.DEFORMABLE_DETR.{name}: expected a number of 0 or more, got {keys[name]}"
            )
