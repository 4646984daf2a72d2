# SPDX-License-Identifier: Apache-2.0
"""What was found in a folder: the form of a data set, its splits and its classes."""

import dataclasses
import functools
import os
import re
from collections import defaultdict

from ..image_files import is_image

_WORDS = {
    "trainval": "trainval",
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True)
class FoundPart:
    """purpose: "train", "val", "trainval", "test", or "" where nothing says. entry: of
    DATASETS.DECLARED, without NAME and CLASSES.
    """

    purpose: str
    entry: dict


@dataclasses.dataclass(frozen=True)
class FoundData:
    """form: for people. classes: in the order of their indices. notes: what else to know."""

    form: str
    parts: list[FoundPart]
    classes: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Tree:
    """All files below `root`, as paths relative to it; hidden ones are left out."""

    root: str
    files: tuple[str, ...]

    @classmethod
    def read(cls, root: str) -> "Tree":
        """Walks through a folder, links too."""
        files = []
        for parent, folders, names in os.walk(root, followlinks=True):
            folders[:] = sorted(x for x in folders if x[0] != "." and x != "__MACOSX")
            files += [os.path.relpath(os.path.join(parent, x), root) for x in sorted(names)]
        return cls(root, tuple(x for x in files if os.path.basename(x)[0] != "."))

    def path(self, file: str) -> str:
        """A relative path as one that can be opened."""
        return os.path.join(self.root, file)

    def with_ending(self, *endings: str) -> list[str]:
        """Files with one of these endings, in lower case."""
        return [x for x in self.files if x.lower().endswith(endings)]

    @functools.cached_property
    def images(self) -> list[str]:
        """The images."""
        return [x for x in self.files if is_image(x)]

    @functools.cached_property
    def image_stems(self) -> dict[str, set[str]]:
        """Names of the images without their endings, by folder."""
        stems: dict[str, set[str]] = defaultdict(set)
        for file in self.images:
            folder, name = os.path.split(file)
            stems[folder].add(os.path.splitext(name)[0])
        return dict(stems)


def purpose_of(name: str) -> str:
    """What a file or folder is for, by the words in its name; "" where none says."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((_WORDS[x] for x in reversed(words) if x in _WORDS), "")
