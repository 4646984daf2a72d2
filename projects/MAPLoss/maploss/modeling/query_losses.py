# SPDX-License-Identifier: Apache-2.0
"""
The losses of a detector of queries: those of each layer of its decoder.

| MODEL.DEFORMABLE_DETR.LOSS | which query is right | boxes |
|---|---|---|
| "ranking", any MODEL.RANKING_LOSS.NAME | the Hungarian matching says it | the matched ones |
| "map", BOX_REG.GRADIENT "error_driven" | matching of AP: the best-ranked of an object | its own |
| "map", BOX_REG.GRADIENT "none" | the same | those that the Hungarian matching says |

Shape letters: N images, Q queries, K classes, G objects, P matched pairs.
"""

from collections.abc import Sequence
from typing import cast

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.nn import giou_loss
from torch import nn

from ..layers import MAPLoss
from .deformable_transformer import QueryOutputs
from .gradient_cache import BoxTargets
from .output_layers import at_least_float32
from .process_group import all_ranks, scale_for_all_ranks
from .query_matching import Matches, QueryMatcher, QueryTargets, label_queries
from .ranking_loss import FOCAL_LOSSES, RankingLoss


class QueryLoss(nn.Module):
    """
    A loss of each layer of the decoder, :meth:`layer_losses`. Those of the last one have plain
    names, those of layer i before it end in "_<i>" (the auxiliary losses of DETR).
    """

    def forward(
        self, layers: Sequence[QueryOutputs], targets: QueryTargets
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            layers: what each layer says, the last one's last.
            targets: of the images.

        Raises:
            FloatingPointError: a score or a box that is not finite.
        """
        losses: dict[str, torch.Tensor] = {}
        for i, outputs in enumerate(layers):
            is_last = i == len(layers) - 1
            outputs = QueryOutputs(*map(at_least_float32, outputs))
            for name, value in zip(("scores", "boxes"), outputs, strict=True):
                is_finite = torch.isfinite(value.detach()).all(dim=-1)
                if not is_finite.all():
                    raise FloatingPointError(
                        f"decoder layer {i}: {name} of {int((~is_finite).sum())} of "
                        f"{is_finite.numel()} queries are not finite"
                    )
            suffix = "" if is_last else f"_{i}"
            found = self.layer_losses(outputs, targets, is_last)
            losses |= {f"{name}{suffix}": loss for name, loss in found.items()}
        return losses

    def layer_losses(
        self, outputs: QueryOutputs, targets: QueryTargets, is_last: bool
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs: of one layer, finite.
            targets: of the images.
            is_last: it is the last layer, whose numbers are watched.
        """
        raise NotImplementedError

    def set_prior(self, layer: nn.Linear) -> None:
        """The bias that the layer of the scores begins with."""

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """From the logits to the scores of detections."""
        raise NotImplementedError


class MatchedQueryLoss(QueryLoss):
    """
    MODEL.RANKING_LOSS of all queries x classes of a minibatch, in which those matched to an object
    are the positives, and L1 of their boxes.

    With "focal" it is the loss of Deformable DETR: focal loss, L1 and GIoU.
    """

    def __init__(
        self,
        ranking_loss: RankingLoss,
        matcher: QueryMatcher,
        *,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
    ) -> None:
        """
        Args:
            ranking_loss: its box_weight is that of GIoU.
            matcher: of queries with objects.
            class_weight: of losses of each score by itself; those that rank have none.
            l1_weight: of the boxes' distance, in shares of the image's sides, mean over matches.
        """
        super().__init__()
        self.ranking_loss = ranking_loss
        self.matcher = matcher
        self.class_weight = class_weight if ranking_loss.name in FOCAL_LOSSES else 1.0
        self.l1_weight = l1_weight

    def layer_losses(
        self, outputs: QueryOutputs, targets: QueryTargets, is_last: bool
    ) -> dict[str, torch.Tensor]:
        matches = self.matcher(outputs, targets)
        labels = label_queries(outputs, matches, targets)
        if is_last:
            get_event_storage().put_scalar(
                "num_matched_queries", len(matches.queries) / len(targets.objects)
            )
        losses = self.ranking_loss(
            outputs.scores.flatten(0, 1),
            labels,
            targets.pixel_boxes(outputs.boxes).flatten(0, 1)[matches.queries],
            targets.gt_boxes[matches.objects],
        )
        losses[f"loss_{self.ranking_loss.name}"] *= self.class_weight
        losses["loss_box_l1"] = self.l1_weight * box_distance(outputs, matches, targets)
        return losses

    def set_prior(self, layer: nn.Linear) -> None:
        self.ranking_loss.set_prior(layer)

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.sigmoid()


class MAPQueryLoss(QueryLoss):
    """
    1 - mAP of all queries without NMS, in the form that MODEL.MAP_LOSS gives it, of each layer.

    No query belongs to an object beforehand. Of the queries of a class over an object, at each
    overlap, the one with the best score is right and the others are false positives: duplicates
    lower the mAP, and are pushed below.
    """

    def __init__(
        self,
        map_loss: MAPLoss,
        matcher: QueryMatcher | None = None,
        *,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        """
        Args:
            map_loss: with settings.nms_thresh 1, which is NMS off.
            matcher: for a loss without a gradient of boxes: by L1 and GIoU they learn of the
                objects that it says. None for one that has it.
            l1_weight: of these, as of :class:`MatchedQueryLoss`.
            giou_weight: of these.

        Raises:
            ValueError: NMS is on; a matcher beside the gradient of boxes, or neither.
        """
        super().__init__()
        settings = map_loss.settings
        if settings.nms_thresh != 1:
            raise ValueError(
                f"nms_thresh: expected 1, NMS off, for queries, got {settings.nms_thresh:g}"
            )
        if (matcher is None) != (settings.box_gradient != "none"):
            raise ValueError(
                "matcher: expected one with box_gradient 'none' and only then, got "
                f"{'none' if matcher is None else 'one'} with {settings.box_gradient!r}"
            )
        self.map_loss = map_loss
        self.matcher = matcher
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

    def layer_losses(
        self, outputs: QueryOutputs, targets: QueryTargets, is_last: bool
    ) -> dict[str, torch.Tensor]:
        num_queries, device = outputs.scores.shape[1], outputs.scores.device
        boxes = targets.pixel_boxes(outputs.boxes).flatten(0, 1)
        objects = [*targets.objects, *targets.ignored]
        counts = torch.tensor([len(x) for x in objects], device=device)
        images = torch.arange(len(targets.objects), device=device)
        gt_boxes = torch.cat([x.gt_boxes.tensor for x in objects])
        is_ignored = torch.arange(len(objects), device=device) >= len(images)
        losses, stats = self.map_loss(
            outputs.scores.flatten(0, 1),
            boxes.detach(),
            images.repeat_interleave(num_queries),
            gt_boxes,
            torch.cat([x.gt_classes for x in objects]),
            images.repeat(2).repeat_interleave(counts),
            is_ignored.repeat_interleave(counts),
            group=all_ranks(),
        )
        losses = scale_for_all_ranks(losses)
        if is_last:
            get_event_storage().put_scalar("map/minibatch_map", float(stats.map))
        if self.matcher is None:
            # Without a matcher the settings have a gradient of the boxes.
            by_overlap = cast(BoxTargets, BoxTargets.of(stats.box_gradient, gt_boxes))
            losses["loss_map_box"] = map_box_loss(boxes, by_overlap)
            return losses
        matches = self.matcher(outputs, targets)
        error = giou_loss(boxes[matches.queries], targets.gt_boxes[matches.objects])
        losses["loss_box_giou"] = self.giou_weight * error.sum() / max(len(error), 1)
        losses["loss_box_l1"] = self.l1_weight * box_distance(outputs, matches, targets)
        return losses

    def detection_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return scores


def map_box_loss(boxes: torch.Tensor, targets: BoxTargets) -> torch.Tensor:
    """
    sum_i w_i (1 - GIoU_i) over queries i as each class, the sum of all processes: by w_i the mAP
    loss falls with the IoU of box i and its object.

    Args:
        boxes: (R, 4) XYXY in pixels.
        targets: of them; weights are constants.
    """
    query, classes = (targets.weights != 0).nonzero().unbind(1)
    losses = giou_loss(boxes[query], targets.gt_boxes[targets.objects[query, classes]])
    weights = targets.weights[query, classes].to(losses.dtype)
    return comm.get_world_size() * (weights * losses).sum()


def box_distance(outputs: QueryOutputs, matches: Matches, targets: QueryTargets) -> torch.Tensor:
    """
    Mean over matches of the L1 distance of centre and size, in shares of the image's sides.

    Args:
        outputs: of one layer.
        matches: theirs.
        targets: of the images.
    """
    wanted = torch.cat(targets.relative_boxes)[matches.objects].to(outputs.boxes)
    distances = (outputs.boxes.flatten(0, 1)[matches.queries] - wanted).abs()
    return distances.sum() / max(len(matches.queries), 1)
