# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation on outputs of the frozen backbone that are computed once."""

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import nn

from ..data.feature_cache import FeatureCache, cache_folder, hash_records, make_cache
from ..data.images import read_annotated_image
from ..data.mapper import to_tensor
from ..data.records import load_records
from ..data.views import View, views_of
from ..modeling.cached_features import (
    check_frozen,
    compute_features,
    frozen_part,
    hash_part,
    read_features,
)

logger = logging.getLogger(__name__)

_GIB = 2**30
_LOG_SECONDS = 30.0


class _Wanted(NamedTuple):
    """Of one data set: what is cached of it. Settings are INPUT's, for training or test."""

    name: str
    records: list[dict]
    settings: dict

    def views_of(self, record: dict) -> Iterator[View]:
        """Views of one image."""
        names = ("min_sizes", "max_size", "flips")
        return views_of(record, *(self.settings[x] for x in names))

    def views(self) -> list[View]:
        """All views of all images, each once."""
        return list(dict.fromkeys(x for record in self.records for x in self.views_of(record)))


def check_cache_config(cfg: CfgNode, *, eval_only: bool) -> None:
    """
    Checks the keys that go with DATALOADER.FEATURE_CACHE, if it is on.

    Raises:
        ValueError: one that needs the images, or makes too many different ones.
    """
    if not cfg.DATALOADER.FEATURE_CACHE:
        return
    expected: list[tuple[str, object, tuple]] = [
        ("TEST.PYRAMID_SIZES", cfg.TEST.PYRAMID_SIZES, ([],))
    ]
    if not eval_only:
        expected += [
            ("INPUT.RANDOM_FLIP", cfg.INPUT.RANDOM_FLIP, ("none", "horizontal")),
            ("INPUT.MIN_SIZE_TRAIN_SAMPLING", cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, ("choice",)),
            ("DATALOADER.UNREADABLE_IMAGES", cfg.DATALOADER.UNREADABLE_IMAGES, ("stop",)),
            ("VIS_PERIOD", cfg.VIS_PERIOD, (0,)),
        ]
    for key, value, allowed in expected:
        if value not in allowed:
            shown = " or ".join(map(repr, allowed))
            raise ValueError(
                f"{key}: expected {shown} with DATALOADER.FEATURE_CACHE, got {value!r}"
            )


def use_feature_cache(cfg: CfgNode, model: nn.Module, *, eval_only: bool) -> None:
    """
    Lets a model read the outputs of its frozen part from DATALOADER.FEATURE_CACHE, if that is set.

    They are computed first where they are not there. The weights have to be loaded before; all
    processes of a training call this.

    Args:
        cfg: prepared.
        model: as the trainer has it.
        eval_only: for DATASETS.TEST only.

    Raises:
        ValueError: something before the cut trains, or the cache would be larger than
            DATALOADER.FEATURE_CACHE_LIMIT; one that half precision cannot hold.
        OSError: an image that cannot be read, or a file that cannot be written.
    """
    if not cfg.DATALOADER.FEATURE_CACHE:
        return
    model = getattr(model, "module", model)
    check_frozen(model)
    wanted = _test_sets(cfg) if eval_only else [*_training_sets(cfg), *_test_sets(cfg)]
    views = [x.views() for x in wanted]
    sizes = [_num_bytes(model.backbone.size_divisibility, frozen_part(model), x) for x in views]
    _check_limit(sum(sizes) / _GIB, cfg.DATALOADER.FEATURE_CACHE_LIMIT)
    of_model = _model_key(cfg, model)
    cache_of: dict[View, FeatureCache] = {}
    for data_set, own_views, size in zip(wanted, views, sizes, strict=True):
        about = {
            "data_set": data_set.name,
            "images": len(data_set.records),
            "records": hash_records(data_set.records),
        }
        key = {**of_model, **data_set.settings, **about}
        folder = cache_folder(cfg.DATALOADER.FEATURE_CACHE, data_set.name, key)
        make_cache(folder, key, _compute(model, data_set, cfg.INPUT.FORMAT, folder, size))
        cache = FeatureCache(folder, own_views)
        logger.info(f"Outputs of the frozen backbone for {data_set.name}: {folder}")
        cache_of |= dict.fromkeys(cache.views, cache)
    read_features(model, lambda view: cache_of[view].read(view))


def _training_sets(cfg: CfgNode) -> list[_Wanted]:
    settings = {
        "min_sizes": sorted(set(cfg.INPUT.MIN_SIZE_TRAIN)),
        "max_size": cfg.INPUT.MAX_SIZE_TRAIN,
        "flips": [False, True][: 2 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 1],
    }
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    return [_wanted(x, settings, filter_empty=filter_empty) for x in cfg.DATASETS.TRAIN]


def _test_sets(cfg: CfgNode) -> list[_Wanted]:
    settings = {
        "min_sizes": [cfg.INPUT.MIN_SIZE_TEST],
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "flips": [False],
    }
    return [_wanted(x, settings, filter_empty=False) for x in cfg.DATASETS.TEST]


def _wanted(name: str, settings: dict, *, filter_empty: bool) -> _Wanted:
    return _Wanted(name, load_records([name], None, filter_empty=filter_empty), settings)


def _model_key(cfg: CfgNode, model: nn.Module) -> dict:
    structure, weights = hash_part(frozen_part(model))
    return {
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "structure": structure,
        "weights": weights,
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "pixel_std": model.pixel_std.flatten().tolist(),
        "size_divisibility": model.backbone.size_divisibility,
        "format": cfg.INPUT.FORMAT,
    }


def _num_bytes(divisibility: int, part: Backbone, views: Sequence[View]) -> int:
    """About as much as the features of all views take, by channels and strides."""
    step, total = max(divisibility, 1), 0
    for shape in part.output_shape().values():
        for view in views:
            sides = (math.ceil(x / step) * step for x in (view.height, view.width))
            total += 2 * shape.channels * math.prod(math.ceil(x / shape.stride) for x in sides)
    return total


def _check_limit(size: float, limit: float) -> None:
    if size > limit:
        raise ValueError(
            f"DATALOADER.FEATURE_CACHE: expected at most DATALOADER.FEATURE_CACHE_LIMIT = "
            f"{limit:g} GiB, got {size:.3g} GiB of features"
        )


def _compute(
    model: nn.Module, data_set: _Wanted, image_format: str, folder: str, size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Features of all views; tells how far it is."""
    start = last = time.monotonic()
    count = len(data_set.records)
    told = f"outputs of the frozen backbone for {count} images of {data_set.name}"
    logger.info(f"Computing the {told}, {size / _GIB:.2g} GiB in {os.path.dirname(folder)}")
    seen: set[View] = set()
    for i, record in enumerate(data_set.records):
        image = read_annotated_image(record, image_format)
        for view in data_set.views_of(record):
            if view not in seen:
                seen.add(view)
                yield compute_features(model, to_tensor(view.render(image)))
        if time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic()
            logger.info(f"{i + 1}/{count} images in {last - start:.0f} s")
    logger.info(f"Computed the {told} in {time.monotonic() - start:.0f} s")
