# SPDX-License-Identifier: Apache-2.0
"""The detector: Detectron2's GeneralizedRCNN on given windows, with its input checked."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Instances

from .image_pyramid import score_on_pyramid
from .output_layers import WindowOutputs
from .plain_convnet import PlainConvNet

_PARTS = ("backbone.", "proposal_generator.", "roi_heads.")


@META_ARCH_REGISTRY.register()
class MAPRCNN(GeneralizedRCNN):
    """
    GeneralizedRCNN for precomputed windows.

    It checks its input, and it loads the plain weights of a classifier too: in a state dict in
    which no key begins with the name of a part, all keys are taken to be the backbone's, or fc6's
    and fc7's, so that MODEL.WEIGHTS can be a file of torchvision's or one converted from Caffe.
    """

    def __init__(self, *args, **kwargs):
        """Args: as GeneralizedRCNN, either a cfg or its parts."""
        super().__init__(*args, **kwargs)
        self._register_load_state_dict_pre_hook(self._take_pretrained_weights)

    def forward(self, batched_inputs: list[dict]):
        """
        As GeneralizedRCNN.

        Raises:
            ValueError: an image without "proposals" or with windows that are not finite; in
                training also one without "instances" or with an object of an unknown class.
        """
        if self.training:
            self._check(batched_inputs, ("proposals", "instances"))
        return super().forward(batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ):
        """
        As GeneralizedRCNN; inputs with "pyramid", images of other sizes, are scored on these
        (:func:`maploss.modeling.image_pyramid.score_on_pyramid`).

        Raises:
            ValueError: "proposals" are missing or not finite.
        """
        if detected_instances is None:
            self._check(batched_inputs, ("proposals",))
            if all("pyramid" in inputs for inputs in batched_inputs):
                return self._detect_on_pyramids(batched_inputs, do_postprocess)
        return super().inference(batched_inputs, detected_instances, do_postprocess)

    def _detect_on_pyramids(self, batched_inputs: list[dict], do_postprocess: bool) -> list:
        def score(image: torch.Tensor, windows: Instances) -> WindowOutputs:
            images = self.preprocess_image([{"image": image}])
            return self.roi_heads.score_windows(self.backbone(images.tensor), [windows])

        results = []
        for inputs in batched_inputs:
            windows = inputs["proposals"].to(self.device)
            outputs = score_on_pyramid(score, inputs["pyramid"], windows)
            results += self.roi_heads.box_predictor.inference(outputs, [windows])
        if not do_postprocess:
            return results
        return self._postprocess(results, batched_inputs, [x.image_size for x in results])

    def _check(self, batched_inputs: list[dict], required: tuple[str, ...]) -> None:
        for inputs in batched_inputs:
            for key in required:
                if key == "proposals" and self.proposal_generator is not None:
                    continue
                problem = self._problem(inputs, key)
                if problem:
                    name = inputs.get("file_name", inputs.get("image_id", "of unknown name"))
                    raise ValueError(f"image {name}: expected {problem}")

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

    def _take_pretrained_weights(self, state_dict: dict, prefix: str, *_) -> None:
        keys = [key[len(prefix) :] for key in state_dict if key.startswith(prefix)]
        if not keys or any(key.startswith(_PARTS) for key in keys):
            return
        names = dict(zip(keys, keys, strict=True))
        if isinstance(self.backbone, PlainConvNet):
            names = self.backbone.pretrained_names(keys)
        own = self.state_dict()
        taken, misfits = {}, []
        for key, name in names.items():
            # What the model does not have, such as the classes of ImageNet, is not wanted.
            value = state_dict.pop(prefix + key)
            for new_key in ("backbone." + name, "roi_heads.box_head." + name):
                if new_key not in own:
                    continue
                taken[prefix + new_key] = value
                if value.shape != own[new_key].shape:
                    shapes = f"{tuple(own[new_key].shape)}, got {tuple(value.shape)}"
                    misfits.append(f"{new_key} ({key}): expected {shapes}")
        if not any(key.startswith(prefix + "backbone.") for key in taken):
            raise ValueError(
                f"weights: expected keys of the model or of its backbone such as "
                f"{next(iter(self.backbone.state_dict()))!r}, got {keys[0]!r} and "
                f"{len(keys) - 1} others that fit neither"
            )
        if misfits:
            raise ValueError("weights of other shapes: " + "; ".join(misfits))
        state_dict.update(taken)
