# SPDX-License-Identifier: Apache-2.0
"""
Data sets in YOLO's form: a text file for each image.

A line is one object: the index of its class, then x and y of the centre, width and height, as
shares of the image's width and height. An empty file, or none, is an image without objects:

    dataset/data.yaml            names: [RBC, WBC], train: images/train, val: images/val
    dataset/images/train/a.jpg
    dataset/labels/train/a.txt   1 0.2765 0.8281 0.3407 0.3458
"""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import yaml
from detectron2.structures import BoxMode

from .box_fitter import BoxFitter
from .image_files import image_size, is_image, list_images
from .register_data_set import register_data_set

CONFIG_NAMES = ("data.yaml", "config.yaml", "dataset.yaml", "data.yml", "config.yml")
SPLITS = ("train", "val", "test")
# More is no box that reaches outside, but pixels.
_LARGEST_SHARE = 1.5


class YOLOObject(NamedTuple):
    """class_index: from 0. box: XYXY in pixels, not clipped. line: in the file, from 1."""

    class_index: int
    box: list[float]
    line: int


def find_config(root: str) -> str | None:
    """Path of the yaml of a data set in its folder, or None."""
    paths = (os.path.join(root, name) for name in CONFIG_NAMES)
    return next((x for x in paths if os.path.isfile(x)), None)


