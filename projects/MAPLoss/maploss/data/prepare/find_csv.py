# SPDX-License-Identifier: Apache-2.0
"""Finds tables of boxes."""

import os

from ..csv_boxes import CSVTable, image_path, read_csv
from .found import FoundData, FoundPart, Tree, purpose_of

_NUM_TRIED = 50


def find_csv(tree: Tree) -> FoundData | None:
    """The data set of the tables of a folder; None where there is none."""
    parts: list[FoundPart] = []
    notes: list[str] = []
    names: set[str] = set()
    order: list[str] = []
    for file in tree.with_ending(".csv", ".tsv"):
        try:
            table = read_csv(tree.path(file))
        except ValueError as error:
            notes.append(str(error))
            continue
        folder = _images_of(tree, file, table)
        if folder is None:
            first = table.boxes[0].file
            notes.append(f"{tree.path(file)}: its images are not there, such as {first!r}")
            continue
        entry = {"FORMAT": "csv", "ROOT": tree.root, "SPLIT": file, "IMAGES": folder or "."}
        parts.append(FoundPart(purpose_of(file), entry))
        if table.is_relative:
            notes.append(f"{tree.path(file)}: no number is above 1, so boxes are shares of images")
        order = table.class_names() if not set(table.class_names()) <= names else order
        names |= set(table.class_names())
    if len(parts) > 1:
        order = sorted(names)
    return FoundData("CSV table", parts, order, notes) if parts else None


def _images_of(tree: Tree, file: str, table: CSVTable) -> str | None:
    """The folder below which most of the images exist."""
    names = list(table.by_file())[:_NUM_TRIED]
    folders = dict.fromkeys((os.path.dirname(file), "", *tree.image_stems))
    counts = {
        x: sum(os.path.isfile(image_path(tree.path(x), name)) for name in names) for x in folders
    }
    best = max(counts, key=lambda x: counts[x])
    return best if counts[best] else None
