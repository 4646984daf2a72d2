# SPDX-License-Identifier: Apache-2.0
"""Data sets that a config declares: a user's own need no code."""

import os
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..layers.average_precision import AP_TYPES
from ..layers.checks import check_choice
from .voc import register_voc

_REQUIRED = {"NAME", "FORMAT", "ROOT", "SPLIT", "CLASSES"}
_OPTIONAL = {"AP_TYPE": "area"}


def register_declared_datasets(declared: Sequence[dict]) -> None:
    """
    Registers the data sets of DATASETS.DECLARED; files are read later.

    Args:
        declared: one dictionary for each, with NAME (for DATASETS.TRAIN and TEST), FORMAT ("voc":
            folders Annotations, ImageSets, JPEGImages), ROOT, SPLIT (ImageSets/Main/<SPLIT>.txt),
            CLASSES (all names, in order), and AP_TYPE ("area" unless given, "voc07" or "coco101").

    Raises:
        ValueError: a key that is missing, unknown, or of a wrong value, or a name declared twice or
            taken by another data set.
        FileNotFoundError: ROOT is no folder.
    """
    names = [entry.get("NAME") if isinstance(entry, dict) else None for entry in declared]
    for entry, name in zip(declared, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"DATASETS.DECLARED: {name!r} is declared twice")
        _register(entry)


def _register(entry: dict) -> None:
    where = "DATASETS.DECLARED"
    keys = set(entry) if isinstance(entry, dict) else set()
    if not _REQUIRED <= keys <= _REQUIRED | set(_OPTIONAL):
        raise ValueError(
            f"{where}: expected the keys {sorted(_REQUIRED)} and perhaps {sorted(_OPTIONAL)} for "
            f"each data set, got {entry!r}"
        )
    entry = {**_OPTIONAL, **entry}
    name, classes = entry["NAME"], entry["CLASSES"]
    where = f"{where} {name!r}"
    if entry["FORMAT"] != "voc":
        raise ValueError(f"{where}: expected FORMAT 'voc', got {entry['FORMAT']!r}")
    check_choice(f"{where}: AP_TYPE", entry["AP_TYPE"], AP_TYPES)
    is_list = isinstance(classes, list | tuple) and all(isinstance(x, str) for x in classes)
    if not (is_list and classes and len(set(classes)) == len(classes)):
        raise ValueError(f"{where}: expected CLASSES, a list of different names, got {classes!r}")
    if not os.path.isdir(entry["ROOT"]):
        raise FileNotFoundError(f"{where}: ROOT is no folder: {entry['ROOT']}")
    if name in DatasetCatalog and not MetadataCatalog.get(name).get("is_declared", False):
        raise ValueError(f"{where}: this name is taken by another data set")
    register_voc(name, entry["ROOT"], entry["SPLIT"], classes, entry["AP_TYPE"])
    MetadataCatalog.get(name).set(is_declared=True)
