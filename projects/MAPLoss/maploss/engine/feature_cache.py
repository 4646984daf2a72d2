# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation on outputs of the frozen backbone that are computed once."""

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from ..data.feature_cache import FeatureCache, cache_folder, hash_records, make_cache
from ..data.images import read_annotated_image
from ..data.mapper import to_tensor
from ..data.records import load_records
from ..data.views import View, view_of
from ..modeling.cached_features import (
    Detector,
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
    """A data set at one size, mirrored or not: arguments of `view_of` are its settings."""

    name: str
    records: list[dict]
    settings: dict

    def views(self) -> list[View]:
        """One of each image."""
        return [view_of(record, **self.settings) for record in self.records]


def check_cache_config(cfg: CfgNode, *, eval_only: bool) -> None:
    """
    Checks the keys that go with DATALOADER.FEATURE_CACHE, if it is on.

    Raises:
        ValueError: one that needs the images, or makes too many different ones.
    """
    if not cfg.DATALOADER.FEATURE_CACHE.FOLDER:
        return
    expected: list[tuple[str, object, tuple]] = [
        ("TEST.PYRAMID.SIZES", cfg.TEST.PYRAMID.SIZES, ([],))
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


def use_feature_cache(cfg: CfgNode, model: Detector, *, eval_only: bool) -> None:
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
            DATALOADER.FEATURE_CACHE.MAX_GIB; one that half precision cannot hold.
        OSError: an image that cannot be read, or a file that cannot be written.
    """
    if not cfg.DATALOADER.FEATURE_CACHE.FOLDER:
        return
    model = getattr(model, "module", model)
    check_frozen(model)
    wanted = [*([] if eval_only else _training_sets(cfg)), *_test_sets(cfg)]
    views = [x.views() for x in wanted]
    sizes = [_num_bytes(model.backbone.size_divisibility, frozen_part(model), x) for x in views]
    _check_limit(sum(sizes) / _GIB, cfg.DATALOADER.FEATURE_CACHE.MAX_GIB)
    of_model = _model_key(cfg, model)
    cache_of: dict[View, FeatureCache] = {}
    for part, own_views, size in zip(wanted, views, sizes, strict=True):
        images = {"images": len(part.records), "records": hash_records(part.records)}
        key = {**of_model, **part.settings, "data_set": part.name, **images}
        folder = cache_folder(cfg.DATALOADER.FEATURE_CACHE.FOLDER, part.name, key)
        make_cache(folder, key, _compute(model, part, own_views, cfg.INPUT.FORMAT, size))
        logger.info(f"Outputs of the frozen backbone for {part.name}: {folder}")
        cache_of |= dict.fromkeys(own_views, FeatureCache(folder, own_views))
    read_features(model, lambda view: cache_of[view].read(view))


def _training_sets(cfg: CfgNode) -> list[_Wanted]:
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    flips = [False, True] if cfg.INPUT.RANDOM_FLIP == "horizontal" else [False]
    wanted = []
    for name in cfg.DATASETS.TRAIN:
        records = load_records([name], None, filter_empty=filter_empty)
        for size, flip in itertools.product(sorted(set(cfg.INPUT.MIN_SIZE_TRAIN)), flips):
            settings = {"min_size": size, "max_size": cfg.INPUT.MAX_SIZE_TRAIN, "is_flipped": flip}
            wanted.append(_Wanted(name, records, settings))
    return wanted


def _test_sets(cfg: CfgNode) -> list[_Wanted]:
    size, max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    settings = {"min_size": size, "max_size": max_size, "is_flipped": False}
    return [
        _Wanted(name, load_records([name], None, filter_empty=False), settings)
        for name in cfg.DATASETS.TEST
    ]


def _model_key(cfg: CfgNode, model: Detector) -> dict:
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
            f"DATALOADER.FEATURE_CACHE: expected at most DATALOADER.FEATURE_CACHE.MAX_GIB = "
            f"{limit:g} GiB, got {size:.3g} GiB of features"
        )


def _compute(
    model: Detector, part: _Wanted, views: Sequence[View], image_format: str, size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Features of all views; tells how far it is."""
    start = last = time.monotonic()
    mirrored = " (mirrored)" if part.settings["is_flipped"] else ""
    told = f"outputs of the frozen backbone for {len(views)} images of {part.name}{mirrored}"
    logger.info(f"Computing the {told}, {size / _GIB:.2g} GiB")
    for i, (record, view) in enumerate(zip(part.records, views, strict=True)):
        image = read_annotated_image(record, image_format)
        yield compute_features(model, to_tensor(view.render(image)))
        if time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic()
            logger.info(f"{i + 1}/{len(views)} images in {last - start:.0f} s")
    logger.info(f"Computed the {told} in {time.monotonic() - start:.0f} s")
