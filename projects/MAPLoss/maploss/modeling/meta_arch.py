# SPDX-License-Identifier: Apache-2.0
"""The detector: Detectron2's GeneralizedRCNN on given proposals, with its input checked."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.backbone.fpn import FPN
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

from .cached_features import FeatureInputs
from .gradient_cache import GradientCache, LossInputs
from .hard_example_mining import ProposalError
from .image_pyramid import ImagePyramid
from .plain_convnet import PlainConvNet
from .timm_backbone import TimmBackbone

_PARTS = ("backbone.", "proposal_generator.", "roi_heads.")


@META_ARCH_REGISTRY.register()
class MAPRCNN(FeatureInputs, GeneralizedRCNN):
    """
    GeneralizedRCNN for precomputed proposals.

    It checks its input, and it loads the plain weights of a classifier too: in a state dict in
    which no key begins with the name of a part, all keys are taken to be the backbone's, or fc6's
    and fc7's, so that MODEL.WEIGHTS can be a file of torchvision's or timm's, or one converted from
    Caffe. Below an FPN they are the bottom-up network's.
    """

    @configurable
    def __init__(self, *, pyramid_best_side: float = 224.0, **kwargs: Any) -> None:
        """
        Args:
            pyramid_best_side: see :func:`maploss.modeling.image_pyramid.choose_scales`.
            kwargs: as GeneralizedRCNN.
        """
        super().__init__(**kwargs)
        self.pyramid_best_side = pyramid_best_side
        self._register_load_state_dict_pre_hook(self._take_pretrained_weights)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        ret = super().from_config(cfg)
        ret["pyramid_best_side"] = cfg.TEST.PYRAMID.BEST_SIDE
        return ret

    def forward(
        self, batched_inputs: list[dict], gradient_cache: GradientCache | None = None
    ) -> dict[str, torch.Tensor] | list[dict]:
        """
        As GeneralizedRCNN.

        Args:
            batched_inputs: in training with "instances".
            gradient_cache: of :meth:`loss_inputs` of these inputs, ranked with others; for
                :class:`maploss.modeling.MAPROIHeads` in training. None ranks the inputs alone.

        Raises:
            ValueError: an image without "proposals" or with proposals that are not finite; in
                training also one without "instances" or with an object of an unknown class.
            FloatingPointError: in training the loss of a proposal is not finite; names the image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images, features, proposals, targets, losses = self._propose(batched_inputs)
        cached = () if gradient_cache is None else (gradient_cache,)
        with _naming_images(batched_inputs):
            _, detector_losses = self.roi_heads(images, features, proposals, targets, *cached)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return detector_losses | losses

    def loss_inputs(self, batched_inputs: list[dict]) -> LossInputs:
        """
        What the mAP loss ranks of a minibatch; arguments and errors as for :meth:`forward`.

        It draws the random numbers that :meth:`forward` draws of the same inputs.
        """
        _, features, proposals, targets, _ = self._propose(batched_inputs)
        with _naming_images(batched_inputs):
            return self.roi_heads.loss_inputs(features, proposals, targets)

    def _propose(self, batched_inputs: list[dict]) -> tuple:
        """Images, features, proposals and targets in training, and the losses of the proposals."""
        self._check(batched_inputs, ("proposals", "instances"))
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        if self.proposal_generator is None:
            proposals = [x["proposals"].to(self.device) for x in batched_inputs]
            return images, features, proposals, targets, {}
        proposals, losses = self.proposal_generator(images, features, targets)
        return images, features, proposals, targets, losses

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """
        As GeneralizedRCNN; inputs with "pyramid", images of other sizes, are scored on these
        (:func:`maploss.modeling.image_pyramid.score_on_pyramid`).

        Raises:
            ValueError: "proposals" are missing or not finite.
        """
        if detected_instances is None:
            self._check(batched_inputs, ("proposals",))
            if all("pyramid" in inputs for inputs in batched_inputs):
                results = [self._detect_on_pyramid(inputs) for inputs in batched_inputs]
                if not do_postprocess:
                    return results
                return self._postprocess(results, batched_inputs, [x.image_size for x in results])
        return super().inference(batched_inputs, detected_instances, do_postprocess)

    def _detect_on_pyramid(self, inputs: dict) -> Instances:
        pyramid = ImagePyramid(self, inputs["pyramid"], self.pyramid_best_side)
        proposals = inputs["proposals"].to(self.device)
        (detections,) = self.roi_heads.inference(pyramid, [proposals])
        return detections

    def _check(self, batched_inputs: list[dict], required: tuple[str, ...]) -> None:
        for inputs in batched_inputs:
            for key in required:
                if key == "proposals" and self.proposal_generator is not None:
                    continue
                problem = self._problem(inputs, key)
                if problem:
                    raise ValueError(f"image {_name(inputs)}: expected {problem}")

    def _problem(self, inputs: dict, key: str) -> str:
        """What was expected of inputs[key] and what came; empty if all is well."""
        if key not in inputs:
            return f"{key!r}, got only {sorted(inputs)}"
        if key == "proposals":
            boxes = inputs[key].proposal_boxes.tensor
            is_finite = torch.isfinite(boxes).all(dim=1)
            # ROIAlign reads outside of the features for a box that is not.
            if not is_finite.all():
                return f"finite proposal boxes, got {boxes[~is_finite][0].tolist()}"
        if key == "instances":
            classes, last = inputs[key].gt_classes, self.roi_heads.num_classes - 1
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) <= last:
                return f"objects of classes 0 to {last}, got {classes.unique().tolist()}"
        return ""

    def _take_pretrained_weights(self, state_dict: dict, prefix: str, *_: object) -> None:
        keys = [key[len(prefix) :] for key in state_dict if key.startswith(prefix)]
        if not keys or any(key.startswith(_PARTS) for key in keys):
            return
        network, part = self.backbone, "backbone."
        if isinstance(network, FPN):
            network, part = network.bottom_up, "backbone.bottom_up."
        names = dict(zip(keys, keys, strict=True))
        if isinstance(network, PlainConvNet | TimmBackbone):
            names = network.pretrained_names(keys)
        model_state = self.state_dict()
        taken, misfits = {}, []
        for key, name in names.items():
            # What the model does not have, such as the classes of ImageNet, is not wanted.
            value = state_dict.pop(prefix + key)
            for new_key in (part + name, "roi_heads.box_head." + name):
                if new_key not in model_state:
                    continue
                taken[prefix + new_key] = value
                if value.shape != model_state[new_key].shape:
                    shapes = f"{tuple(model_state[new_key].shape)}, got {tuple(value.shape)}"
                    misfits.append(f"{new_key} ({key}): expected {shapes}")
        if not any(key.startswith(prefix + "backbone.") for key in taken):
            raise ValueError(
                f"weights: expected keys of the model or of its backbone such as "
                f"{next(iter(network.state_dict()))!r}, got {keys[0]!r} and "
                f"{len(keys) - 1} others that fit neither"
            )
        if misfits:
            raise ValueError("weights of other shapes: " + "; ".join(misfits))
        state_dict.update(taken)


@contextlib.contextmanager
def _naming_images(batched_inputs: list[dict]) -> Iterator[None]:
    """Where the loss of a proposal is not finite, the error names its image."""
    try:
        yield
    except ProposalError as error:
        name = _name(batched_inputs[error.image_ind])
        raise FloatingPointError(f"image {name}: {error.reason}") from error


def _name(inputs: dict) -> str:
    return inputs.get("file_name", inputs.get("image_id", "of unknown name"))
