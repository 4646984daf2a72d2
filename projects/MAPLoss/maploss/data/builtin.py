# SPDX-License-Identifier: Apache-2.0
"""Registers the data sets known by name: the shapes, and PASCAL VOC 2007 and 2012."""

import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASS_NAMES

from .shapes import register_shapes
from .voc import VOCFolders, register_voc

_VOC_SPLITS = {
    2007: ("train", "val", "trainval", "test", "train_mini", "val_mini", "test_mini"),
    2012: ("train", "val", "trainval"),
}


def register_builtin_datasets() -> None:
    """
    Registers `shapes_*`, and `voc_2007_*` and `voc_2012_*` under $DETECTRON2_DATASETS ("datasets").

    Detectron2's registrations of the VOC names are replaced: its loader drops `difficult`, so that
    difficult objects would count as misses in the evaluation and as objects in the loss.
    """
    register_shapes()
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    for year, splits in _VOC_SPLITS.items():
        ap_type = "voc07" if year == 2007 else "area"
        for split in splits:
            name = f"voc_{year}_{split}"
            folders = VOCFolders(os.path.join(root, f"VOC{year}"))
            register_voc(name, folders, split, VOC_CLASS_NAMES, ap_type)
            MetadataCatalog.get(name).set(year=year, evaluator_type="pascal_voc")
