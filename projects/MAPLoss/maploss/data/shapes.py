# SPDX-License-Identifier: Apache-2.0
"""
The embedded data set: `shapes_train` and `shapes_val`, rendered at first use and then cached.

`shapes_search_train` and `shapes_search_val` are the first 450 and the last 150 images of
`shapes_train`: what is chosen by the second is not chosen on `shapes_val`.

A folder of the cache holds the images (PNG), `annotations.json` and `proposals.npz`.
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

from ..layers.selective_search import selective_search
from ..utils.atomic_files import new_folder
from .cache_root import cache_root
from .proposal_files import register_proposals
from .proposals import write_proposals
from .shapes_render import CLASS_NAMES, render_image

logger = logging.getLogger(__name__)

VERSION = 2  # raised with every change of the pixels or windows; names the folder in the cache
SHAPES_SIZES = {"shapes_train": 600, "shapes_val": 200}
# Parts of these: of which, and which images.
SHAPES_PARTS = {
    "shapes_search_train": ("shapes_train", slice(450)),
    "shapes_search_val": ("shapes_train", slice(450, None)),
}


def make_shapes(folder: str, seed: int, num_images: int) -> None:
    """
    Renders a shapes data set into `folder`, which must not exist, in one step.

    The folder appears when all is done. A process that is killed leaves nothing that counts, and
    of several processes one does the work. Uses all cores.

    Args:
        folder: where it is written.
        seed: the data set; the i-th image depends on (VERSION, seed, i) only.
        num_images: how many images it has.
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
            os.path.join(temporary, "proposals.npz"), [r["image_id"] for r in records], proposals
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
    # The objects are small and sharp: finer segments and less blur than for photographs.
    return record, selective_search(image, base_k=30, inc_k=60, sigma=0.5)


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
    folder = os.path.join(cache_root(), f"shapes-v{VERSION}-npz", name)
    make_shapes(folder, list(SHAPES_SIZES).index(name), SHAPES_SIZES[name])
    return folder


def shapes_proposal_file(name: str) -> str:
    """Proposal file of `shapes_train` or `shapes_val`; made if it does not exist."""
    return os.path.join(shapes_folder(name), "proposals.npz")


def register_shapes() -> None:
    """Registers the data sets of shapes; nothing is rendered before the first use."""
    for name in SHAPES_SIZES:
        _register(name, name, slice(None))
    for name, (whole, images) in SHAPES_PARTS.items():
        _register(name, whole, images)


def _register(name: str, whole: str, images: slice) -> None:
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, lambda: load_shapes(shapes_folder(whole))[images])
    MetadataCatalog.get(name).set(thing_classes=list(CLASS_NAMES), ap_type="area")
    register_proposals(name, functools.partial(shapes_proposal_file, whole))
