# SPDX-License-Identifier: Apache-2.0
"""Makes the proposal file of a data set; killed at any moment, the next call goes on."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from ..layers.checks import check_choice
from ..layers.selective_search import reduced_search, selective_search
from ..utils.atomic_files import new_file, remove_leftovers
from .dense_windows import dense_windows
from .images import read_image
from .proposals import read_proposals, write_proposals

logger = logging.getLogger(__name__)

# On BCCD (10 images of 640 x 480) .6 s an image, in place of 1.0 s at 500 pixels and 1.7 s at full
# size, for the same recall at IoU .5 (82 to 85%) and one point less at .7.
_REDUCED_SIDE = 400

METHODS = ("fast", "quality", "dense", "reduced")


def make_proposals(
    dataset_dicts: Sequence[dict], path: str, method: str = "fast", max_windows: int = 2000
) -> None:
    """
    Writes a proposal file for the images of a data set, with all cores.

    Each image's windows are first a file of their own, in the folder `path`.parts: a process that
    is killed loses the images that it was working on, and the next call goes on with the rest. The
    windows depend on the image and the method only. Does nothing where `path` was made of the same
    images, by name and size of their files, with the same settings.

    Args:
        dataset_dicts: Detectron2's, with `file_name` and `image_id`.
        path: of the file (.npz).
        method: "fast" or "quality" selective search, "reduced": fast on images whose
            longer side is 400 pixels at most, or "dense".
        max_windows: the best so many of an image ("dense": further apart, equally many of each
            shape); 0 for all.

    Raises:
        ValueError: an unknown method, a negative `max_windows`, a file in `path`, or parts, made of
            other images or with other settings.
        OSError: an image that cannot be read, another process that makes the same file.
    """
    check_choice("method", method, METHODS)
    if max_windows < 0:
        raise ValueError(f"max_windows: expected 0 or more, got {max_windows}")
    settings = {"method": method, "max_windows": max_windows}
    keys = [_key(x) for x in dataset_dicts]
    images = hash_images(dataset_dicts)
    made_by = json.dumps({**settings, "images": images})
    if os.path.exists(path):
        if read_proposals(path)["made_by"] != made_by:
            raise ValueError(
                f"{path}: exists, and was not made with {settings} of these images; delete it to "
                "make it anew, or name another file"
            )
        logger.info(f"{path} has windows for all {len(dataset_dicts)} images already")
        shutil.rmtree(f"{path}.parts", ignore_errors=True)
        return
    with _parts_folder(f"{path}.parts", settings) as folder:
        remove_leftovers(path)  # of a process that was killed while it wrote the file
        parts = [os.path.join(folder, f"{key}.npy") for key in keys]
        to_do = [
            (x["file_name"], part)
            for x, part in zip(dataset_dicts, parts, strict=True)
            if not os.path.exists(part)
        ]
        if len(to_do) < len(parts):
            logger.info(f"{len(parts) - len(to_do)} of {len(parts)} images were done before")
        _make_parts(to_do, method, max_windows, num_images=len(parts))
        ids = [x["image_id"] for x in dataset_dicts]
        write_proposals(path, ids, (np.load(part, allow_pickle=False) for part in parts), made_by)
        shutil.rmtree(folder)


@contextlib.contextmanager
def _parts_folder(folder: str, settings: dict) -> Iterator[str]:
    """The folder of what is done, locked: the lock ends with the process, however it ends."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder}: another process is making these windows") from None
        record = os.path.join(folder, "settings.json")
        if os.path.exists(record):
            with open(record) as f:
                begun = json.load(f)
            if begun != settings:
                raise ValueError(
                    f"{folder}: begun with {begun}, now asked for {settings}; delete it to begin "
                    "anew"
                )
        else:
            with new_file(record) as temporary, open(temporary, "w") as f:
                json.dump(settings, f)
        yield folder


def hash_images(dataset_dicts: Sequence[dict]) -> str:
    """Digest of the images of a data set: their ids, and names and sizes of their files."""
    return hashlib.sha256("".join(map(_key, dataset_dicts)).encode()).hexdigest()


def _key(record: dict) -> str:
    """Of an image and its file: ids can hold anything, and other data sets have the same."""
    file_name = record["file_name"]
    size = os.path.getsize(file_name) if os.path.isfile(file_name) else -1
    key = repr((str(record["image_id"]), os.path.basename(file_name), size))
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _make_parts(
    to_do: Sequence[tuple[str, str]], method: str, max_windows: int, num_images: int
) -> None:
    # OpenCV lets go of the interpreter's lock, so threads use all cores.
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        done = pool.map(lambda job: _make_part(job[0], job[1], method, max_windows), to_do)
        progress = tqdm(
            done, "windows", num_images, initial=num_images - len(to_do), unit="image", smoothing=0
        )
        for _ in progress:
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _make_part(file_name: str, part: str, method: str, max_windows: int) -> None:
    image = read_image(file_name)
    if method == "dense":
        windows = dense_windows(image.shape[1], image.shape[0], max_windows)
    elif method == "reduced":
        windows = reduced_search(image, _REDUCED_SIDE)
    else:
        windows = selective_search(np.ascontiguousarray(image), method)
    with new_file(part) as temporary:
        np.save(temporary, windows[: max_windows or None])
