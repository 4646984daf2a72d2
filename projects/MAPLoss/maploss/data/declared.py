# SPDX-License-Identifier: Apache-2.0
"""Data sets that a config declares: a user's own need no code."""

import os
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..layers.average_precision import AP_TYPES
from ..layers.checks import check_choice
from .coco import register_coco
from .voc import register_voc

_FORMATS = ("voc", "coco")
_REQUIRED = {"voc": {"NAME", "FORMAT", "ROOT", "SPLIT", "CLASSES"}}
_REQUIRED["coco"] = _REQUIRED["voc"] - {"CLASSES"}
_OPTIONAL = {"voc": {"AP_TYPE": "area"}, "coco": {"AP_TYPE": "coco101", "IMAGES": None}}


def register_declared_datasets(declared: Sequence[dict]) -> None:
    """
    Registers the data sets of DATASETS.DECLARED.

    Args:
        declared: one dictionary for each, with NAME (for DATASETS.TRAIN and TEST) and

            - FORMAT "voc": ROOT holds Annotations, ImageSets and JPEGImages; SPLIT means
              ImageSets/Main/<SPLIT>.txt; CLASSES, all names in order.
            - FORMAT "coco": SPLIT is the path of a json file below ROOT, with the images beside it,
              or a name that means annotations/instances_<SPLIT>.json with the images in <SPLIT>.
              IMAGES, not needed, is another folder of the images below ROOT. The classes are those
              of the file.
            - AP_TYPE, not needed: "area" (the default of "voc"), "voc07" or "coco101" (of "coco").

    Raises:
        ValueError: a key that is missing, unknown, or of a wrong value, a name declared twice or
            taken by another data set, a json file that is not COCO's.
        FileNotFoundError: ROOT or IMAGES is no folder, or there is no such json file.
    """
    if not isinstance(declared, list | tuple):
        raise ValueError(f"DATASETS.DECLARED: expected a list, got {declared!r}")
    names = [entry.get("NAME") if isinstance(entry, dict) else None for entry in declared]
    for entry, name in zip(declared, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"DATASETS.DECLARED: {name!r} is declared twice")
        _register(_checked(entry))


def check_registered(name: str) -> None:
    """Raises ValueError where there is no data set of this name."""
    if name not in DatasetCatalog:
        raise ValueError(f"No data set {name!r} is registered: declare it in DATASETS.DECLARED")


def _checked(entry: dict) -> dict:
    """The entry with its defaults filled in."""
    where = "DATASETS.DECLARED"
    style = entry.get("FORMAT") if isinstance(entry, dict) else None
    if style not in _FORMATS:
        raise ValueError(
            f"{where}: expected dictionaries with FORMAT 'voc' or 'coco', got {entry!r}"
        )
    required, optional = _REQUIRED[style], _OPTIONAL[style]
    if not required <= set(entry) <= required | set(optional):
        raise ValueError(
            f"{where}: expected the keys {sorted(required)} and perhaps {sorted(optional)} for "
            f"FORMAT {style!r}, got {entry!r}"
        )
    entry = {**optional, **entry}
    where = f"{where} {entry['NAME']!r}"
    check_choice(f"{where}: AP_TYPE", entry["AP_TYPE"], AP_TYPES)
    for key in ("NAME", "ROOT", "SPLIT", "IMAGES"):
        if key in required and not (isinstance(entry[key], str) and entry[key]):
            raise ValueError(f"{where}: expected {key} to be a string, got {entry[key]!r}")
        if key in optional and not isinstance(entry[key], str | None):
            raise ValueError(f"{where}: expected {key} to be a string, got {entry[key]!r}")
    entry["ROOT"] = os.path.expanduser(entry["ROOT"])
    if not os.path.isdir(entry["ROOT"]):
        raise FileNotFoundError(f"{where}: ROOT is no folder: {entry['ROOT']}")
    if style == "voc":
        classes = entry["CLASSES"]
        is_list = isinstance(classes, list | tuple) and all(isinstance(x, str) for x in classes)
        if not (is_list and classes and len(set(classes)) == len(classes)):
            raise ValueError(
                f"{where}: expected CLASSES, a list of different names, got {classes!r}"
            )
    name = entry["NAME"]
    if name in DatasetCatalog and not MetadataCatalog.get(name).get("is_declared", False):
        raise ValueError(f"{where}: this name is taken by another data set")
    return entry


def _register(entry: dict) -> None:
    name, root, split = entry["NAME"], entry["ROOT"], entry["SPLIT"]
    if entry["FORMAT"] == "voc":
        register_voc(name, root, split, entry["CLASSES"], entry["AP_TYPE"])
    else:
        is_path = split.endswith(".json")
        json_file = split if is_path else os.path.join("annotations", f"instances_{split}.json")
        images = entry["IMAGES"]
        if images is None:
            images = os.path.dirname(split) if is_path else split
        images = os.path.join(root, images)
        if not os.path.isdir(images):
            raise FileNotFoundError(
                f"DATASETS.DECLARED {name!r}: the images' folder is none: {images}"
            )
        register_coco(name, os.path.join(root, json_file), images, entry["AP_TYPE"])
    MetadataCatalog.get(name).set(is_declared=True)
