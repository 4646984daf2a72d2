# SPDX-License-Identifier: Apache-2.0
"""Finds annotations in VOC's XML: in its layout, or in any folders."""

import os
from collections import defaultdict

from ..voc import read_voc_annotation
from .found import FoundData, FoundPart, Tree, purpose_of


def find_voc(tree: Tree) -> FoundData | None:
    """The data set of the XML files of a folder; None where there is none."""
    xml_of: dict[str, list[str]] = defaultdict(list)
    for file in tree.with_ending(".xml"):
        folder, name = os.path.split(file)
        xml_of[folder].append(os.path.splitext(name)[0])
    xml_of = {x: stems for x, stems in xml_of.items() if _is_annotation(tree, x, stems[0])}
    parts: list[FoundPart] = []
    notes: list[str] = []
    for folder, stems in xml_of.items():
        images = _images_of(tree, set(stems))
        if images is None:
            notes.append(
                f"{tree.path(folder)}: {len(stems)} XML files, but no image of their names"
            )
            continue
        parts += _parts_of(tree, folder, images)
        without = len(tree.image_stems[images] - set(stems))
        if without:
            notes.append(f"{tree.path(images)}: {without} images have no XML file and are not used")
    if not parts:
        return None
    in_layout = all("ANNOTATIONS" not in x.entry for x in parts)
    form = "VOC (Annotations, ImageSets, JPEGImages)" if in_layout else "XML files as VOC has them"
    return FoundData(form, parts, _class_names(tree, xml_of), notes)


def _is_annotation(tree: Tree, folder: str, stem: str) -> bool:
    with open(tree.path(os.path.join(folder, f"{stem}.xml")), "rb") as f:
        return b"<annotation" in f.read(1000)


def _images_of(tree: Tree, stems: set[str]) -> str | None:
    """The folder that has most images of these names."""
    counts = {folder: len(stems & found) for folder, found in tree.image_stems.items()}
    best = max(counts, key=lambda x: counts[x], default=None)
    return best if best is not None and counts[best] else None


def _parts_of(tree: Tree, folder: str, images: str) -> list[FoundPart]:
    root, name = os.path.split(folder)
    lists = os.path.join(root, "ImageSets", "Main", "")
    in_layout = (name, images) == ("Annotations", os.path.join(root, "JPEGImages"))
    entry = {"FORMAT": "voc", "ROOT": tree.path(root) if root and in_layout else tree.root}
    if not in_layout:
        entry |= {"ANNOTATIONS": folder or ".", "IMAGES": images or "."}
    found = []
    for file in tree.with_ending(".txt"):
        stem = os.path.splitext(os.path.basename(file))[0]
        # Lists of one class, such as cat_train.txt, are no splits.
        if stem not in ("train", "val", "trainval", "test", "valid"):
            continue
        if file.startswith(lists):
            split = stem if in_layout else file
        elif os.path.dirname(file) in (root, "", os.path.join(root, "ImageSets")):
            split = os.path.relpath(tree.path(file), entry["ROOT"])
        else:
            continue
        found.append(FoundPart(purpose_of(stem), {**entry, "SPLIT": split}))
    return found or [FoundPart(purpose_of(folder), {**entry, "SPLIT": "*"})]


def _class_names(tree: Tree, xml_of: dict[str, list[str]]) -> list[str]:
    names: set[str] = set()
    for folder, stems in xml_of.items():
        for stem in stems:
            try:
                found = read_voc_annotation(tree.path(os.path.join(folder, f"{stem}.xml")))
            except ValueError:
                continue  # the checks tell
            names.update(x.name for x in found.objects)
    return sorted(names)
