# SPDX-License-Identifier: Apache-2.0
"""From a dataset dict to the input of the model, with difficult flags, crowds and proposals."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Instances

from .images import read_annotated_image
from .views import UnreadInput, View, image_size


class MAPDatasetMapper:
    """
    Detectron2's DatasetMapper for boxes with proposals, which keeps difficult objects and crowds.

    Reads the image, augments image, boxes and proposals alike, and returns the dict with

    - image: (3, H, W) uint8 tensor in `image_format`; or, without images, view: a View of it;
    - proposals: Instances with proposal_boxes and objectness_logits, best first, clipped;
    - pyramid (only where sizes are asked for): the image at these sizes, as `image`;
    - instances (training only): Instances with gt_boxes, gt_classes, and gt_difficult and
      gt_is_crowd (int64 0/1); crowds are difficult as well.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        proposal_topk: int | None,
        pyramid: Sequence[T.Augmentation] = (),
        with_image: bool = True,
    ) -> None:
        """
        Args:
            is_train: keep the annotations, as instances.
            augmentations: of the image and all that lies on it, in turn.
            image_format: "BGR" or a mode of Pillow.
            num_classes: annotations of another class are an error.
            proposal_topk: at most so many proposals, the best; None where the model makes its own.
            pyramid: for each further size at which the image is wanted, what resizes it; not in
                training.
            with_image: False reads no image, of which only the size in the dict is needed.
        """
        if pyramid and (is_train or proposal_topk is None):
            raise ValueError("TEST.PYRAMID.SIZES: expected precomputed proposals, at test")
        if pyramid and not with_image:
            raise ValueError("TEST.PYRAMID.SIZES: expected [] where images are not read")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.proposal_topk = proposal_topk
        self.pyramid = pyramid
        self.with_image = with_image

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Arguments of the constructor, from INPUT, MODEL and DATASETS.PRECOMPUTED_PROPOSAL_*."""
        topk = None
        if cfg.MODEL.LOAD_PROPOSALS:
            topk = (
                cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
                if is_train
                else cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
            )
        return {
            "is_train": is_train,
            "augmentations": utils.build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "proposal_topk": topk,
            "pyramid": [
                T.ResizeShortestEdge(size, cfg.INPUT.MAX_SIZE_TEST)
                for size in cfg.TEST.PYRAMID.SIZES
                if not is_train
            ],
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: Detectron2's dataset dict of one image; not changed.

        Raises:
            ImageError: the image cannot be read, or has not the size that its annotation says.
            ValueError: no proposals, or a class out of range. Both name the file.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        transforms, size = self._augment(dataset_dict)
        if self.proposal_topk is not None:
            if "proposal_boxes" not in dataset_dict:
                raise ValueError(
                    f"No proposals for image {dataset_dict['file_name']}: set MODEL.LOAD_PROPOSALS "
                    "and DATASETS.PROPOSAL_FILES_TRAIN and _TEST"
                )
            utils.transform_proposals(
                dataset_dict, size, transforms, proposal_topk=self.proposal_topk
            )
        annotations = dataset_dict.pop("annotations", None)
        if self.is_train and annotations is not None:
            self._check_classes(annotations, dataset_dict["file_name"])
            dataset_dict["instances"] = _to_instances(annotations, transforms, size)
        return dataset_dict

    def _augment(self, dataset_dict: dict) -> tuple[T.TransformList, tuple[int, int]]:
        """Puts the augmented image, or its view, into the dict; what was done, and its size."""
        if not self.with_image:
            unread = UnreadInput(*image_size(dataset_dict))
            transforms = self.augmentations(unread)
            height, width = unread.image.shape[:2]
            dataset_dict["view"] = View(dataset_dict["file_name"], height, width, unread.is_flipped)
            return transforms, (height, width)
        image = read_annotated_image(dataset_dict, self.image_format)
        dataset_dict["height"], dataset_dict["width"] = image.shape[:2]
        if self.pyramid:
            sizes = [resize.get_transform(image).apply_image(image) for resize in self.pyramid]
            dataset_dict["pyramid"] = [to_tensor(x) for x in sizes]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        dataset_dict["image"] = to_tensor(augmented.image)
        return transforms, augmented.image.shape[:2]

    def _check_classes(self, annotations: list[dict], file_name: str) -> None:
        for annotation in annotations:
            if not 0 <= annotation["category_id"] < self.num_classes:
                raise ValueError(
                    f"Annotation of {file_name}: expected a class index below "
                    f"MODEL.ROI_HEADS.NUM_CLASSES = {self.num_classes}, "
                    f"got {annotation['category_id']}"
                )


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) pixels as (C, H, W)."""
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _to_instances(
    annotations: list[dict], transforms: T.TransformList, image_size: tuple[int, int]
) -> Instances:
    """Ground truth in the augmented image; boxes that became empty are left out."""
    annotations = [
        utils.transform_instance_annotations(annotation, transforms, image_size)
        for annotation in annotations
    ]
    instances = utils.annotations_to_instances(annotations, image_size)
    is_crowd = [int(bool(annotation.get("iscrowd", 0))) for annotation in annotations]
    is_difficult = [int(bool(annotation.get("difficult", 0))) for annotation in annotations]
    instances.gt_is_crowd = torch.tensor(is_crowd, dtype=torch.int64)
    instances.gt_difficult = torch.tensor(is_difficult, dtype=torch.int64) | instances.gt_is_crowd
    return utils.filter_empty_instances(instances)
