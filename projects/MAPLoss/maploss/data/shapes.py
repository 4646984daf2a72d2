# SPDX-License-Identifier: Apache-2.0
"""
The embedded data set: `shapes_train` and `shapes_val`, rendered at first use and then cached.

A folder of the cache holds the images (PNG), `annotations.json` and `proposals.pkl`.
"""

import functools
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .cache import cache_root, new_folder
from .proposal_files import register_proposals
from .proposals import write_proposals
from .selective_search import selective_search
from .shapes_render import CLASS_NAMES, render_image

logger = logging.getLogger(__name__)

VERSION = 2  # raised with every change of the pixels or windows; names the folder in the cache
SHAPES_SIZES = {"shapes_train": 600, "shapes_val": 200}
# The objects are small and sharp: finer segments and less blur than for photographs.
_SEARCH = {"base_k": 30, "inc_k": 60, "sigma": 0.5}


def make_shapes(folder: str, seed: int, num_images: int) -> None:
    """
    Renders a shapes data set into `folder`, which must not exist, in one step.

    The folder appears when all is done. A process that is killed leaves nothing that counts, and
    of several processes one does the work. Uses all cores.

    Args:
        seed: the data set; the i-th image depends on (VERSION, seed, i) only.
    """
    with new_folder(folder) as temporary:
        if temporary is None:
            return
        start = time.perf_counter()
        logger.info(f"Preparing {num_images} images and their proposals in {folder} (first use)")
        os.mkdir(os.path.join(temporary, "images"))
        render = functools.partial(_make_image, temporary, seed)
        records, proposals = [], []
        # OpenCV lets go of the interpreter's lock, so threads use all cores.
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for record, boxes in pool.map(render, range(num_images)):
                records.append(record)
                proposals.append(boxes)
                if len(records) % 100 == 0:
                    seconds = time.perf_counter() - start
                    logger.info(f"{len(records)} of {num_images} images, {seconds:.0f} s")
        with open(os.path.join(temporary, "annotations.json"), "w") as f:
            json.dump(records, f)
        write_proposals(
            os.path.join(temporary, "proposals.pkl"), [r["image_id"] for r in records], proposals
        )


def _make_image(folder: str, seed: int, index: int) -> tuple[dict, np.ndarray]:
    image, objects = render_image((VERSION, seed, index))
    name = f"{index:06d}"
    file_name = os.path.join("images", f"{name}.png")
    if not cv2.imwrite(os.path.join(folder, file_name), image):
        raise OSError(f"Cannot write image {os.path.join(folder, file_name)}")
    annotations = [
        {"category_id": o.class_id, "bbox": o.box, "difficult": int(o.difficult)} for o in objects
    ]
    record = {
        "file_name": file_name,
        "image_id": name,
        "height": image.shape[0],
        "width": image.shape[1],
        "annotations": annotations,
    }
    return record, selective_search(image, **_SEARCH)


def load_shapes(folder: str) -> list[dict]:
    """Dataset dicts of a folder that :func:`make_shapes` made; annotations have `difficult`."""
    with open(os.path.join(folder, "annotations.json")) as f:
        records = json.load(f)
    for record in records:
        record["file_name"] = os.path.join(folder, record["file_name"])
        for annotation in record["annotations"]:
            annotation["bbox_mode"] = BoxMode.XYXY_ABS
            annotation["iscrowd"] = 0
    return records


def shapes_folder(name: str) -> str:
    """Folder of `shapes_train` or `shapes_val` in the cache; made if it does not exist."""
    if name not in SHAPES_SIZES:
        raise ValueError(f"name: expected one of {tuple(SHAPES_SIZES)}, got {name!r}")
    folder = os.path.join(cache_root(), f"shapes-v{VERSION}", name)
    make_shapes(folder, list(SHAPES_SIZES).index(name), SHAPES_SIZES[name])
    return folder


def shapes_proposal_file(name: str) -> str:
    """Proposal file of `shapes_train` or `shapes_val`; made if it does not exist."""
    return os.path.join(shapes_folder(name), "proposals.pkl")


def register_shapes() -> None:
    """Registers `shapes_train` and `shapes_val`; nothing is rendered before the first use."""
    for name in SHAPES_SIZES:
        if name in DatasetCatalog:
            continue
        DatasetCatalog.register(name, lambda name=name: load_shapes(shapes_folder(name)))
        MetadataCatalog.get(name).set(thing_classes=list(CLASS_NAMES), ap_type="area")
        register_proposals(name, functools.partial(shapes_proposal_file, name))
