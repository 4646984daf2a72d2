# SPDX-License-Identifier: Apache-2.0
"""Data sets in COCO's form: a json file and a folder of images."""

import json
import math
import os
from collections.abc import Iterator

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .box_fitter import BoxFitter

# Keys without which an entry of each list is of no use.
_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}


def load_coco(json_file: str, image_root: str) -> list[dict]:
    """
    Dataset dicts of a json file in COCO's form, in its order.

    Unlike Detectron2's loader it keeps `difficult` (or `ignore`), says what is wrong with a file,
    and treats boxes as :func:`load_voc` does: what reaches outside is clipped, zero area dropped,
    with one warning that counts them.

    Args:
        image_root: folder to which the file names belong.

    Returns:
        Detectron2's dataset dicts; boxes XYXY in pixels, `difficult` and `iscrowd` 0 or 1, classes
        from 0 in the order of their ids.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no json, a key is missing, no image, or an unknown image or class; the message
            names the file.
    """
    content = read_coco(json_file)
    for problem in coco_problems(content):
        raise ValueError(f"{json_file}: {problem}")
    index_of = _class_indices(content["categories"])
    records = {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
        for image in content["images"]
    }
    fitter = BoxFitter()
    for annotation in content["annotations"]:
        record = records[annotation["image_id"]]
        box = BoxMode.convert(annotation["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        box = fitter.fit(box, record["width"], record["height"], record["image_id"])
        if box is not None:
            record["annotations"].append(
                {
                    "category_id": index_of[annotation["category_id"]],
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "difficult": int(
                        bool(annotation.get("difficult", 0) or annotation.get("ignore", 0))
                    ),
                    "iscrowd": int(bool(annotation.get("iscrowd", 0))),
                }
            )
    fitter.warn(json_file)
    return list(records.values())


def read_coco(json_file: str) -> dict:
    """
    The content of a json file.

    Raises:
        FileNotFoundError, ValueError: no such file, or none that holds a dictionary.
    """
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"Annotation file not found: {json_file}")
    with open(json_file, encoding="utf-8") as f:
        try:
            content = json.load(f)
        except ValueError as error:
            raise ValueError(f"{json_file}: no readable json ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{json_file}: expected a dictionary, got {type(content).__name__}")
    return content


def coco_problems(content: dict) -> Iterator[str]:
    """What makes a file unusable, one line each; nothing where it is in order."""
    broken = [problem for key in _REQUIRED for problem in _entry_problems(content, key)]
    yield from broken
    if broken:
        return
    if not content["images"]:
        yield "lists no image"
    for key in ("images", "categories"):
        seen: set = set()
        for entry in content[key]:
            if entry["id"] in seen:
                yield f"id {entry['id']!r} comes twice in {key!r}"
            seen.add(entry["id"])
    sizes = {x["id"]: (x["width"], x["height"]) for x in content["images"]}
    for image_id, size in sizes.items():
        if not all(_is_number(x) and x >= 1 for x in size):
            yield f"image {image_id!r}: width and height are {size}"
    for image in content["images"]:
        if not isinstance(image["file_name"], str):
            yield f"image {image['id']!r}: file_name is {image['file_name']!r}"
    class_ids = {x["id"] for x in content["categories"]}
    for i, annotation in enumerate(content["annotations"]):
        box = annotation["bbox"]
        if annotation["image_id"] not in sizes:
            yield f"entry {i} of 'annotations': unknown image {annotation['image_id']!r}"
        if annotation["category_id"] not in class_ids:
            yield f"entry {i} of 'annotations': unknown class {annotation['category_id']!r}"
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(x) for x in box)):
            yield f"entry {i} of 'annotations': expected bbox [x, y, width, height], got {box!r}"


def _entry_problems(content: dict, key: str) -> Iterator[str]:
    entries = content.get(key)
    if not isinstance(entries, list):
        yield f"expected a list {key!r}, got {type(entries).__name__}"
        return
    for i, entry in enumerate(entries):
        missing = [x for x in _REQUIRED[key] if not isinstance(entry, dict) or x not in entry]
        if missing:
            yield f"entry {i} of {key!r} has no {missing[0]!r}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _class_indices(categories: list[dict]) -> dict[int, int]:
    """Index of each class from 0, by its id in the file; as Detectron2 counts them."""
    return {class_id: i for i, class_id in enumerate(sorted(x["id"] for x in categories))}


def register_coco(name: str, json_file: str, image_root: str, ap_type: str = "coco101") -> None:
    """
    Registers a data set in COCO's form, in place of one of the same name.

    The names of the classes are read now, the rest later.

    Raises:
        FileNotFoundError, ValueError: no such file, or one without classes.
    """
    content = read_coco(json_file)
    for problem in _entry_problems(content, "categories"):
        raise ValueError(f"{json_file}: {problem}")
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, lambda: load_coco(json_file, image_root))
    index_of = _class_indices(content["categories"])
    names = {index_of[x["id"]]: x["name"] for x in content["categories"]}
    MetadataCatalog.get(name).set(
        thing_classes=[names[i] for i in range(len(names))],
        thing_dataset_id_to_contiguous_id=index_of,
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        ap_type=ap_type,
    )
