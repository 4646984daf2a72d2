# SPDX-License-Identifier: Apache-2.0
"""
Outputs of a frozen backbone on the disk: computed once, read by each training and evaluation.

A cache is a folder with `features.f16`, the outputs of all views one after the other in half
precision; `shapes.npy`, their shapes; and `cache.json`, which says what they were made of. The name
of the folder ends in a hash of that.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from iopath.common.file_io import file_lock

from ..utils.atomic_files import new_folder
from .views import View

logger = logging.getLogger(__name__)

_FEATURES, _SHAPES, _ABOUT = "features.f16", "shapes.npy", "cache.json"
# Of these files: another one is another key.
_VERSION = 1


class FeatureCache:
    """A cache that is whole; the features stay on the disk."""

    def __init__(self, folder: str, views: Sequence[View]) -> None:
        """
        Args:
            folder: where :func:`make_cache` has written it.
            views: those that it was made of, in their order.
        """
        with open(os.path.join(folder, _ABOUT)) as f:
            self._names: list[str] = json.load(f)["features"]
        self._shapes = np.load(os.path.join(folder, _SHAPES))
        sizes = self._shapes.astype(np.int64).prod(axis=2)
        self._ends = sizes.cumsum().reshape(sizes.shape)
        self._values = np.memmap(os.path.join(folder, _FEATURES), dtype=np.float16, mode="r")
        self._index = {view: i for i, view in enumerate(views)}

    @property
    def views(self) -> Iterable[View]:
        """What there are features of."""
        return self._index.keys()

    def read(self, view: View) -> dict[str, torch.Tensor]:
        """Features (C, H, W) of one view by name, in half precision."""
        i = self._index[view]
        features = {}
        for name, shape, end in zip(self._names, self._shapes[i], self._ends[i], strict=True):
            values = np.array(self._values[end - shape.prod() : end])
            features[name] = torch.from_numpy(values.reshape(shape))
        return features


def cache_folder(root: str, name: str, key: dict) -> str:
    """Where the cache of a data set lies: `key` says all that its features depend on."""
    text = json.dumps({**key, "version": _VERSION}, sort_keys=True)
    return os.path.join(root, f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}")


def make_cache(folder: str, key: dict, features: Iterable[dict[str, torch.Tensor]]) -> None:
    """
    Writes a cache in one step, unless it is there.

    Of several processes one writes, and the others wait. What one that was killed has left is
    removed, and so is a cache whose files are not as long as they should be.

    Args:
        folder: of :func:`cache_folder`.
        key: as there; kept in cache.json.
        features: of each view, (C, H, W) by name; read only if there is no cache.

    Raises:
        ValueError: a feature that half precision cannot hold.
        OSError: the files cannot be written.
    """
    if _is_whole(folder):  # without a lock, which a folder that only can be read has not
        return
    with file_lock(folder):
        if os.path.isdir(folder) and not _is_whole(folder):
            logger.warning(f"{folder}: files are missing or too short, computing them anew")
            shutil.rmtree(folder)
    with new_folder(folder) as temporary:
        if temporary is not None:
            _write(temporary, key, features)


def _write(folder: str, key: dict, features: Iterable[dict[str, torch.Tensor]]) -> None:
    names: list[str] = []
    shapes = []
    with open(os.path.join(folder, _FEATURES), "wb") as f:
        for found in features:
            names = names or list(found)
            for name in names:
                values = found[name].half().cpu()
                if not torch.isfinite(values).all():
                    raise ValueError(
                        f"DATALOADER.FEATURE_CACHE: expected features of at most 65504, which half "
                        f"precision can hold, got {float(found[name].abs().max()):g} in {name}"
                    )
                f.write(values.contiguous().numpy().tobytes())
            shapes.append([tuple(found[name].shape) for name in names])
        f.flush()
        os.fsync(f.fileno())
    np.save(os.path.join(folder, _SHAPES), np.array(shapes, np.int32))
    with open(os.path.join(folder, _ABOUT), "w") as f:
        json.dump({**key, "version": _VERSION, "features": names}, f, indent=2)


def _is_whole(folder: str) -> bool:
    try:
        shapes = np.load(os.path.join(folder, _SHAPES))
        with open(os.path.join(folder, _ABOUT)) as f:
            json.load(f)
        size = os.path.getsize(os.path.join(folder, _FEATURES))
    except (OSError, ValueError):
        return False
    return size == 2 * int(shapes.astype(np.int64).prod(axis=2).sum())


def hash_records(records: Iterable[dict]) -> str:
    """Of the images: name, size in pixels, and size and time of the file, not where it lies."""
    digest = hashlib.sha256()
    for record in records:
        about = os.stat(record["file_name"])
        name = os.path.basename(record["file_name"])
        size = record["width"], record["height"], about.st_size, about.st_mtime_ns
        digest.update(json.dumps([name, *size]).encode())
    return digest.hexdigest()
