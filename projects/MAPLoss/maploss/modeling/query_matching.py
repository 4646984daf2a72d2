# SPDX-License-Identifier: Apache-2.0
"""
Which query is to find which object: the Hungarian matching of DETR, that of transformers.

Shape letters: N images, Q queries, K classes, G objects of all images, P matched pairs.
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from .deformable_transformer import QueryOutputs, import_transformers
from .ranking_dense import is_ignored_object, overlaps_ignored

# A query that is matched to nothing and lies over an ignored object from here on is ignored.
_IGNORED_IOU = 0.5


class QueryTargets(NamedTuple):
    """
    What is to be found in N images.

    Args:
        objects: N Instances with gt_boxes and gt_classes, without those that are ignored.
        ignored: N Instances, the others: difficult ones and crowds.
        scales: (N, 4), width, height, width and height of each image in pixels.
    """

    objects: list[Instances]
    ignored: list[Instances]
    scales: torch.Tensor

    @classmethod
    def of(cls, instances: Sequence[Instances], train_on_difficult: bool) -> "QueryTargets":
        """
        Args:
            instances: N of them, with gt_boxes and gt_classes.
            train_on_difficult: difficult objects are as others.
        """
        is_ignored = [is_ignored_object(x, train_on_difficult) for x in instances]
        sizes = [(x.image_size[1], x.image_size[0]) * 2 for x in instances]
        return cls(
            [x[~y] for x, y in zip(instances, is_ignored, strict=True)],
            [x[y] for x, y in zip(instances, is_ignored, strict=True)],
            instances[0].gt_boxes.tensor.new_tensor(sizes),
        )

    @property
    def gt_boxes(self) -> torch.Tensor:
        """(G, 4) XYXY in pixels, image by image."""
        return torch.cat([x.gt_boxes.tensor for x in self.objects])

    @property
    def gt_classes(self) -> torch.Tensor:
        """(G,) int64."""
        return torch.cat([x.gt_classes for x in self.objects])

    @property
    def relative_boxes(self) -> list[torch.Tensor]:
        """N times (G_i, 4), as :class:`QueryOutputs` has boxes."""
        return [
            to_centers(x.gt_boxes.tensor) / scale
            for x, scale in zip(self.objects, self.scales, strict=True)
        ]

    def pixel_boxes(self, boxes: torch.Tensor) -> torch.Tensor:
        """(N, Q, 4) boxes of queries as XYXY in pixels."""
        return to_corners(boxes) * self.scales[:, None].to(boxes.dtype)


class Matches(NamedTuple):
    """
    Args:
        queries: (P,) int64 in [0, N Q), rising.
        objects: (P,) int64 in [0, G), of each.
    """

    queries: torch.Tensor
    objects: torch.Tensor


class QueryMatcher(nn.Module):
    """
    The pairs of a query and an object of its image, each at most once, whose sum of costs is least:
    focal loss of the object's class, L1 and GIoU of the boxes (Zhu et al., ICLR 2021, after Carion
    et al., ECCV 2020, section 3.1). Of more objects than queries, some are left without.
    """

    def __init__(
        self, class_weight: float = 2.0, l1_weight: float = 5.0, giou_weight: float = 2.0
    ) -> None:
        """
        Args:
            class_weight: of the class's cost.
            l1_weight: of the distance of boxes, in shares of the image's sides.
            giou_weight: of GIoU.

        Raises:
            ValueError: no library.
        """
        super().__init__()
        import_transformers()
        library = importlib.import_module("transformers.loss.loss_deformable_detr")
        self.matcher = library.DeformableDetrHungarianMatcher(class_weight, l1_weight, giou_weight)

    @torch.no_grad()
    def forward(self, outputs: QueryOutputs, targets: QueryTargets) -> Matches:
        """
        Args:
            outputs: of one layer, finite.
            targets: of its images.
        """
        given = {"logits": outputs.scores.float(), "pred_boxes": outputs.boxes.float()}
        wanted = [
            {"class_labels": x.gt_classes, "boxes": boxes.float()}
            for x, boxes in zip(targets.objects, targets.relative_boxes, strict=True)
        ]
        queries, objects, first = [], [], 0
        for i, (chosen, object_inds) in enumerate(self.matcher(given, wanted)):
            queries.append(chosen + i * outputs.scores.shape[1])
            objects.append(object_inds + first)
            first += len(targets.objects[i])
        device = outputs.scores.device
        return Matches(torch.cat(queries).to(device), torch.cat(objects).to(device))


def label_queries(outputs: QueryOutputs, matches: Matches, targets: QueryTargets) -> torch.Tensor:
    """
    (N Q,) int64: the class of the object matched, K for none, -1 for a query that is matched to
    none but whose box is over an ignored object, by IoU .5, or by half in a crowd.

    Args:
        outputs: of one layer.
        matches: theirs.
        targets: of the images.
    """
    scores = outputs.scores
    labels = torch.full_like(scores[..., 0], scores.shape[2], dtype=torch.int64)
    boxes = targets.pixel_boxes(outputs.boxes.detach())
    for row, own, ignored in zip(labels, boxes, targets.ignored, strict=True):
        if len(ignored):
            every = torch.ones_like(ignored.gt_classes, dtype=torch.bool)
            row[overlaps_ignored([Boxes(own)], ignored, every, _IGNORED_IOU)] = -1
    labels = labels.flatten()
    labels[matches.queries] = targets.gt_classes[matches.objects]
    return labels


def to_corners(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) centre, width and height to XYXY."""
    return torch.cat(
        [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1
    )


def to_centers(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) XYXY to centre, width and height."""
    return torch.cat(
        [(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1
    )
