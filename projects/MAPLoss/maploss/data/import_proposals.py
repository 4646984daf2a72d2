# SPDX-License-Identifier: Apache-2.0
"""Proposal files out of archives: .npz, and the .mat files released with Fast R-CNN."""

import os
from collections.abc import Sequence

import numpy as np
import scipy.io

from .proposals import as_boxes, check_covered, check_different, write_proposals

EXTENSIONS = (".npz", ".mat")


def import_proposals(archive: str, path: str, image_ids: Sequence) -> None:
    """
    Writes the windows of `image_ids`, out of an archive, as a proposal file.

    Args:
        archive: an .npz with `ids` (n,) str, `counts` (n,) integers, and `boxes` (sum of counts,
            4), XYXY pixels with x2 and y2 exclusive, best first within each image; or a .mat as
            released with Fast R-CNN, with `images`, n names, and `boxes`, n arrays (m, 4) of
            y1 x1 y2 x2 in pixels that count from 1, y2 and x2 inclusive. path: of the file (.pkl).

    Raises:
        ValueError: no such archive, or it lacks an image; the message names it and the file.
        FileNotFoundError: no such file.
    """
    readers = dict(zip(EXTENSIONS, (_read_npz, _read_mat), strict=True))
    extension = os.path.splitext(archive)[1]
    if extension not in readers:
        raise ValueError(f"{archive}: expected a file that ends in one of {EXTENSIONS}")
    ids, boxes = readers[extension](archive)
    check_different(ids, archive)
    index_of = {image_id: i for i, image_id in enumerate(ids)}
    check_covered(image_ids, index_of, archive)
    write_proposals(path, image_ids, (boxes[index_of[str(image_id)]] for image_id in image_ids))


def _read_npz(path: str) -> tuple[list[str], list[np.ndarray]]:
    """Image ids, and the boxes of each."""
    keys = ("ids", "counts", "boxes")
    with open(path, "rb") as f:
        try:
            archive = np.load(f)
            missing = set(keys) - set(archive)
            arrays = [] if missing else [archive[key] for key in keys]
        except Exception as error:  # bytes that are no archive can raise almost anything
            raise ValueError(f"{path}: not a readable archive ({error!r})") from error
    if missing:
        raise ValueError(f"{path}: expected arrays ids, counts, boxes; lacks {sorted(missing)}")
    ids, counts, boxes = arrays
    if ids.ndim != 1 or counts.ndim != 1 or boxes.ndim != 2 or boxes.shape[1] != 4:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{path}: expected ids (n,), counts (n,), boxes (m, 4), got {shapes}")
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"{path}: expected counts that are integers >= 0, got {counts[:8]}")
    if len(ids) != len(counts) or int(counts.sum()) != len(boxes):
        raise ValueError(
            f"{path}: expected one count per id and as many boxes as the counts' sum, got "
            f"{len(ids)} ids, {len(counts)} counts of sum {int(counts.sum())}, {len(boxes)} boxes"
        )
    if boxes.dtype.kind not in "iuf" or not np.isfinite(boxes).all():
        raise ValueError(f"{path}: expected boxes of finite numbers, got some that are not")
    ends = np.cumsum(counts, dtype=np.int64)
    names = [x.decode() if isinstance(x, bytes) else str(x) for x in ids]
    return names, np.split(boxes, ends[:-1])


def _read_mat(path: str) -> tuple[list[str], list[np.ndarray]]:
    """Image ids, and the boxes of each as XYXY with x2 and y2 exclusive."""
    try:
        archive = scipy.io.loadmat(path, variable_names=("images", "boxes"))
    except FileNotFoundError:
        raise
    except Exception as error:  # bytes that are no archive can raise almost anything
        raise ValueError(f"{path}: not a readable .mat file ({error!r})") from error
    missing = {"images", "boxes"} - set(archive)
    if missing:
        raise ValueError(f"{path}: expected images and boxes; lacks {sorted(missing)}")
    # Cells, each with an array in it.
    ids = [
        str(np.ravel(cell)[0]).strip() if np.size(cell) else ""
        for cell in archive["images"].ravel()
    ]
    cells = archive["boxes"].ravel()
    if len(ids) != len(cells):
        raise ValueError(f"{path}: expected boxes for {len(ids)} images, got {len(cells)}")
    boxes = []
    for image_id, cell in zip(ids, cells, strict=True):
        try:
            given = as_boxes(cell)
            if not np.isfinite(given).all():
                raise ValueError("expected boxes of finite numbers, got some that are not")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: image {image_id!r}: {error}") from error
        boxes.append(given[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0], dtype=given.dtype))
    return ids, boxes
