# SPDX-License-Identifier: Apache-2.0
"""
The file of windows (object proposals) that a data set is trained or tested on.

A proposal file is Detectron2's: a pickled dictionary of `ids`, `boxes` [(n, 4) float32],
`objectness_logits` [(n,) float32] and `bbox_mode` (XYXY_ABS), one entry per image.
"""

import logging
import pickle
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from detectron2.structures import BoxMode

from .cache import new_file
from .repeated import repeated
from .warn_once import warn_once

logger = logging.getLogger(__name__)


def write_proposals(
    path: str, ids: Sequence[str], boxes: Iterable[np.ndarray], made_by: dict | None = None
) -> None:
    """
    Writes a proposal file, in one step: nothing is left where it fails.

    One image's windows are in memory at a time where `boxes` is a generator.

    Args:
        ids: image ids. boxes: one (n, 4) XYXY array per image, best first. The order is kept as
            objectness logits 0, -1, .., which Detectron2 sorts by. made_by: kept with the file.

    Raises:
        ValueError: an array of another shape, or not one per image.
    """
    counts: list[int] = []

    def arrays() -> Iterator[np.ndarray]:
        for given in boxes:
            array = as_boxes(given)
            counts.append(len(array))
            yield array
        if len(counts) != len(ids):
            raise ValueError(
                f"boxes: expected one array per image id ({len(ids)}), got {len(counts)}"
            )

    proposals = {
        "ids": list(ids),
        "boxes": _LazyList(arrays()),
        # Begun when all boxes are written, so that their counts are known.
        "objectness_logits": _LazyList(-np.arange(n, dtype=np.float32) for n in counts),
        "bbox_mode": BoxMode.XYXY_ABS,
        "made_by": made_by,
    }
    with new_file(path) as temporary, open(temporary, "wb") as f:
        pickler = pickle.Pickler(f, protocol=4)
        pickler.fast = True  # keeps no reference to what has been written
        pickler.dump(proposals)


class _LazyList:
    """Pickled as the list of what an iterator gives, without ever being one."""

    def __init__(self, items: Iterator) -> None:
        self._items = items

    def __reduce__(self) -> tuple:
        return list, (), None, self._items


def load_and_check(dataset_dicts: list[dict], path: str) -> list[dict]:
    """
    Attaches the proposals of a proposal file to dataset dicts, checked.

    Windows are clipped to their image, as in training; those of zero area are dropped. One warning
    counts these, and the images without windows. The dicts get `proposal_boxes`,
    `proposal_objectness_logits`, `proposal_bbox_mode`, best first.

    Args:
        dataset_dicts: Detectron2's dataset dicts with `image_id`, `width` and `height`; changed.
        path: a proposal file (.pkl).

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
        boxes, logits = windows_of(proposals, index_of[str(record["image_id"])], path)
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
        order = np.argsort(-logits, kind="stable")
        order = order[is_whole[order]]
        record["proposal_boxes"] = clipped[order]
        record["proposal_objectness_logits"] = logits[order]
        record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    if num_clipped or num_empty or num_without:
        warn_once(
            logger,
            f"{path}: {num_clipped} windows reach outside their image and are clipped, "
            f"{num_empty} of zero area are dropped, {num_without} of {len(dataset_dicts)} images "
            "have none",
        )
    return dataset_dicts


def windows_of(proposals: dict, i: int, path: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Boxes (n, 4) XYXY and objectness logits (n,) of entry `i`, as they are in the file.

    Raises:
        ValueError: other shapes, or logits that are not finite; names image and file.
    """
    try:
        boxes = as_boxes(proposals["boxes"][i])
        logits = np.asarray(proposals["objectness_logits"][i], dtype=np.float32)
        if logits.shape != (len(boxes),):
            raise ValueError(f"{len(boxes)} boxes but objectness logits of {logits.shape}")
        if not np.isfinite(logits).all():
            raise ValueError("expected finite objectness logits")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: image {proposals['ids'][i]!r}: {error}") from error
    return BoxMode.convert(boxes, proposals["bbox_mode"], BoxMode.XYXY_ABS), logits


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
    """The dictionary of a proposal file, checked. Raises ValueError that names the file."""
    with open(path, "rb") as f:
        try:
            proposals = _Unpickler(f, encoding="latin1").load()
        except Exception as error:  # bytes that are no pickle can raise almost anything
            raise ValueError(f"{path}: not a readable proposal file ({error!r})") from error
    if isinstance(proposals, dict):
        # Files of the first Detectron have other keys; Detectron2 takes them too.
        old_keys = {"indexes": "ids", "scores": "objectness_logits"}
        proposals = {old_keys.get(key, key): value for key, value in proposals.items()}
    keys = {"ids", "boxes", "objectness_logits"}
    if not isinstance(proposals, dict) or not keys <= set(proposals):
        found = sorted(map(str, proposals)) if isinstance(proposals, dict) else type(proposals)
        raise ValueError(f"{path}: expected a dictionary with {sorted(keys)}, got {found}")
    try:
        lengths = {key: len(proposals[key]) for key in sorted(keys)}
        proposals["bbox_mode"] = BoxMode(proposals.get("bbox_mode", BoxMode.XYXY_ABS))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected lists and a BoxMode, got {error}") from error
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: expected lists of one length, got {lengths}")
    check_different(proposals["ids"], path)
    return proposals


def check_different(ids: Sequence, path: str) -> None:
    """Raises ValueError where two images of a file have one id."""
    for image_id in repeated(map(str, ids)):
        raise ValueError(f"{path}: image {image_id!r} comes twice")


class _Unpickler(pickle.Unpickler):
    """Of arrays and lists only: a pickle can ask for any function to be called."""

    def find_class(self, module: str, name: str) -> object:
        is_array = module.partition(".")[0] == "numpy" and name in _NUMPY_NAMES
        if is_array or (module, name) in _OTHER_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a proposal file")


_NUMPY_NAMES = {"_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar"}
_OTHER_NAMES = {
    ("_codecs", "encode"),
    ("builtins", "list"),
    ("detectron2.structures.boxes", "BoxMode"),
}


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
