# SPDX-License-Identifier: Apache-2.0
"""
The file of windows (object proposals) that a data set is trained or tested on.

A proposal file is an archive of NumPy's arrays (.npz): `ids` (n,) str, one per image; `counts` (n,)
integers, the windows of each; `boxes` (sum of counts, 4) XYXY pixels, x2 and y2 exclusive, best
first in each image; and `made_by` () str, what :func:`write_proposals` was given.
"""

import logging
import os
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from typing import IO

import numpy as np
from detectron2.structures import BoxMode

from ..utils.atomic_files import new_file
from ..utils.find_duplicates import find_duplicates
from ..utils.warn_once import warn_once

logger = logging.getLogger(__name__)

# What compressed windows may unpack to: 1 GiB, or else so many times their file. Windows of
# selective search compress 3 x, the same 1,000 in each image 110 x, zeros 1,000 x. Those of COCO's
# train2017, 2,000 an image, are 4 GB.
_MAX_UNPACKED, _MAX_RATIO = 2**30, 200


def write_proposals(
    path: str, ids: Sequence, boxes: Iterable[np.ndarray], made_by: str = ""
) -> None:
    """
    Writes a proposal file, in one step: nothing is left where it fails.

    One image's windows are in memory at a time where `boxes` is a generator.

    Args:
        path: of the file (.npz).
        ids: image ids.
        boxes: one (n, 4) XYXY array per image, best first.
        made_by: kept with them.

    Raises:
        ValueError: an array of another shape, or not one per image.
    """
    counts: list[int] = []
    # How many boxes there are stands before them in an archive, but is known only after them.
    with new_file(path) as temporary, open(f"{temporary}.boxes", "w+b") as raw:
        for given in boxes:
            array = as_boxes(given)
            counts.append(len(array))
            raw.write(array.astype("<f4", copy=False).tobytes())
        if len(counts) != len(ids):
            raise ValueError(
                f"boxes: expected one array per image id ({len(ids)}), got {len(counts)}"
            )
        raw.seek(0)
        with zipfile.ZipFile(temporary, "w") as archive:
            _add(archive, "ids", np.array([str(x) for x in ids], dtype=np.str_))
            _add(archive, "counts", np.array(counts, dtype=np.int64))
            _add(archive, "made_by", np.array(made_by))
            with _member(archive, "boxes") as f:
                shape = (sum(counts), 4)
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(f, header)
                shutil.copyfileobj(raw, f)


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with _member(archive, name) as f:
        np.lib.format.write_array(f, array, allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # ZipInfo has a fixed date: the same windows make the same bytes.
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def load_and_check(dataset_dicts: list[dict], path: str) -> list[dict]:
    """
    Attaches the proposals of a proposal file to dataset dicts, checked.

    Windows are clipped to their image, as in training; those of zero area are dropped. One warning
    counts these, and the images without windows. The dicts get `proposal_boxes`, best first,
    `proposal_objectness_logits`, 0, -1, .., which Detectron2 sorts by, and `proposal_bbox_mode`.

    Args:
        dataset_dicts: Detectron2's dataset dicts with `image_id`, `width` and `height`; changed.
        path: a proposal file (.npz).

    Raises:
        ValueError: an image without proposals, windows that are not finite or lie outside their
            image altogether, or a file that holds something else; the message names it and the
            file.
    """
    proposals = read_proposals(path)
    index_of = {str(image_id): i for i, image_id in enumerate(proposals["ids"])}
    check_covered([record["image_id"] for record in dataset_dicts], index_of, path)
    num_clipped = num_empty = num_without = 0
    for record in dataset_dicts:
        boxes = as_boxes(proposals["boxes"][index_of[str(record["image_id"])]])
        where = f"{path}: image {record['image_id']!r}"
        if not np.isfinite(boxes).all():
            raise ValueError(f"{where}: expected finite boxes, got {boxes[_not_finite(boxes)][0]}")
        limit = np.array([record["width"], record["height"]] * 2, dtype=np.float32)
        clipped = np.clip(boxes, 0, limit)
        is_empty = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
        is_whole = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
        if (~is_whole & ~is_empty).any():
            raise ValueError(
                f"{where}: the window {boxes[~is_whole & ~is_empty][0].tolist()} lies outside of "
                f"{record['width']} x {record['height']} pixels; windows of another data set?"
            )
        num_clipped += int(((clipped != boxes).any(1) & is_whole).sum())
        num_empty += int(is_empty.sum())
        num_without += not is_whole.any()
        record["proposal_boxes"] = clipped[is_whole]
        record["proposal_objectness_logits"] = -np.flatnonzero(is_whole).astype(np.float32)
        record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    if num_clipped or num_empty or num_without:
        warn_once(
            logger,
            f"{path}: {num_clipped} windows reach outside their image and are clipped, "
            f"{num_empty} of zero area are dropped, {num_without} of {len(dataset_dicts)} images "
            "have none",
        )
    return dataset_dicts


def _not_finite(boxes: np.ndarray) -> np.ndarray:
    return ~np.isfinite(boxes).all(axis=1)


def check_covered(image_ids: Sequence, index_of: dict[str, int], path: str) -> None:
    """Raises ValueError, with the first of them, where images have no windows in a file."""
    missing = [image_id for image_id in image_ids if str(image_id) not in index_of]
    if missing:
        raise ValueError(
            f"{path}: no proposals for image {missing[0]!r} "
            f"({len(missing)} of {len(image_ids)} images are missing)"
        )


def read_proposals(path: str) -> dict:
    """
    A proposal file, checked: `ids` and `boxes`, lists with an entry per image, and `made_by`.

    Raises:
        ValueError: a file that holds something else, or an image that comes twice; names the file.
        FileNotFoundError: no such file.
    """
    arrays = _read_arrays(path)
    ids, counts, boxes = (arrays[key] for key in ("ids", "counts", "boxes"))
    if ids.ndim != 1 or counts.ndim != 1 or boxes.ndim != 2 or boxes.shape[1] != 4:
        shapes = ", ".join(str(array.shape) for array in (ids, counts, boxes))
        raise ValueError(f"{path}: expected ids (n,), counts (n,), boxes (m, 4), got {shapes}")
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"{path}: expected counts that are integers >= 0, got {counts[:8]}")
    if boxes.dtype.kind not in "iuf":
        raise ValueError(f"{path}: expected boxes of real numbers, got {boxes.dtype}")
    total = sum(counts.tolist())  # which cannot overflow
    if len(ids) != len(counts) or total != len(boxes):
        raise ValueError(
            f"{path}: expected one count per id and as many boxes as the counts' sum, got "
            f"{len(ids)} ids, {len(counts)} counts of sum {total}, {len(boxes)} boxes"
        )
    names = [x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in ids]
    check_different(names, path)
    ends = np.cumsum(counts, dtype=np.int64)
    return {
        "ids": names,
        "boxes": np.split(boxes, ends[:-1]) if names else [],
        "made_by": str(arrays.get("made_by", "")),
    }


