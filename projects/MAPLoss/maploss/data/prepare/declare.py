# SPDX-License-Identifier: Apache-2.0
"""Which parts of a data set train, and which are evaluated."""

import os
import re
from typing import NamedTuple

from .found import FoundData, FoundPart

_ORDER = ("train", "trainval", "", "val", "test")
# Of a data set without splits.
_TRAIN_SHARE = 0.8


class Declared(NamedTuple):
    """entries: DATASETS.DECLARED. train, test: names of some of them. notes: what was decided."""

    entries: list[dict]
    train: list[str]
    test: list[str]
    notes: list[str]


def declare(found: FoundData, name: str) -> Declared:
    """
    Declares the parts of a data set, and makes a split where there is none.

    Training has what is named train, or trainval, and what has no such name. The evaluation has
    val, or test; where there are both, test stays for the end. Where there is only one kind of
    part, 80% of its images train and 20% are evaluated.

    Args:
        found: the data set.
        name: how its parts' names begin.
    """
    by_purpose: dict[str, list[FoundPart]] = {}
    for part in found.parts:
        by_purpose.setdefault(part.purpose, []).append(part)
    # Images of trainval are those of train and val.
    if "train" in by_purpose and ("val" in by_purpose or "test" in by_purpose):
        by_purpose.pop("trainval", None)
    elif "trainval" in by_purpose:
        by_purpose.pop("train", None)
        by_purpose.pop("val", None)
    train = by_purpose.get("train") or by_purpose.get("trainval") or by_purpose.get("") or []
    test = by_purpose.get("val") or by_purpose.get("test") or []
    if not train or not test:
        return _split(train or test or found.parts, found, name)
    parts = [x for purpose in _ORDER for x in by_purpose.get(purpose, [])]
    names = _names(parts, name)
    entries = [_entry(x, n, found) for x, n in zip(parts, names, strict=True)]
    trains = [n for x, n in zip(parts, names, strict=True) if x in train]
    tests = [n for x, n in zip(parts, names, strict=True) if x in test]
    kept = [n for n in names if n not in (*trains, *tests)]
    note = f"splits found: training on {', '.join(trains)}, evaluation on {', '.join(tests)}"
    note += f"; declared and left for the end: {', '.join(kept)}" if kept else ""
    return Declared(entries, trains, tests, [note])


def _split(parts: list[FoundPart], found: FoundData, name: str) -> Declared:
    entries: list[dict] = []
    train: list[str] = []
    test: list[str] = []
    for part, stem in zip(parts, _names(parts, name, with_purpose=False), strict=True):
        for purpose, names, share in (
            ("train", train, [0.0, _TRAIN_SHARE]),
            ("val", test, [_TRAIN_SHARE, 1.0]),
        ):
            names.append(f"{stem}_{purpose}")
            entries.append({**_entry(part, names[-1], found), "PART": share})
    note = (
        f"no split found: {_TRAIN_SHARE:.0%} of the images train and the others are evaluated, in "
        "a fixed random order of their names (PART); the same at every call"
    )
    return Declared(entries, train, test, [note])


def _names(parts: list[FoundPart], name: str, *, with_purpose: bool = True) -> list[str]:
    names: list[str] = []
    for part in parts:
        stem = f"{name}_{part.purpose}" if with_purpose and part.purpose else name
        count = sum(re.sub(r"_\d+$", "", x) == stem for x in names)
        names.append(f"{stem}_{count + 1}" if count else stem)
    return names


def _entry(part: FoundPart, name: str, found: FoundData) -> dict:
    entry = {"NAME": name, **part.entry}
    return entry if part.entry["FORMAT"] == "coco" else {**entry, "CLASSES": list(found.classes)}


def name_of(path: str) -> str:
    """A name for the data set in a folder or file, of letters, digits and underscores."""
    stem = os.path.splitext(os.path.basename(os.path.abspath(path)))[0]
    if os.path.isfile(path):
        stem = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return re.sub(r"\W+", "_", stem).strip("_").lower() or "data"
