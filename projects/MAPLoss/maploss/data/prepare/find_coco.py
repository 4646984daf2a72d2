# SPDX-License-Identifier: Apache-2.0
"""Finds annotations in COCO's json files."""

import json
import os

from .found import FoundData, FoundPart, Tree, purpose_of

# So many file names tell in which folder they lie.
_NUM_TRIED = 50


def find_coco(tree: Tree) -> FoundData | None:
    """The data set of the json files of a folder; None where there is none."""
    read = {x: _read(tree.path(x)) for x in tree.with_ending(".json")}
    contents = {x: content for x, content in read.items() if content is not None}
    # COCO has the same images with other annotations, such as person_keypoints_*.
    instances = [x for x in contents if os.path.basename(x).startswith("instances_")]
    parts, notes = [], []
    classes: list[str] = []
    for file in instances or contents:
        content = contents[file]
        names = [x.get("file_name", "") for x in content["images"][:_NUM_TRIED]]
        folder = _images_of(tree, file, [str(x) for x in names])
        if folder is None:
            notes.append(f"{tree.path(file)}: its images are not there, such as {names[0]!r}")
            continue
        own = _class_names(content)
        if classes and own != classes:
            notes.append(f"{tree.path(file)}: other classes, {own}; not used")
            continue
        classes = own
        entry = {"FORMAT": "coco", "ROOT": tree.root, "SPLIT": file, "IMAGES": folder or "."}
        parts.append(FoundPart(purpose_of(file), entry))
    return FoundData("COCO json", parts, classes, notes) if parts else None


def _read(path: str) -> dict | None:
    """The content of a file with images, boxes and classes."""
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except (RecursionError, ValueError):
        return None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(x), list) for x in keys):
        return None
    has_images = content["images"] and all(isinstance(x, dict) for x in content["images"])
    has_boxes = any(isinstance(x, dict) and "bbox" in x for x in content["annotations"])
    return content if has_images and has_boxes else None


def _images_of(tree: Tree, file: str, names: list[str]) -> str | None:
    """The folder below which most of the file names exist."""
    folders = {os.path.dirname(file), *tree.image_stems}
    for folder in list(folders):
        while folder:
            folder = os.path.dirname(folder)
            folders.add(folder)
    images = set(tree.images)
    counts = {
        x: sum(os.path.normpath(os.path.join(x, name)) in images for name in names)
        for x in sorted(folders)
    }
    best = max(counts, key=lambda x: (counts[x], purpose_of(x) == purpose_of(file)))
    return best if counts[best] else None


def _class_names(content: dict) -> list[str]:
    categories = [x for x in content["categories"] if isinstance(x, dict) and "id" in x]
    return [str(x.get("name")) for x in sorted(categories, key=lambda x: str(x["id"]).zfill(9))]
