# SPDX-License-Identifier: Apache-2.0
"""Models whose frozen part is not run: its outputs are read instead."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


def frozen_part(model: nn.Module) -> Backbone:
    """What is before all that trains: the network below an FPN, or the whole backbone."""
    return getattr(model.backbone, "bottom_up", model.backbone)


def check_frozen(model: nn.Module) -> None:
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
def compute_features(model: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs (C, H, W) of the frozen part by name, of one image (3, H, W) as the mapper has it."""
    images = model.preprocess_image([{"image": image}])
    return {name: x[0] for name, x in frozen_part(model)(images.tensor).items()}


def read_features(model: nn.Module, read: Callable[[Any], dict[str, torch.Tensor]]) -> None:
    """
    Lets a model of Detectron2's, or ours, take features instead of images; it cannot go back.

    Its inputs have a "view" of "height" and "width" in place of an "image". Features of images of
    different sizes are padded with zeros, as images are; a backbone would have seen the padding.

    Args:
        model: with `preprocess_image`, whose result's tensor goes to the backbone alone.
        read: from a view to the outputs (C, H, W) of the frozen part by name.
    """

    def preprocess_image(batched_inputs: list[dict]) -> ImageList:
        views = [x["view"] for x in batched_inputs]
        found = [read(view) for view in views]
        features = {
            name: ImageList.from_tensors([x[name] for x in found]).tensor.to(model.device).float()
            for name in found[0]
        }
        return ImageList(features, [(x.height, x.width) for x in views])

    # On the object and not by a wrapper, which would change the names of the parameters.
    model.preprocess_image = preprocess_image
    frozen_part(model).forward = lambda features: features
