# SPDX-License-Identifier: Apache-2.0
"""Finds labels in YOLO's form: a data.yaml, or text files beside images."""

import os

from ..yolo import CONFIG_NAMES, SPLITS, label_file, read_config, split_images
from .found import FoundData, FoundPart, Tree, purpose_of

_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "labels.names")
_NUM_TRIED = 200


def find_yolo_config(tree: Tree) -> FoundData | None:
    """The data set of a yaml with `names` and splits; None where there is none."""
    notes = []
    for file in sorted(tree.files, key=lambda x: x.count(os.sep)):
        if os.path.basename(file) not in CONFIG_NAMES:
            continue
        root = tree.path(os.path.dirname(file)).rstrip(os.sep)
        try:
            content = read_config(tree.path(file))
        except ValueError as error:
            notes.append(str(error))
            continue
        parts = []
        for split in SPLITS:
            try:
                images = split_images(root, split)
            except (OSError, ValueError) as error:
                notes += [str(error)] * (split in content)
                continue
            entry = {"FORMAT": "yolo", "ROOT": root, "SPLIT": split}
            parts.append((FoundPart(split, entry), tuple(images)))
        # "val: images/train" is what tools write into a yaml without validation images.
        kept, seen = [], set()
        for part, names in parts:
            if names in seen:
                notes.append(f"{tree.path(file)}: {part.entry['SPLIT']} has the images of another")
                continue
            seen.add(names)
            kept.append(part)
        if kept:
            return FoundData(f"YOLO ({file})", kept, content["names"], notes)
    return None


def find_yolo_labels(tree: Tree) -> FoundData | None:
    """The data set of label files without a yaml; None where there is none."""
    labels = set(tree.with_ending(".txt"))
    folders: dict[str, int] = {}
    highest = -1
    for folder in tree.image_stems:
        images = [x for x in tree.images if os.path.dirname(x) == folder]
        found = [label_file(x) for x in images if label_file(x) in labels]
        indices = [_class_indices(tree.path(x)) for x in found[:_NUM_TRIED]]
        if any(x is None for x in indices) or not any(indices):
            continue
        folders[folder] = len(found)
        highest = max(highest, *(max(x, default=-1) for x in indices if x is not None))
    if not folders:
        return None
    names, notes = _names(tree), []
    if len(names) <= highest:
        notes.append(
            f"no names of classes found ({', '.join(_NAME_FILES)}, names in data.yaml): they are "
            "called class0, class1, .. here"
        )
        names = [f"class{i}" for i in range(highest + 1)]
    entry = {"FORMAT": "yolo", "ROOT": tree.root}
    parts = [FoundPart(purpose_of(x), {**entry, "SPLIT": x or "."}) for x in folders]
    return FoundData("YOLO labels without a data.yaml", parts, names, notes)


def _class_indices(path: str) -> list[int] | None:
    """First numbers of the lines of a label file; None of what is no such file."""
    try:
        with open(path, encoding="utf-8") as f:
            rows = [[float(x) for x in line.split()] for line in f if line.strip()]
    except ValueError:
        return None
    if any(len(x) < 5 or x[0] < 0 or x[0] != int(x[0]) for x in rows):
        return None
    return [int(x[0]) for x in rows]


def _names(tree: Tree) -> list[str]:
    for file in sorted(tree.files, key=lambda x: x.count(os.sep)):
        if os.path.basename(file) in _NAME_FILES:
            with open(tree.path(file), encoding="utf-8-sig") as f:
                return [x.strip() for x in f if x.strip()]
    return []
