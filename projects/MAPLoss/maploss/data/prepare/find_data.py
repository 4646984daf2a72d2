# SPDX-License-Identifier: Apache-2.0
"""Recognises the form of a data set."""

import os
from collections import Counter
from collections.abc import Callable

from .find_coco import find_coco
from .find_csv import find_csv
from .find_voc import find_voc
from .find_yolo import find_yolo_config, find_yolo_labels
from .found import FoundData, Tree

# In this order: what says most about itself comes first.
_Finders = tuple[Callable[[Tree], FoundData | None], ...]

_FINDERS: _Finders = (find_yolo_config, find_coco, find_voc, find_csv)
_BY_ENDING: dict[str, _Finders] = {
    ".yaml": (find_yolo_config,),
    ".yml": (find_yolo_config,),
    ".json": (find_coco,),
    ".csv": (find_csv,),
    ".tsv": (find_csv,),
}
_LOOKED_FOR = """\
  VOC:  XML files with <annotation>, images of the same names; ImageSets/Main/train.txt, if there
  COCO: a .json with "images", "annotations" (with "bbox") and "categories"
  YOLO: data.yaml with names, train and val; or images/*.jpg with labels/*.txt (class x y w h)
  CSV:  a .csv with a row for each box (filename, xmin, ymin, xmax, ymax, class)"""


def find_data(path: str) -> FoundData:
    """
    The data set in a folder, or the one that a file in it describes.

    Args:
        path: of the folder, or of a .yaml, .json or .csv.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: none is recognised; the message has what was looked for and what was found.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"No such folder or file: {path}")
    if os.path.isdir(path):
        tree, finders = Tree.read(path), _FINDERS
        described = path
    else:
        tree = Tree.read(os.path.dirname(path))
        others = {x for x in tree.files if x != os.path.basename(path)}
        ending = os.path.splitext(path)[1].lower()
        # Other tables and json files of the folder are not meant.
        kept = tuple(x for x in tree.files if not (x in others and x.lower().endswith(ending)))
        tree, finders = Tree(tree.root, kept), _BY_ENDING.get(ending, ())
        described = path
    found = [x for x in (finder(tree) for finder in finders) if x is not None]
    if not found and finders is _FINDERS:
        # Text files beside images, such as those of a data.yaml that was found, are no other.
        found = [x for x in (find_yolo_labels(tree),) if x is not None]
    if not found:
        raise ValueError(
            f"{described}: no data set recognised. Looked for:\n{_LOOKED_FOR}\nFound: "
            f"{_describe(tree)}"
        )
    first, *others_found = found
    if others_found:
        forms = ", ".join(x.form for x in others_found)
        first.notes.append(f"also found and not used: {forms}; name its file to use it")
    return first


def _describe(tree: Tree) -> str:
    """What lies in a folder, in a line."""
    endings = Counter(os.path.splitext(x)[1].lower() or "no ending" for x in tree.files)
    counts = ", ".join(f"{n} {ending}" for ending, n in endings.most_common(8))
    folders = sorted({x.split(os.sep)[0] for x in tree.files if os.sep in x})
    shown = ", ".join(folders[:8]) + (", .." if len(folders) > 8 else "")
    return f"{counts or 'no file'}" + (f"; folders {shown}" if folders else "")
