# SPDX-License-Identifier: Apache-2.0
"""Proposal files out of others: those of Fast R-CNN (.mat), of Detectron2 (.pkl), larger ones."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.io
from detectron2.structures import BoxMode

from ..utils.safe_pickle import load_arrays
from .proposals import as_boxes, check_covered, check_different, read_proposals, write_proposals

EXTENSIONS = (".npz", ".mat", ".pkl")


def import_proposals(
    archive: str, path: str, image_ids: Sequence, *, allow_pickle: bool = False
) -> None:
    """
    Writes the windows of `image_ids`, out of another file, as a proposal file.

    Args:
        archive: an .npz as of :func:`write_proposals`; or a .mat as released with Fast R-CNN, with
            `images`, n names, and `boxes`, n arrays (m, 4) of y1 x1 y2 x2 in pixels that count from
            1, y2 and x2 inclusive; or a .pkl of Detectron2, with lists `ids`, `boxes` and
            `objectness_logits` in a dictionary.
        path: of the file (.npz).
        image_ids: whose windows are written, in this order.
        allow_pickle: `archive` may be a .pkl.

    Raises:
        ValueError: no such archive, or it lacks an image; the message names it and the file.
        FileNotFoundError: no such file.
    """
    extension = os.path.splitext(archive)[1]
    if extension not in EXTENSIONS:
        raise ValueError(f"{archive}: expected a file that ends in one of {EXTENSIONS}")
    if extension == ".mat":
        ids, boxes = _read_mat(archive)
    elif extension == ".pkl" and allow_pickle:
        ids, boxes = _read_pickle(archive)
    else:
        proposals = read_proposals(archive)
        ids, boxes = proposals["ids"], proposals["boxes"]
    check_different(ids, archive)
    index_of = {str(image_id): i for i, image_id in enumerate(ids)}
    check_covered(image_ids, index_of, archive)

    def arrays() -> Iterator[np.ndarray]:
        for image_id in image_ids:
            array = boxes[index_of[str(image_id)]]
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{archive}: image {image_id!r}: expected boxes of finite numbers, got some "
                    "that are not"
                )
            yield array

    write_proposals(path, image_ids, arrays())


def _read_pickle(path: str) -> tuple[list, list[np.ndarray]]:
    """Image ids, and the boxes of each as XYXY, those of the largest logits first."""
    with open(path, "rb") as f:
        try:
            content = load_arrays(f)
        except Exception as error:  # bytes that are no pickle can raise almost anything
            raise ValueError(f"{path}: not a readable proposal file ({error!r})") from error
    if isinstance(content, dict):
        # Files of the first Detectron have other keys; Detectron2 takes them too.
        old_keys = {"indexes": "ids", "scores": "objectness_logits"}
        content = {old_keys.get(key, key): value for key, value in content.items()}
    keys = ("ids", "boxes", "objectness_logits")
    if not isinstance(content, dict) or not set(keys) <= set(content):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content)
        raise ValueError(f"{path}: expected a dictionary with {sorted(keys)}, got {found}")
    try:
        lengths = {key: len(content[key]) for key in sorted(keys)}
        mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected lists and a BoxMode, got {error}") from error
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: expected lists of one length, got {lengths}")
    boxes = []
    for image_id, given, logits in zip(*(content[key] for key in keys), strict=True):
        try:
            boxes.append(_sorted_boxes(given, logits, mode))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: image {image_id!r}: {error}") from error
    return list(content["ids"]), boxes


def _sorted_boxes(given: np.ndarray, logits: np.ndarray, mode: BoxMode) -> np.ndarray:
    boxes, logits = as_boxes(given), np.asarray(logits, dtype=np.float32)
    if logits.shape != (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes but objectness logits of {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError("expected finite objectness logits")
    return BoxMode.convert(boxes, mode, BoxMode.XYXY_ABS)[np.argsort(-logits, kind="stable")]


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
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: image {image_id!r}: {error}") from error
        boxes.append(given[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0], dtype=given.dtype))
    return ids, boxes
