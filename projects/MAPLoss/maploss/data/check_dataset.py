# SPDX-License-Identifier: Apache-2.0
"""Reads a whole data set, images too, and lists all that is wrong with it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from .box_fitter import TOLERANCE, BoxFitter, overhang
from .coco import coco_problems, read_coco
from .csv_boxes import CSVBox, fitting_box, image_path, read_csv
from .image_files import image_size
from .images import ImageError, read_image
from .voc import VOCFolders, read_split, read_voc_annotation
from .yolo import label_file, read_labels, split_images


def check_dataset(name: str) -> Iterator[str]:
    """
    What is wrong with a registered data set, one line each, as it is found.

    Raises:
        FileNotFoundError, ValueError: it cannot be read at all, or it is of no known form.
    """
    metadata = MetadataCatalog.get(name)
    if hasattr(metadata, "json_file"):
        return check_coco(metadata.json_file, metadata.image_root)
    if hasattr(metadata, "voc_folders"):
        return check_voc(metadata.voc_folders, metadata.split, metadata.thing_classes)
    if hasattr(metadata, "yolo_split"):
        root, split = metadata.yolo_split
        return check_yolo(root, split, metadata.thing_classes)
    if hasattr(metadata, "csv_table"):
        path, image_root = metadata.csv_table
        return check_csv(path, image_root, metadata.thing_classes)
    raise ValueError(f"{name!r} is of none of the forms voc, coco, yolo and csv")


def check_voc(folders: VOCFolders, split: str, class_names: Sequence[str]) -> Iterator[str]:
    """
    What is wrong with a split of a data set in VOC's layout, one line each, as it is found.

    Looks for files that are missing, unreadable images, malformed XML, unknown classes, boxes of
    zero area or outside their image, sizes that differ between XML and image, images that the split
    lists twice, and, in the whole folder, XML without its image.

    Raises:
        FileNotFoundError, ValueError: no split, or an empty one.
    """
    image_ids = read_split(folders, split)
    yield from _repeated(image_ids, f"split {split!r}")
    folder = os.path.join(folders.root, folders.annotations)
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        stem, extension = os.path.splitext(name)
        if extension == ".xml" and not os.path.isfile(folders.image_file(stem)):
            yield f"{os.path.join(folder, name)}: no image {folders.image_file(stem)}"

    def check(image_id: str) -> list[str]:
        path = folders.annotation_file(image_id)
        try:
            annotation = read_voc_annotation(path)
        except (OSError, ValueError) as error:
            return [str(error), *_image_problems(folders.image_file(image_id), None)]
        size = (annotation.width, annotation.height)
        problems = []
        for number, item in enumerate(annotation.objects, 1):
            where = f"{path}: object {number} ({item.name})"
            if item.name not in class_names:
                problems.append(f"{where}: unknown class")
            problems += _box_problems(where, item.box, size)
        return problems + _image_problems(folders.image_file(image_id), size)

    yield from _in_threads(check, dict.fromkeys(image_ids))


def check_coco(json_file: str, image_root: str) -> Iterator[str]:
    """
    What is wrong with a data set in COCO's form, one line each, as it is found.

    Looks for missing keys, entries of unknown images or classes, ids that come twice, missing and
    unreadable images, sizes that differ, boxes of zero area or outside their image.

    Raises:
        FileNotFoundError, ValueError: no such file, or no json.
    """
    content = read_coco(json_file)
    problems = [f"{json_file}: {problem}" for problem in coco_problems(content)]
    yield from problems
    if problems:
        return
    images = {image["id"]: image for image in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        image = images[annotation["image_id"]]
        where = f"{json_file}: entry {number} of 'annotations' (image {image['file_name']})"
        box = BoxMode.convert(annotation["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        yield from _box_problems(where, box, (image["width"], image["height"]))

    def check(image: dict) -> list[str]:
        path = os.path.join(image_root, image["file_name"])
        return _image_problems(path, (image["width"], image["height"]))

    yield from _in_threads(check, images.values())


def check_yolo(root: str, split: str, class_names: Sequence[str]) -> Iterator[str]:
    """
    What is wrong with a split in YOLO's form, one line each, as it is found.

    Looks for missing and unreadable images, malformed lines, unknown classes, boxes of zero area or
    outside their image, images that are listed twice.

    Raises:
        FileNotFoundError, ValueError: no such split, or an empty one.
    """
    images = split_images(root, split)
    yield from _repeated(images, f"split {split!r}")

    def check(image: str) -> list[str]:
        problems = _image_problems(image, None)
        if problems:
            return problems
        size, path = image_size(image), label_file(image)
        try:
            objects = read_labels(path, len(class_names), size)
        except ValueError as error:
            return [str(error)]
        for item in objects:
            where = f"{path}:{item.line} ({class_names[item.class_index]})"
            problems += _box_problems(where, item.box, size)
        return problems

    yield from _in_threads(check, dict.fromkeys(images))


def check_csv(path: str, image_root: str, class_names: Sequence[str]) -> Iterator[str]:
    """
    What is wrong with a table of boxes, one line each, as it is found.

    Looks for missing and unreadable images, unknown classes, boxes of zero area or outside their
    image.

    Raises:
        FileNotFoundError, ValueError: no such file, or a malformed row.
    """
    table = read_csv(path)

    def check(group: tuple[str, list[CSVBox]]) -> list[str]:
        file, rows = group
        image = image_path(image_root, file)
        problems = _image_problems(image, None)
        size = None if problems else image_size(image)
        for row in rows:
            where = f"{path}:{row.line} ({row.class_name})"
            if row.class_name not in class_names:
                problems.append(f"{where}: unknown class")
            if size is not None:
                problems += _box_problems(where, fitting_box(row, size, table.is_relative), size)
        return problems

    yield from _in_threads(check, table.by_file().items())


def _in_threads(check: Callable[..., list[str]], items: Iterable) -> Iterator[str]:
    # Decoding lets go of the interpreter's lock, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for problems in pool.map(check, items):
            yield from problems


def _repeated(names: Sequence[str], where: str) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{where}: image {name!r} is listed twice"
        seen.add(name)


def _box_problems(where: str, box: Sequence[float], size: tuple[int, int]) -> list[str]:
    fitter = BoxFitter()
    fitter.fit(box, *size, image_id=where)
    if fitter.dropped:
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            return [f"{where}: box of zero area"]
        return [f"{where}: box outside its image, by {overhang(box, *size):.1f} pixels"]
    beyond = overhang(box, *size)
    if beyond > TOLERANCE:
        return [f"{where}: box reaches outside its image by {beyond:.1f} pixels"]
    return []


def _image_problems(path: str, size: tuple[int, int] | None) -> list[str]:
    """Reads the whole image, as training does; `size` is the width and height it should have."""
    if not os.path.isfile(path):
        return [f"{path}: no such image"]
    try:
        height, width = read_image(path).shape[:2]
    except ImageError as error:
        return [str(error)]
    if size is not None and (width, height) != tuple(size):
        return [f"{path}: {width} x {height} pixels, annotated as {size[0]} x {size[1]}"]
    return []
