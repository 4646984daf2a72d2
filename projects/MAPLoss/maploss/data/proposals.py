# SPDX-License-Identifier: Apache-2.0
"""
Windows (object proposals): made by selective search, imported, and checked.

A proposal file is Detectron2's: a pickled dictionary of `ids`, `boxes` [(n, 4) float32],
`objectness_logits` [(n,) float32] and `bbox_mode` (XYXY_ABS), one entry per image.
"""

import hashlib
import logging
import os
import pickle
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from .cache import cache_root, new_file

logger = logging.getLogger(__name__)

# Data sets that make their own proposals: name -> function that returns the proposal file.
_PROPOSAL_MAKERS: dict[str, Callable[[], str]] = {}


def register_proposals(name: str, maker: Callable[[], str]) -> None:
    """Says that the data set `name` has proposals, in the file that `maker` makes and returns."""
    _PROPOSAL_MAKERS[name] = maker


def selective_search(
    image: np.ndarray,
    mode: str = "fast",
    base_k: int = 150,
    inc_k: int = 150,
    sigma: float = 0.8,
    seed: int = 0,
) -> np.ndarray:
    """
    Windows of one image by selective search (Uijlings et al., IJCV 2013), without duplicates.

    The order is that of section 3.3 of the paper, larger regions first, each position multiplied
    by a random number; but the position is by area and the number from `seed`. OpenCV's own order
    comes from the C library's generator and so differs from call to call.

    Args:
        image: (H, W, 3) uint8, BGR. mode: "fast" or "quality". base_k, inc_k, sigma: granularity of
            the first segmentation, its step, and the blur in pixels, as in OpenCV.

    Returns:
        (n, 4) float32 XYXY in pixels, x2 and y2 exclusive; best first.
    """
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    if mode == "fast":
        search.switchToSelectiveSearchFast(base_k, inc_k, sigma)
    elif mode == "quality":
        search.switchToSelectiveSearchQuality(base_k, inc_k, sigma)
    else:
        raise ValueError(f"mode: expected 'fast' or 'quality', got {mode!r}")
    rects = np.unique(np.asarray(search.process(), dtype=np.int64).reshape(-1, 4), axis=0)
    boxes = np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], axis=1)
    position = np.empty(len(rects))
    position[np.argsort(-rects[:, 2] * rects[:, 3], kind="stable")] = np.arange(1, len(rects) + 1)
    rank = position * np.random.default_rng(seed).random(len(rects))
    return boxes[np.argsort(rank, kind="stable")].astype(np.float32)


def write_proposals(path: str, ids: Sequence[str], boxes: Sequence[np.ndarray]) -> None:
    """
    Writes a proposal file, in one step: nothing is left where it fails.

    Args:
        ids: image ids. boxes: one (n, 4) XYXY array per image, best first. The order is kept as
            objectness logits 0, -1, .., which Detectron2 sorts by.

    Raises:
        ValueError: an array of another shape, or not one per image.
    """
    if len(ids) != len(boxes):
        raise ValueError(f"boxes: expected one array per image id ({len(ids)}), got {len(boxes)}")
    proposals = {
        "ids": list(ids),
        "boxes": [_as_boxes(b) for b in boxes],
        "objectness_logits": [-np.arange(len(b), dtype=np.float32) for b in boxes],
        "bbox_mode": BoxMode.XYXY_ABS,
    }
    with new_file(path) as temporary, open(temporary, "wb") as f:
        pickle.dump(proposals, f, protocol=4)


def convert_npz(npz_path: str, out_path: str, image_ids: Sequence[str]) -> None:
    """
    Writes the proposals of `image_ids`, out of an .npz archive, as a proposal file.

    The archive holds `ids` (n,) str, `counts` (n,) integers, and `boxes` (sum of counts, 4), XYXY
    pixels with x2 and y2 exclusive, best first within each image.

    Raises:
        ValueError: no such archive, or it lacks an image; the message names it and the file.
    """
    ids, counts, boxes = _read_npz(npz_path)
    end = np.cumsum(counts)
    index_of = {str(image_id): i for i, image_id in enumerate(ids)}
    _check_covered(image_ids, index_of, npz_path)
    selected = [index_of[str(image_id)] for image_id in image_ids]
    write_proposals(out_path, image_ids, [boxes[end[i] - counts[i] : end[i]] for i in selected])


