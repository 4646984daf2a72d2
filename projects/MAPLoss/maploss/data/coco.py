# SPDX-License-Identifier: Apache-2.0
"""Data sets in COCO's form: a json file and a folder of images."""

import json
import os
from collections.abc import Iterator

from detectron2.structures import BoxMode

from ..utils.find_duplicates import find_duplicates
from .box_fitter import BoxFitter
from .register_data_set import register_data_set

# Keys without which an entry of each list is of no use.
_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
# Of coordinates and sizes, in pixels.
_LARGEST = 1e9


def load_coco(json_file: str, image_root: str) -> list[dict]:
    """
    Dataset dicts of a json file in COCO's form, in its order.

    Unlike Detectron2's loader it keeps `difficult` and `area`, says what is wrong with a file, and
    treats boxes as :func:`load_voc` does: what reaches outside is clipped, zero area dropped, with
    one warning that counts them.

    Args:
        json_file: path of the file.
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
                    "difficult": int(bool(annotation.get("difficult", 0))),
                    "iscrowd": int(bool(annotation.get("iscrowd", 0))),
                    # Of the mask, where there is one; COCO's sizes of objects go by it.
                    "area": annotation.get("area", (box[2] - box[0]) * (box[3] - box[1])),
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
        except (RecursionError, ValueError) as error:
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
    # Windows and detections know images by str(id).
    images = [str(x["id"]) for x in content["images"]]
    yield from (f"id {x!r} comes twice in 'images'" for x in find_duplicates(images))
    yield from _category_problems(content["categories"])
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
        area = annotation.get("area", 0)
        if not (_is_number(area) and area >= 0):
            yield f"entry {i} of 'annotations': expected an area of 0 or more, got {area!r}"
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
            continue
        for name in {"id", "image_id", "category_id"} & set(_REQUIRED[key]):
            value = entry[name]
            if not isinstance(value, int | str):
                yield f"entry {i} of {key!r}: expected a number or text as {name!r}, got {value!r}"


def _category_problems(categories: list[dict]) -> Iterator[str]:
    """Of entries that have what is required."""
    if not categories:
        yield "lists no category"
    if len({type(x["id"]) for x in categories}) > 1:
        yield "ids of 'categories' are numbers and texts"
    for i, entry in enumerate(categories):
        if not (isinstance(entry["name"], str) and entry["name"]):
            yield f"entry {i} of 'categories': expected a name, got {entry['name']!r}"
    for key in ("id", "name"):
        values = [x[key] for x in categories if isinstance(x[key], int | str)]
        yield from (f"{key} {x!r} comes twice in 'categories'" for x in find_duplicates(values))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_LARGEST < value < _LARGEST  # integers of json have no limit, floats do


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
    problems = list(_entry_problems(content, "categories"))
    problems = problems or list(_category_problems(content["categories"]))
    if problems:
        raise ValueError(f"{json_file}: {problems[0]}")
    index_of = _class_indices(content["categories"])
    names = {index_of[x["id"]]: x["name"] for x in content["categories"]}
    register_data_set(
        name,
        lambda: load_coco(json_file, image_root),
        thing_classes=[names[i] for i in range(len(names))],
        thing_dataset_id_to_contiguous_id=index_of,
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        ap_type=ap_type,
    )
