# SPDX-License-Identifier: Apache-2.0
"""Reads a whole data set, images too, and lists all that is wrong with it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from detectron2.structures import BoxMode

from .box_fitter import BoxFitter
from .coco import coco_problems, read_coco
from .images import ImageError, read_image
from .voc import read_split, read_voc_annotation, voc_annotation_file, voc_image_file


def check_voc(root: str, split: str, class_names: Sequence[str]) -> Iterator[str]:
    """
    What is wrong with a split of a data set in VOC's layout, one line each, as it is found.

    Looks for files that are missing, unreadable images, malformed XML, unknown classes, boxes of
    zero area or outside their image, sizes that differ between XML and image, images that the split
    lists twice, and, in the whole folder, XML without its image.

    Raises:
        FileNotFoundError, ValueError: no split, or an empty one.
    """
    image_ids = read_split(root, split)
    yield from _repeated(image_ids, f"split {split!r}")
    folder = os.path.join(root, "Annotations")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        stem, extension = os.path.splitext(name)
        if extension == ".xml" and not os.path.isfile(voc_image_file(root, stem)):
            yield f"{os.path.join(folder, name)}: no image {voc_image_file(root, stem)}"

    def check(image_id: str) -> list[str]:
        path = voc_annotation_file(root, image_id)
        try:
            annotation = read_voc_annotation(path)
        except (OSError, ValueError) as error:
            return [str(error), *_image_problems(voc_image_file(root, image_id), None)]
        size = (annotation.width, annotation.height)
        problems = []
        for number, item in enumerate(annotation.objects, 1):
            where = f"{path}: object {number} ({item.name})"
            if item.name not in class_names:
                problems.append(f"{where}: unknown class")
            problems += _box_problems(where, item.box, size)
        return problems + _image_problems(voc_image_file(root, image_id), size)

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
        return [f"{where}: box {'of zero area' if x2 <= x1 or y2 <= y1 else 'outside its image'}"]
    return [f"{where}: box reaches outside its image"] if fitter.clipped else []


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
