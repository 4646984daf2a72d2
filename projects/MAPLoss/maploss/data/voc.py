# SPDX-License-Identifier: Apache-2.0
"""Data sets in PASCAL VOC's layout, with the `difficult` flag that Detectron2's loader drops."""

import logging
import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

logger = logging.getLogger(__name__)


def load_voc(root: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """
    Dataset dicts of `root`/ImageSets/Main/`split`.txt, in its order.

    A box in the file counts pixels inclusively from 1; here it becomes continuous,
    (xmin - 1, ymin - 1, xmax, ymax). Boxes that reach outside their image are clipped and those of
    zero area (xmin >= xmax, or outside altogether) dropped, with one warning that counts them.

    Args:
        root: folder with Annotations, ImageSets and JPEGImages. class_names: all classes, in the
            order of their indices.

    Returns:
        Detectron2's dataset dicts; each annotation has `difficult`, 0 or 1.

    Raises:
        FileNotFoundError: the split or an annotation file does not exist.
        ValueError: an empty split, a malformed file, or a class that is not in `class_names`; the
            message names the file.
    """
    split_file = os.path.join(root, "ImageSets", "Main", f"{split}.txt")
    if not os.path.isfile(split_file):
        raise FileNotFoundError(f"Split {split!r} not found: {split_file}")
    with open(split_file) as f:
        image_ids = [line.split()[0] for line in f if line.strip()]
    if not image_ids:
        raise ValueError(f"Empty split: {split_file} lists no image")
    class_index = {name: i for i, name in enumerate(class_names)}
    flawed: dict[str, list[str]] = {"clipped": [], "dropped": []}
    records = [_load_image(root, image_id, class_index, flawed) for image_id in image_ids]
    if any(flawed.values()):
        examples = ", ".join(dict.fromkeys(flawed["dropped"] + flawed["clipped"]))
        logger.warning(
            f"{split_file}: {len(flawed['clipped'])} boxes reached outside their image and were "
            f"clipped, {len(flawed['dropped'])} of zero area were dropped ({examples[:200]})"
        )
    return records


def _load_image(
    root: str, image_id: str, class_index: dict[str, int], flawed: dict[str, list[str]]
) -> dict:
    """Dataset dict of one image; adds the image id to `flawed` for each box clipped or dropped."""
    path = os.path.join(root, "Annotations", f"{image_id}.xml")
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Annotation file of image {image_id!r} not found: {path}"
        ) from None
    except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:
        raise ValueError(f"Cannot read annotation file {path}: {error}") from error
    width, height = (
        int(_number(tree, f"size/{key}", path, at_least=1)) for key in ("width", "height")
    )
    annotations = []
    for element in tree.findall("object"):
        name = (element.findtext("name") or "").strip()
        if name not in class_index:
            raise ValueError(
                f"Unknown class {name!r} in {path}; expected one of {tuple(class_index)}"
            )
        x1, y1, x2, y2 = (
            _number(element, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        box = [x1 - 1, y1 - 1, x2, y2]
        limits = [width, height] * 2
        clipped = [min(max(v, 0.0), limit) for v, limit in zip(box, limits, strict=True)]
        # xmin == xmax would be one pixel wide; what is annotated so is a click without a drag.
        if x2 <= x1 or y2 <= y1 or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            flawed["dropped"].append(image_id)
            continue
        if clipped != box:
            flawed["clipped"].append(image_id)
        annotations.append(
            {
                "category_id": class_index[name],
                "bbox": clipped,
                "bbox_mode": BoxMode.XYXY_ABS,
                "difficult": int((element.findtext("difficult") or "0").strip() == "1"),
                "iscrowd": 0,
            }
        )
    return {
        "file_name": os.path.join(root, "JPEGImages", f"{image_id}.jpg"),
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": annotations,
    }


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
    name: str, root: str, split: str, class_names: Sequence[str], ap_type: str = "area"
) -> None:
    """
    Registers a data set in VOC's layout, in place of one of the same name; files are read later.

    Args:
        ap_type: the AP that the data set is judged by, "voc07" (VOC 2007) or "area".
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    old = MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, lambda: load_voc(root, split, class_names))
    # Detectron2's own evaluator of VOC needs dirname, split and year; a year that is known stays.
    known = {"year": old.year} if old is not None and hasattr(old, "year") else {}
    MetadataCatalog.get(name).set(
        thing_classes=list(class_names), ap_type=ap_type, dirname=root, split=split, **known
    )
