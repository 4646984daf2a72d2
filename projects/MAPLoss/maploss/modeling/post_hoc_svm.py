# SPDX-License-Identifier: Apache-2.0
"""
Linear SVMs on the features of a trained detector (Girshick 2015, section 5.4; R-CNN, appendix B).

Shape letters: R proposals of an image, G its objects, D features, K classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances, pairwise_iou
from tqdm import tqdm

# Those of R-CNN: the mean norm of features, liblinear's C, bias and weight of positives; proposals
# below the IoU with all objects of a class are its negatives.
_MEAN_NORM = 20.0
_C, _BIAS_SCALE, _POSITIVE_WEIGHT = 1e-3, 10.0, 2.0
_NEGATIVE_IOU = 0.3
# A negative is hard above the margin, and is forgotten when well below it.
_HARD, _EASY = -1.0, -1.2
_RETRAIN_AFTER = 2000
_FIRST_NEGATIVES = 2000


@dataclass(frozen=True)
class ImageFeatures:
    """
    What SVMs see of an image: features (R, D) of its proposals, gt_features (G, D) of the boxes of
    its objects, gt_classes (G,), and iou (R, G). Difficult objects are not among them, as
    in R-CNN: proposals over one are negatives where they overlap no other object of the class.
    """

    features: np.ndarray
    gt_features: np.ndarray
    gt_classes: np.ndarray
    iou: np.ndarray

    def is_negative(self, class_id: int) -> np.ndarray:
        """(R,) bool."""
        class_iou = self.iou[:, self.gt_classes == class_id]
        return np.all(class_iou < _NEGATIVE_IOU, axis=1)


@torch.no_grad()
def extract_features(model: GeneralizedRCNN, images: Iterable[dict]) -> Iterator[ImageFeatures]:
    """
    Features of the box head, dropout off, for the proposals and the objects of each image.

    Args:
        model: with BoxROIHeads.
        images: what a mapper with is_train=True gives of each.
    """
    model.eval()
    heads = model.roi_heads
    for inputs in images:
        objects = inputs["instances"]
        objects = objects[objects.gt_difficult == 0].to(model.device)
        boxes = inputs["proposals"].proposal_boxes.to(model.device)
        both = Instances(inputs["proposals"].image_size)
        both.proposal_boxes = Boxes.cat([boxes, objects.gt_boxes])
        image = model.preprocess_image([inputs])
        features = heads.proposal_features(model.backbone(image.tensor), [both]).float()
        features = features.flatten(1).cpu().numpy()
        iou = pairwise_iou(boxes, objects.gt_boxes).cpu().numpy()
        classes = objects.gt_classes.cpu().numpy()
        yield ImageFeatures(features[: len(boxes)], features[len(boxes) :], classes, iou)


def train_svms(
    images: Callable[[], Iterable[ImageFeatures]], num_classes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    One SVM for each class: objects against proposals that overlap none of them by .3, with one pass
    of hard negative mining over all images.

    Args:
        images: gives all images anew at each call; called twice.
        num_classes: K.
        seed: of the proposals that begin as negatives.

    Returns:
        (K, D) weights and (K,) biases for features as they come. A class without an object, or
        without a negative, gets weights of 0 and a bias of -1.

    Raises:
        ValueError: there are no proposals.
    """
    rng = np.random.default_rng(seed)
    caches, norms = _collect(images(), num_classes, rng)
    if not norms:
        raise ValueError("images: expected some windows, got none")
    scale = _MEAN_NORM / max(float(np.mean(norms)), 1e-12)
    svms = [_ClassSVM(*cache, scale) for cache in caches]
    for image in tqdm(images(), desc="hard negatives", unit="image"):
        for class_id, svm in enumerate(svms):
            svm.mine(image.features[image.is_negative(class_id)])
    for svm in svms:
        svm.fit()
    return np.stack([x.weight for x in svms]), np.array([x.bias for x in svms], dtype=np.float32)


def _collect(
    images: Iterable[ImageFeatures], num_classes: int, rng: np.random.Generator
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[float]]:
    """Positives and first negatives of each class, and the mean norm of each image's features."""
    positives: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    negatives: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    norms, width = [], 0
    for image in tqdm(images, desc="objects", unit="image"):
        width = image.features.shape[1]
        if len(image.features):
            norms.append(float(np.linalg.norm(image.features, axis=1).mean()))
        for class_id in range(num_classes):
            positives[class_id].append(image.gt_features[image.gt_classes == class_id])
            # Few of each image, fewer the more there are already: a sample of all.
            wanted = max(1, (_FIRST_NEGATIVES - sum(map(len, negatives[class_id]))) // 100)
            inds = np.flatnonzero(image.is_negative(class_id))
            chosen = rng.permutation(inds)[:wanted]
            negatives[class_id].append(image.features[chosen])
    empty = np.zeros((0, width), np.float32)
    caches = [
        (np.concatenate([empty, *pos]), np.concatenate([empty, *neg]))
        for pos, neg in zip(positives, negatives, strict=True)
    ]
    return caches, norms


class _ClassSVM:
    """One class: its objects, its cache of negatives, and what was learned from them."""

    def __init__(self, positives: np.ndarray, negatives: np.ndarray, scale: float) -> None:
        self.scale = scale
        self.positives, self.negatives = positives * scale, [negatives * scale]
        self.weight = np.zeros(positives.shape[1], np.float32)
        self.bias = -1.0
        self.num_new = 0
        self.fit()

    def mine(self, proposals: np.ndarray) -> None:
        """Takes the hard ones of these negatives; learns anew after many."""
        if not len(self.positives):
            return
        hard = proposals[proposals @ self.weight + self.bias > _HARD]
        self.negatives.append(hard * self.scale)
        self.num_new += len(hard)
        if self.num_new >= _RETRAIN_AFTER:
            self.fit()
            (negatives,) = self.negatives
            margins = negatives @ (self.weight / self.scale) + self.bias
            self.negatives = [negatives[margins > _EASY]]

    def fit(self) -> None:
        from sklearn.svm import LinearSVC  # an extra: only this tool needs it

        self.num_new = 0
        negatives = np.concatenate(self.negatives)
        self.negatives = [negatives]
        if not len(self.positives) or not len(negatives):
            return
        svm = LinearSVC(
            C=_C,
            loss="hinge",
            dual=True,
            intercept_scaling=_BIAS_SCALE,
            class_weight={1: _POSITIVE_WEIGHT},
            random_state=0,
            max_iter=5000,
        )
        labels = np.r_[np.ones(len(self.positives)), np.zeros(len(negatives))]
        svm.fit(np.concatenate([self.positives, negatives]), labels)
        self.weight = (svm.coef_[0] * self.scale).astype(np.float32)
        self.bias = float(svm.intercept_[0])
