# SPDX-License-Identifier: Apache-2.0
"""Data sets in PASCAL VOC's layout, with the `difficult` flag that Detectron2's loader drops."""

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import NamedTuple
from xml.parsers import expat

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from .box_fitter import BoxFitter
from .register_data_set import register_data_set

_YES = ("1", "true", "yes")
# VOC has .jpg only; other data sets of its layout have these.
_OTHER_EXTENSIONS = (".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


class VOCFolders(NamedTuple):
    """Where a data set of XML files has what, as paths below `root`."""

    root: str
    annotations: str = "Annotations"
    images: str = "JPEGImages"

    def annotation_file(self, image_id: str) -> str:
        """The XML file of an image."""
        return os.path.join(self.root, self.annotations, f"{image_id}.xml")

    def image_file(self, image_id: str) -> str:
        """The file of an image: .jpg, or another of these extensions if only that is there."""
        stem = os.path.join(self.root, self.images, image_id)
        others = (stem + x for x in _OTHER_EXTENSIONS)
        default = stem + ".jpg"
        return default if os.path.isfile(default) else next(filter(os.path.isfile, others), default)


def load_voc(folders: VOCFolders, split: str, class_names: Sequence[str]) -> list[dict]:
    """
    Dataset dicts of a split (see :func:`read_split`), in its order.

    A box in the file counts pixels inclusively from 1; here it becomes continuous,
    (xmin - 1, ymin - 1, xmax, ymax). Boxes that reach outside their image are clipped and those of
    zero area (xmin >= xmax, or outside altogether) dropped, with one warning that counts them.

    Args:
        folders: of the annotations and the images.
        split: a name, the path of a list, or "*".
        class_names: all classes, in the order of their indices.

    Returns:
        Detectron2's dataset dicts; each annotation has `difficult`, 0 or 1.

    Raises:
        FileNotFoundError: the split or an annotation file does not exist.
        ValueError: an empty split, a malformed file, or a class that is not in `class_names`; the
            message names the file.
    """
    image_ids = read_split(folders, split)
    class_index = {name: i for i, name in enumerate(class_names)}
    fitter = BoxFitter()
    records = [_load_image(folders, image_id, class_index, fitter) for image_id in image_ids]
    fitter.warn(_split_file(folders, split))
    return records


def _load_image(
    folders: VOCFolders, image_id: str, class_index: dict[str, int], fitter: BoxFitter
) -> dict:
    """Dataset dict of one image."""
    path = folders.annotation_file(image_id)
    annotation = read_voc_annotation(path)
    annotations = []
    for item in annotation.objects:
        if item.name not in class_index:
            raise ValueError(
                f"Unknown class {item.name!r} in {path}; expected one of {tuple(class_index)}"
            )
        box = fitter.fit(item.box, annotation.width, annotation.height, image_id)
        if box is not None:
            annotations.append(
                {
                    "category_id": class_index[item.name],
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "difficult": int(item.is_difficult),
                    "iscrowd": 0,
                }
            )
    return {
        "file_name": folders.image_file(image_id),
        "image_id": image_id,
        "height": annotation.height,
        "width": annotation.width,
        "annotations": annotations,
    }


def read_split(folders: VOCFolders, split: str) -> list[str]:
    """
    The image ids of a split.

    Args:
        folders: of the annotations and the images.
        split: a name that means ImageSets/Main/`split`.txt, the path of a list that ends in .txt,
            or "*" for all XML files. A line of a list is an image's name, with or without its
            extension.

    Raises:
        FileNotFoundError, ValueError: no such file or folder, or one that lists no image.
    """
    split_file = _split_file(folders, split)
    if split == "*":
        names = os.listdir(split_file) if os.path.isdir(split_file) else []
        image_ids = sorted(x[:-4] for x in names if x.endswith(".xml"))
        if not image_ids:
            raise FileNotFoundError(f"No XML file in {split_file}")
        return image_ids
    if not os.path.isfile(split_file):
        raise FileNotFoundError(f"Split {split!r} not found: {split_file}")
    try:
        with open(split_file, encoding="utf-8-sig") as f:
            # The lists of one class have 1, 0 or -1 behind the name.
            image_ids = [re.sub(r"\s+-?[01]$", "", line.strip()) for line in f if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{split_file}: expected text in UTF-8 ({error})") from error
    if not image_ids:
        raise ValueError(f"Empty split: {split_file} lists no image")
    endings = (".jpg", *_OTHER_EXTENSIONS)
    return [os.path.splitext(x)[0] if x.endswith(endings) else x for x in image_ids]


class VOCObject(NamedTuple):
    """box: XYXY in pixels, x2 and y2 exclusive; of zero area where xmin >= xmax in the file."""

    name: str
    box: list[float]
    is_difficult: bool


class VOCAnnotation(NamedTuple):
    """width, height: of the image, as the file has them."""

    width: int
    height: int
    objects: list[VOCObject]


def read_voc_annotation(path: str) -> VOCAnnotation:
    """
    One file of the folder Annotations.

    Raises:
        FileNotFoundError, ValueError: no such file, or a malformed one; the message names it.
    """
    try:
        tree = _parse(path)
    except FileNotFoundError:
        image_id = os.path.splitext(os.path.basename(path))[0]
        raise FileNotFoundError(
            f"Annotation file of image {image_id!r} not found: {path}"
        ) from None
    except (expat.ExpatError, LookupError, OSError, ValueError) as error:
        raise ValueError(f"Cannot read annotation file {path}: {error}") from error
    width, height = (
        int(_number(tree, f"size/{key}", path, at_least=1)) for key in ("width", "height")
    )
    objects = []
    for element in tree.findall("object"):
        x1, y1, x2, y2 = (
            _number(element, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        # xmin == xmax would be one pixel wide; what is annotated so is a click without a drag.
        is_click = x2 <= x1 or y2 <= y1
        objects.append(
            VOCObject(
                name=(element.findtext("name") or "").strip(),
                box=[x1 - 1, y1 - 1] * 2 if is_click else [x1 - 1, y1 - 1, x2, y2],
                is_difficult=(element.findtext("difficult") or "0").strip().lower() in _YES,
            )
        )
    return VOCAnnotation(width, height, objects)


def _parse(path: str) -> ElementTree.Element:
    """
    The root of an XML file without entities and declared attributes.

    A few lines of them can stand for gigabytes, or for other files.
    """

    def refuse(name: str, *_: object) -> None:
        raise ValueError(f"expected no entities, got {name[:40]!r}")

    def refuse_attributes(_: str, name: str, *__: object) -> None:
        raise ValueError(f"expected no declared attributes, got {name[:40]!r}")

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.EntityDeclHandler = parser.SkippedEntityHandler = refuse
    parser.AttlistDeclHandler = refuse_attributes  # a default is in each of the elements
    parser.StartElementHandler = lambda name, _: builder.start(name, {})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    with open(path, "rb") as f:
        parser.ParseFile(f)
    return builder.close()


def _split_file(folders: VOCFolders, split: str) -> str:
    """The file, or folder, that says which images belong to a split."""
    if split == "*":
        return os.path.join(folders.root, folders.annotations)
    if split.endswith(".txt"):
        return os.path.join(folders.root, split)
    return os.path.join(folders.root, "ImageSets", "Main", f"{split}.txt")


def _number(
    element: ElementTree.Element, key: str, path: str, at_least: float = -math.inf
) -> float:
    text = element.findtext(key)
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= at_least):
        raise ValueError(f"Malformed annotation file {path}: {key} is {text!r}")
    return value


def register_voc(
    name: str,
    folders: VOCFolders,
    split: str,
    class_names: Sequence[str],
    ap_type: str = "area",
) -> None:
    """
    Registers a data set in VOC's layout, in place of one of the same name; files are read later.

    Args:
        name: of the data set.
        folders: of the annotations and the images.
        split: as for :func:`read_split`.
        class_names: all classes, in the order of their indices.
        ap_type: the AP that the data set is judged by, "voc07" (VOC 2007) or "area".
    """
    old = MetadataCatalog.pop(name, None)
    # Detectron2's own evaluator of VOC needs dirname, split and year; a year that is known stays.
    known = {"year": old.year} if old is not None and hasattr(old, "year") else {}
    register_data_set(
        name,
        lambda: load_voc(folders, split, class_names),
        thing_classes=list(class_names),
        ap_type=ap_type,
        dirname=folders.root,
        split=split,
        voc_folders=folders,
        **known,
    )