def load_and_check(dataset_dicts: list[dict], path: str) -> list[dict]:
    """
    Attaches the proposals of a proposal file to dataset dicts, checked.

    Windows are clipped to their image; those then empty are dropped, with one warning that counts
    them. The dicts get `proposal_boxes`, `proposal_objectness_logits`, `proposal_bbox_mode`, best
    first.

    Args:
        dataset_dicts: Detectron2's dataset dicts with `image_id`, `width` and `height`; changed.
        path: a proposal file (.pkl).

    Raises:
        ValueError: an image without proposals, or a file that holds something else; the message
            names it and the file.
    """
    proposals = _read(path)
    mode = proposals["bbox_mode"]
    index_of = {str(image_id): i for i, image_id in enumerate(proposals["ids"])}
    _check_covered([record["image_id"] for record in dataset_dicts], index_of, path)
    num_clipped = num_empty = 0
    for record in dataset_dicts:
        i = index_of[str(record["image_id"])]
        try:
            boxes = _as_boxes(proposals["boxes"][i])
            logits = np.asarray(proposals["objectness_logits"][i], dtype=np.float32)
            if logits.shape != (len(boxes),):
                raise ValueError(f"{len(boxes)} boxes but objectness logits of {logits.shape}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: image {record['image_id']!r}: {error}") from error
        boxes = BoxMode.convert(boxes, mode, BoxMode.XYXY_ABS)
        limit = np.array([record["width"], record["height"]] * 2, dtype=np.float32)
        clipped = np.clip(boxes, 0, limit)
        is_whole = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
        num_clipped += int(((clipped != boxes).any(1) & is_whole).sum())
        num_empty += int((~is_whole).sum())
        order = np.argsort(-logits, kind="stable")
        order = order[is_whole[order]]
        record["proposal_boxes"] = clipped[order]
        record["proposal_objectness_logits"] = logits[order]
        record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    if num_clipped or num_empty:
        logger.warning(
            f"{path}: {num_clipped} windows reached outside their image and were clipped, "
            f"{num_empty} of zero area were dropped."
        )
    return dataset_dicts


def proposal_files_for(names: Sequence[str], given: Sequence[str] = ()) -> tuple[str, ...]:
    """
    One proposal file (.pkl) for each data set, for DATASETS.PROPOSAL_FILES_TRAIN and _TEST.

    With nothing given, the files of data sets that make their own (the shapes). A given .npz
    archive is converted once, into the cache. All are checked to cover every image.

    Args:
        names: data set names. given: files given by the user, empty or one per data set.

    Raises:
        ValueError: a data set or an image without proposals, or a wrong number of files.
        FileNotFoundError: no such file.
    """
    if not given:
        unknown = [name for name in names if name not in _PROPOSAL_MAKERS]
        if unknown:
            raise ValueError(
                f"Data set {unknown[0]!r} has no proposals of its own: give a file (.pkl or .npz) "
                "in DATASETS.PROPOSAL_FILES_TRAIN or DATASETS.PROPOSAL_FILES_TEST"
            )
        return tuple(_PROPOSAL_MAKERS[name]() for name in names)
    if len(given) != len(names):
        raise ValueError(
            f"Proposal files: expected one per data set {tuple(names)}, got {tuple(given)}"
        )
    return tuple(_checked_file(name, path) for name, path in zip(names, given, strict=True))


def _checked_file(name: str, path: str) -> str:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Proposal file of data set {name!r} not found: {path}")
    dataset_dicts = DatasetCatalog.get(name)
    if path.endswith(".npz"):
        path = _converted(name, path, [record["image_id"] for record in dataset_dicts])
    load_and_check(dataset_dicts, path)
    return path


def _converted(name: str, npz_path: str, image_ids: list[str]) -> str:
    """The archive's proposal file in the cache; its name changes with archive and data set."""
    stat = os.stat(npz_path)
    key = repr((os.path.abspath(npz_path), stat.st_size, stat.st_mtime_ns, image_ids))
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    stem = os.path.splitext(os.path.basename(npz_path))[0]
    out_path = os.path.join(cache_root(), "proposals", f"{stem}-{name}-{digest}.pkl")
    if not os.path.isfile(out_path):
        logger.info(f"Converting proposals {npz_path} -> {out_path}")
        convert_npz(npz_path, out_path, image_ids)
    return out_path


def _check_covered(image_ids: Sequence[str], index_of: dict[str, int], path: str) -> None:
    missing = [image_id for image_id in image_ids if str(image_id) not in index_of]
    if missing:
        raise ValueError(
            f"{path}: no proposals for image {missing[0]!r} "
            f"({len(missing)} of {len(image_ids)} images are missing)"
        )


def _read(path: str) -> dict:
    with open(path, "rb") as f:
        try:
            proposals = pickle.load(f, encoding="latin1")
        except Exception as error:  # bytes that are no pickle can raise almost anything
            raise ValueError(f"{path}: not a readable proposal file ({error!r})") from error
    if isinstance(proposals, dict):
        # Files of the first Detectron have other keys; Detectron2 takes them too.
        old_keys = {"indexes": "ids", "scores": "objectness_logits"}
        proposals = {old_keys.get(key, key): value for key, value in proposals.items()}
    keys = {"ids", "boxes", "objectness_logits"}
    if not isinstance(proposals, dict) or not keys <= set(proposals):
        found = sorted(proposals) if isinstance(proposals, dict) else type(proposals).__name__
        raise ValueError(f"{path}: expected a dictionary with {sorted(keys)}, got {found}")
    try:
        lengths = {key: len(proposals[key]) for key in sorted(keys)}
        proposals["bbox_mode"] = BoxMode(proposals.get("bbox_mode", BoxMode.XYXY_ABS))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected lists and a BoxMode, got {error}") from error
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: expected lists of one length, got {lengths}")
    return proposals


def _read_npz(path: str) -> list[np.ndarray]:
    """ids, counts, boxes of an archive, checked."""
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
    return [ids, counts.astype(np.int64), boxes]


def _as_boxes(values: np.ndarray) -> np.ndarray:
    """(n, 4) float32; an empty list is (0, 4)."""
    boxes = np.asarray(values, dtype=np.float32)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected boxes of shape (n, 4), got {boxes.shape}")
    return boxes