def _read_arrays(path: str) -> dict[str, np.ndarray]:
    """Those arrays that a proposal file has; at least ids, counts and boxes."""
    if path.endswith(".pkl"):
        raise ValueError(
            f"{path}: a pickle is read only with PICKLE_ON True, in the config or, to convert "
            "it once, at the end of tools/proposals.py import"
        )
    known = ("ids", "counts", "boxes", "made_by")
    with open(path, "rb") as f:
        try:
            archive = np.load(f, allow_pickle=False)
            _check_unpacked(archive.zip, os.fstat(f.fileno()).st_size)
            arrays = {key: archive[key] for key in known if key in archive}
        except Exception as error:  # bytes that are no archive can raise almost anything
            raise ValueError(f"{path}: not a readable archive ({error!r})") from error
    missing = set(known[:3]) - set(arrays)
    if missing:
        raise ValueError(f"{path}: expected arrays ids, counts, boxes; lacks {sorted(missing)}")
    return arrays


def _check_unpacked(archive: zipfile.ZipFile, file_size: int) -> None:
    limit = max(_MAX_UNPACKED, _MAX_RATIO * file_size)
    unpacked = sum(x.file_size for x in archive.infolist())
    if unpacked > limit:
        raise ValueError(f"expected at most {limit} bytes unpacked, got {unpacked}")


def check_different(ids: Sequence, path: str) -> None:
    """Raises ValueError where two images of a file have one id."""
    for image_id in find_duplicates(map(str, ids)):
        raise ValueError(f"{path}: image {image_id!r} comes twice")


def as_boxes(values: np.ndarray) -> np.ndarray:
    """(n, 4) float32; an empty list is (0, 4). Raises ValueError for what is no such array."""
    if np.iscomplexobj(values):
        raise ValueError("expected boxes of real numbers, got complex ones")
    boxes = np.asarray(values, dtype=np.float32)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected boxes of shape (n, 4), got {boxes.shape}")
    return boxes
