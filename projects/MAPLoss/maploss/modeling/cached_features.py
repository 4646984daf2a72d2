# SPDX-License-Identifier: Apache-2.0
"""Models whose frozen part is not run: its outputs are read instead."""

import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, GeneralizedRCNN, RetinaNet
from detectron2.structures import ImageList
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

# What a backbone is cut out of.
Detector: TypeAlias = GeneralizedRCNN | RetinaNet


def frozen_part(model: Detector) -> Backbone:
    """What is before all that trains: the network below an FPN, or the whole backbone."""
    return getattr(model.backbone, "bottom_up", model.backbone)


def check_frozen(model: Detector) -> None:
    """
    Checks that the frozen part of a model gives the same outputs of an image at any time.

    Raises:
        ValueError: a parameter that trains, normalisation by the minibatch, or dropout; names it.
    """
    part = frozen_part(model)
    prefix = "backbone" if part is model.backbone else "backbone.bottom_up"
    expected = f"DATALOADER.FEATURE_CACHE: expected {prefix} to be frozen, got"
    for name, param in part.named_parameters():
        if param.requires_grad:
            raise ValueError(
                f"{expected} {prefix}.{name}, which trains (MODEL.BACKBONE.FREEZE_AT and "
                "MODEL.TRAIN_ONLY freeze)"
            )
    for name, module in part.named_modules():
        if isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0):
            raise ValueError(f"{expected} {prefix}.{name}, a {type(module).__name__}")


def hash_part(part: nn.Module) -> tuple[str, str]:
    """Hashes of its structure, and of its parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(part.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return hashlib.sha256(repr(part).encode()).hexdigest(), digest.hexdigest()


@torch.no_grad()
def compute_features(model: Detector, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs (C, H, W) of the frozen part by name, of one image (3, H, W) as the mapper has it."""
    images = model.preprocess_image([{"image": image}])
    return {name: x[0] for name, x in frozen_part(model)(images.tensor).items()}


class FeatureInputs:
    """
    Mixin for a meta-architecture: after :func:`read_features` it takes features instead of images.

    Its inputs then have a "view" of "height" and "width" in place of an "image". Features of images
    of different sizes are padded with zeros, as images are; a backbone would have seen the padding.
    """

    backbone: Backbone
    device: torch.device
    feature_reader: Callable[[Any], dict[str, torch.Tensor]] | None = None

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """As Detectron2's; with a reader `tensor` of the result is a dictionary, for the cut."""
        if self.feature_reader is None:
            return super().preprocess_image(batched_inputs)  # type: ignore[misc]  # Detectron2's
        views = [x["view"] for x in batched_inputs]
        by_view = [self.feature_reader(view) for view in views]
        features = {
            name: ImageList.from_tensors([x[name] for x in by_view]).tensor.to(self.device).float()
            for name in by_view[0]
        }
        return ImageList(features, [(x.height, x.width) for x in views])


@META_ARCH_REGISTRY.register()
class CachedGeneralizedRCNN(FeatureInputs, GeneralizedRCNN):
    """Detectron2's, which takes features too."""


@META_ARCH_REGISTRY.register()
class CachedRetinaNet(FeatureInputs, RetinaNet):
    """Detectron2's, which takes features too."""


def cached_meta_arch(name: str) -> str:
    """Of a meta-architecture, the name of the one that takes features too."""
    known = {"GeneralizedRCNN": "CachedGeneralizedRCNN", "RetinaNet": "CachedRetinaNet"}
    return known.get(name, name)


class FeaturePassage(Backbone):
    """Stands in the place of a frozen part, whose parameters keep their names: features pass."""

    def __init__(self, part: Backbone) -> None:
        super().__init__()
        for name, module in part.named_children():
            self.add_module(name, module)
        for name, param in part.named_parameters(recurse=False):
            self.register_parameter(name, param)
        for name, buffer in part.named_buffers(recurse=False):
            self.register_buffer(name, buffer, name not in part._non_persistent_buffers_set)
        self._output_shape = part.output_shape()
        self._size_divisibility = part.size_divisibility

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._output_shape

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility


def read_features(model: Detector, read: Callable[[Any], dict[str, torch.Tensor]]) -> None:
    """
    Lets a model take features instead of images; it cannot go back.

    Args:
        model: of a meta-architecture with :class:`FeatureInputs`.
        read: from a view to the outputs (C, H, W) of the frozen part by name.

    Raises:
        ValueError: another meta-architecture.
    """
    if not isinstance(model, FeatureInputs):
        raise ValueError(
            "DATALOADER.FEATURE_CACHE: expected a meta-architecture with FeatureInputs, got "
            f"{type(model).__name__}"
        )
    model.feature_reader = read
    part = frozen_part(model)
    if part is model.backbone:
        model.backbone = FeaturePassage(part)
    else:
        model.backbone.bottom_up = FeaturePassage(part)