def read_config(path: str) -> dict:
    """
    The yaml of a data set, with `names` as a list.

    Raises:
        FileNotFoundError, ValueError: no such file, no yaml, or no `names`; the message names it.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Config of a YOLO data set not found: {path}")
    with open(path, encoding="utf-8") as f:
        try:
            content = yaml.safe_load(f)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: no readable yaml ({' '.join(str(error).split())})") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not (isinstance(names, list) and names and all(isinstance(x, str | int) for x in names)):
        raise ValueError(
            f"{path}: expected names, a list of classes or a dictionary from 0 on, got {names!r}"
        )
    return {**content, "names": [str(x) for x in names]}


def split_images(root: str, split: str) -> list[str]:
    """
    Paths of the images of a split.

    Args:
        root: folder of the data set.
        split: "train", "val" or "test", a key of the yaml in `root`; or below `root` a folder of
            images ("." for all) or a list of their paths that ends in .txt.

    Raises:
        FileNotFoundError, ValueError: no such folder or list, or one without an image.
    """
    config = find_config(root) if split in SPLITS else None
    folder, places = root, [split]
    if config is not None:
        content = read_config(config)
        given = content.get(split) or content.get({"val": "valid"}.get(split, ""))
        if not given:
            raise ValueError(f"{config}: expected the key {split!r}, got {sorted(content)}")
        places = given if isinstance(given, list) else [given]
        folder = os.path.join(root, str(content.get("path") or ""))
    images = []
    for place in places:
        images += _images_at(_resolve(str(place), (folder, root), config or root))
    return images


def _resolve(place: str, folders: Sequence[str], source: str) -> str:
    # Archives of Roboflow say ../train/images where train/images is meant.
    inside = place
    while inside.startswith("../"):
        inside = inside[3:]
    paths = [os.path.normpath(os.path.join(x, y)) for y in (place, inside) for x in folders]
    for path in paths:
        if os.path.exists(path):
            return path
    raise FileNotFoundError(f"{source}: images not found: {', '.join(dict.fromkeys(paths))}")


def _images_at(path: str) -> list[str]:
    """Of a folder, or of a list of paths that are relative to it or to where the process runs."""
    if os.path.isdir(path):
        images = list_images(path)
    else:
        with open(path, encoding="utf-8-sig") as f:
            lines = [x.strip() for x in f if x.strip()]
        folder = os.path.dirname(path)
        images = [x if os.path.isfile(x) else os.path.join(folder, x) for x in lines]
        for number, image in enumerate(images, 1):
            if not is_image(image):
                raise ValueError(f"{path}:{number}: expected the path of an image, got {image!r}")
    if not images:
        raise ValueError(f"{path}: no image")
    return images


def label_file(image: str) -> str:
    """
    The labels of an image: in `labels` in place of the last folder `images`, or beside it.

    Args:
        image: its path.
    """
    folder, name = os.path.split(image)
    parts = folder.split(os.sep)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return os.path.join(os.sep.join(parts), os.path.splitext(name)[0] + ".txt")


def read_labels(path: str, num_classes: int, size: tuple[int, int]) -> list[YOLOObject]:
    """
    The objects in a label file; none where there is no such file.

    Outlines (class, x1, y1, x2, y2, x3, y3, ..) become the boxes around them.

    Args:
        path: of the file.
        num_classes: indices of classes are below it.
        size: width and height of the image in pixels.

    Raises:
        ValueError: a malformed line; the message begins with file and line.
    """
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8-sig") as f:
        try:
            lines = f.read().splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected text in UTF-8 ({error})") from error
    return [
        _parse(line, f"{path}:{number}", number, num_classes, size)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _parse(
    line: str, where: str, number: int, num_classes: int, size: tuple[int, int]
) -> YOLOObject:
    try:
        values = [float(x) for x in line.split()]
    except ValueError:
        values = []
    is_box = len(values) == 5
    is_outline = len(values) >= 7 and len(values) % 2 == 1
    if not (is_box or is_outline) or not all(map(math.isfinite, values)):
        raise ValueError(f"{where}: expected class, x, y, width, height, got {line[:80]!r}")
    if values[0] not in range(num_classes):
        raise ValueError(
            f"{where}: expected a class from 0 to {num_classes - 1}, got {line.split()[0]}"
        )
    for value in values[1:]:
        if not 1 - _LARGEST_SHARE <= value <= _LARGEST_SHARE:
            raise ValueError(f"{where}: expected shares of the image from 0 to 1, got {value:g}")
    return YOLOObject(int(values[0]), _to_box(values[1:], size, is_box), number)


def _to_box(values: list[float], size: tuple[int, int], is_box: bool) -> list[float]:
    width, height = size
    if is_box:
        x, y, w, h = values
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    else:
        xs, ys = values[::2], values[1::2]
        box = [min(xs), min(ys), max(xs), max(ys)]
    return [side * share for side, share in zip([width, height] * 2, box, strict=True)]


def load_yolo(root: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """
    Dataset dicts of a split (see :func:`split_images`).

    Boxes that reach outside by more than half a pixel are clipped, those of zero area dropped, with
    one warning that counts them.

    Args:
        root: folder of the data set.
        split: as for :func:`split_images`.
        class_names: in the order of their indices.

    Returns:
        Detectron2's dataset dicts; the id of an image is its path below `root`.

    Raises:
        FileNotFoundError, ValueError: as :func:`split_images` and :func:`read_labels`.
        ImageError: an image that is missing or none.
    """
    fitter = BoxFitter()
    records = []
    for image in split_images(root, split):
        size = image_size(image)
        image_id = os.path.relpath(image, root)
        annotations = []
        for item in read_labels(label_file(image), len(class_names), size):
            box = fitter.fit(item.box, *size, image_id)
            if box is not None:
                annotations.append(to_annotation(item.class_index, box))
        records.append(to_record(image, image_id, size, annotations))
    fitter.warn(os.path.join(root, split))
    return records


def to_annotation(class_index: int, box: list[float]) -> dict:
    """Detectron2's annotation of an object that is neither difficult nor a crowd."""
    return {
        "category_id": class_index,
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "difficult": 0,
        "iscrowd": 0,
    }


def to_record(image: str, image_id: str, size: tuple[int, int], annotations: list[dict]) -> dict:
    """Detectron2's dataset dict of an image; `size` is width and height."""
    return {
        "file_name": image,
        "image_id": image_id,
        "width": size[0],
        "height": size[1],
        "annotations": annotations,
    }


def register_yolo(
    name: str, root: str, split: str, class_names: Sequence[str], ap_type: str = "area"
) -> None:
    """
    Registers a data set in YOLO's form, in place of one of the same name; files are read later.

    Args:
        name: of the data set.
        root: its folder.
        split: as for :func:`split_images`.
        class_names: in the order of their indices.
        ap_type: the AP that the data set is judged by.
    """
    register_data_set(
        name,
        lambda: load_yolo(root, split, class_names),
        thing_classes=list(class_names),
        ap_type=ap_type,
        yolo_split=(root, split),
    )
