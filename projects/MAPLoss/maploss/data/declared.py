# SPDX-License-Identifier: Apache-2.0
"""Data sets that a config declares: a user's own need no code."""

import os
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..layers.average_precision import AP_TYPES
from ..layers.checks import check_choice
from .coco import register_coco
from .csv_boxes import register_csv
from .part import take_part
from .voc import VOCFolders, register_voc
from .yolo import find_config, read_config, register_yolo

FORMATS = ("voc", "coco", "yolo", "csv")
_REQUIRED = {
    "voc": {"NAME", "FORMAT", "ROOT", "SPLIT", "CLASSES"},
    "coco": {"NAME", "FORMAT", "ROOT", "SPLIT"},
    "yolo": {"NAME", "FORMAT", "ROOT", "SPLIT"},
    "csv": {"NAME", "FORMAT", "ROOT", "SPLIT", "CLASSES"},
}
_OPTIONAL: dict[str, dict] = {
    "voc": {"IMAGES": "JPEGImages", "ANNOTATIONS": "Annotations"},
    "coco": {"AP_TYPE": "coco101", "IMAGES": None},
    "yolo": {"CLASSES": None},
    "csv": {"IMAGES": ""},
}
_ALL_OPTIONAL = {"AP_TYPE": "area", "PART": [0.0, 1.0]}
_STRINGS = ("NAME", "ROOT", "SPLIT", "IMAGES", "ANNOTATIONS")


def register_declared_datasets(declared: Sequence[dict]) -> None:
    """
    Registers the data sets of DATASETS.DECLARED.

    Args:
        declared: one dictionary for each, with NAME (for DATASETS.TRAIN and TEST) and

            - FORMAT "voc": SPLIT means ImageSets/Main/<SPLIT>.txt below ROOT, or is the path of
              another list that ends in .txt, or "*" for all XML files. CLASSES, all names in order.
              ANNOTATIONS and IMAGES, not needed, are other folders than Annotations and JPEGImages.
            - FORMAT "coco": SPLIT is the path of a json file below ROOT, with the images beside it,
              or a name that means annotations/instances_<SPLIT>.json with the images in <SPLIT>.
              IMAGES, not needed, is another folder of the images below ROOT. The classes are those
              of the file.
            - FORMAT "yolo": SPLIT is "train", "val" or "test", a key of data.yaml in ROOT, or a
              folder of images below ROOT, or a list of images that ends in .txt. CLASSES, not
              needed, are the `names` of data.yaml.
            - FORMAT "csv": SPLIT is the path of the table below ROOT. IMAGES, not needed, is the
              folder of the images if it is not ROOT. CLASSES, all names in order.
            - AP_TYPE, not needed: "area" (the default), "voc07" or "coco101" (that of "coco").
            - PART, not needed: [begin, end], shares of the images in a fixed random order; [0, .8]
              and [.8, 1] divide a data set without splits.

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
    if style not in FORMATS:
        raise ValueError(
            f"{where}: expected dictionaries with FORMAT 'voc', 'coco', 'yolo' or 'csv', got "
            f"{entry!r}"
        )
    required, optional = _REQUIRED[style], {**_ALL_OPTIONAL, **_OPTIONAL[style]}
    if not required <= set(entry) <= required | set(optional):
        raise ValueError(
            f"{where}: expected the keys {sorted(required)} and perhaps {sorted(optional)} for "
            f"FORMAT {style!r}, got {entry!r}"
        )
    entry = {**optional, **entry}
    where = f"{where} {entry['NAME']!r}"
    check_choice(f"{where}: AP_TYPE", entry["AP_TYPE"], AP_TYPES)
    for key in _STRINGS:
        if key in required and not (isinstance(entry[key], str) and entry[key]):
            raise ValueError(f"{where}: expected {key} to be a string, got {entry[key]!r}")
        if key in optional and not isinstance(entry[key], str | None):
            raise ValueError(f"{where}: expected {key} to be a string, got {entry[key]!r}")
    entry["ROOT"] = os.path.expanduser(entry["ROOT"])
    if not os.path.isdir(entry["ROOT"]):
        raise FileNotFoundError(f"{where}: ROOT is no folder: {entry['ROOT']}")
    _check_part(where, entry["PART"])
    if style == "yolo" and entry["CLASSES"] is None:
        config = find_config(entry["ROOT"])
        if config is None:
            raise ValueError(f"{where}: expected CLASSES, since {entry['ROOT']} has no data.yaml")
        entry["CLASSES"] = read_config(config)["names"]
    if style != "coco":
        _check_classes(where, entry["CLASSES"])
    name = entry["NAME"]
    if name in DatasetCatalog and not MetadataCatalog.get(name).get("is_declared", False):
        raise ValueError(f"{where}: this name is taken by another data set")
    return entry


def _check_part(where: str, part: object) -> None:
    numbers = part if isinstance(part, list | tuple) else []
    if len(numbers) != 2 or not all(isinstance(x, int | float) for x in numbers):
        raise ValueError(f"{where}: expected PART to be [begin, end], got {part!r}")
    begin, end = numbers
    if not 0 <= begin < end <= 1:
        raise ValueError(f"{where}: expected PART with 0 <= begin < end <= 1, got {part!r}")


def _check_classes(where: str, classes: object) -> None:
    is_list = isinstance(classes, list | tuple) and all(isinstance(x, str) for x in classes)
    if not (is_list and classes and len(set(classes)) == len(classes)):  # type: ignore
        raise ValueError(f"{where}: expected CLASSES, a list of different names, got {classes!r}")


def _register(entry: dict) -> None:
    name, root, split = entry["NAME"], entry["ROOT"], entry["SPLIT"]
    if entry["FORMAT"] == "voc":
        folders = VOCFolders(root, entry["ANNOTATIONS"], entry["IMAGES"])
        register_voc(name, folders, split, entry["CLASSES"], entry["AP_TYPE"])
    elif entry["FORMAT"] == "yolo":
        register_yolo(name, root, split, entry["CLASSES"], entry["AP_TYPE"])
    elif entry["FORMAT"] == "csv":
        images = os.path.join(root, entry["IMAGES"])
        _check_images(name, images)
        table = os.path.join(root, split)
        register_csv(name, table, images, entry["CLASSES"], entry["AP_TYPE"])
    else:
        _register_coco(entry)
    if tuple(entry["PART"]) != (0, 1):
        _keep_part(name, *entry["PART"])
    MetadataCatalog.get(name).set(is_declared=True)


def _register_coco(entry: dict) -> None:
    name, root, split, images = (entry[x] for x in ("NAME", "ROOT", "SPLIT", "IMAGES"))
    is_path = split.endswith(".json")
    json_file = split if is_path else os.path.join("annotations", f"instances_{split}.json")
    if images is None:
        images = os.path.dirname(split) if is_path else split
    images = os.path.join(root, images)
    _check_images(name, images)
    register_coco(name, os.path.join(root, json_file), images, entry["AP_TYPE"])


def _check_images(name: str, folder: str) -> None:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"DATASETS.DECLARED {name!r}: the images' folder is none: {folder}")


def _keep_part(name: str, begin: float, end: float) -> None:
    """The data set has a share of its images only."""
    load_all = DatasetCatalog[name]
    DatasetCatalog.remove(name)

    def load() -> list[dict]:
        records = take_part(load_all(), begin, end)
        if not records:
            raise ValueError(f"Data set {name!r}: PART [{begin:g}, {end:g}] has no image")
        return records

    DatasetCatalog.register(name, load)
