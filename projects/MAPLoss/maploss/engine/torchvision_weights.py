# SPDX-License-Identifier: Apache-2.0
"""Weights by torchvision's names, as MODEL.WEIGHTS: "torchvision://VGG16_Weights.IMAGENET1K_V1"."""

from typing import IO, Any

import torchvision
from detectron2.utils.file_io import PathHandler, PathManager

_PREFIX = "torchvision://"


class TorchvisionWeights(PathHandler):
    """Finds the file that such a name stands for; Detectron2 downloads and caches it."""

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path[len(_PREFIX) :]
        try:
            weights = torchvision.models.get_weight(name)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a name such as VGG16_Weights.IMAGENET1K_V1 ({error})"
            ) from error
        try:
            return PathManager.get_local_path(weights.url, force=force)
        except OSError as error:
            raise OSError(
                f"{path}: cannot download {weights.url} ({error}); copy it from a machine with "
                "network and give its path instead"
            ) from error

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(TorchvisionWeights())
