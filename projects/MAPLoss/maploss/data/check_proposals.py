# SPDX-License-Identifier: Apache-2.0
"""What a proposal file holds for the images of a data set, and what is wrong with it."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, pairwise_iou

from .proposals import as_boxes, read_proposals

logger = logging.getLogger(__name__)

RECALL_THRESHS = (0.5, 0.7)
# Of IoU .5: a detector cannot find what no window covers.
_LEAST_RECALL = 0.8
# So many images tell a recall to about a percent.
_NUM_SAMPLED = 500


class ProposalReport(NamedTuple):
    """
    counts: windows of each image that has an entry. missing: ids of images without one. without:
    ids of images with none but an empty one. num_others: entries of images that the data set has
    not. bad: number of windows by what is wrong with them. num_objects: without the difficult ones
    and crowds. recall: share of these overlapped by a window, by least IoU; nan without an object.
    """

    counts: np.ndarray
    missing: list[str]
    without: list[str]
    num_others: int
    bad: dict[str, int]
    num_objects: int
    recall: dict[float, float]

    @property
    def is_good(self) -> bool:
        """Every image has windows, and none of them is wrong."""
        return not self.missing and not self.without and not any(self.bad.values())


def check_proposals(dataset_dicts: Sequence[dict], path: str) -> ProposalReport:
    """
    Looks at all windows of a data set as they are in the file.

    Args:
        dataset_dicts: Detectron2's, with `image_id`, `width`, `height` and `annotations`.
        path: a proposal file (.npz).

    Raises:
        ValueError: a file that holds something else.
    """
    proposals = read_proposals(path)
    index_of = {str(image_id): i for i, image_id in enumerate(proposals["ids"])}
    missing, without, counts, best = [], [], [], []
    bad = dict.fromkeys(("not finite", "of zero area", "outside their image"), 0)
    for record in dataset_dicts:
        image_id = str(record["image_id"])
        i = index_of.get(image_id)
        if i is None:
            missing.append(image_id)
            best.append(_best_iou(record, np.zeros((0, 4), dtype=np.float32)))
            continue
        boxes = as_boxes(proposals["boxes"][i])
        counts.append(len(boxes))
        if not len(boxes):
            without.append(image_id)
        is_finite = np.isfinite(boxes).all(1)
        is_empty = is_finite & ((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
        limit = np.array([record["width"], record["height"]] * 2, dtype=np.float32)
        is_outside = is_finite & ~is_empty & ((boxes < 0) | (boxes > limit)).any(1)
        for name, mask in zip(bad, (~is_finite, is_empty, is_outside), strict=True):
            bad[name] += int(mask.sum())
        best.append(_best_iou(record, boxes[is_finite & ~is_empty]))
    best_iou = np.concatenate([np.zeros(0), *best])
    num_others = len(set(index_of) - {str(x["image_id"]) for x in dataset_dicts})
    recall = {
        t: float((best_iou >= t).mean()) if len(best_iou) else float("nan") for t in RECALL_THRESHS
    }
    return ProposalReport(
        np.array(counts, dtype=np.int64), missing, without, num_others, bad, len(best_iou), recall
    )


def warn_of_low_recall(
    name: str, records: Sequence[dict], path: str, max_windows: int | None
) -> None:
    """
    A warning where windows cover less than 80% of the objects by IoU .5, with what to do.

    Args:
        name: of the data set.
        records: dataset dicts as :func:`load_and_check` gives them; of many a sample is looked at.
        path: of the proposal file, for the message.
        max_windows: so many of each image are used; None for all.
    """
    step = max(-(-len(records) // _NUM_SAMPLED), 1)
    best_iou = np.concatenate(
        [
            np.zeros(0),
            *(_best_iou(x, x["proposal_boxes"][:max_windows]) for x in records[::step]),
        ]
    )
    recall = (best_iou >= RECALL_THRESHS[0]).mean() if len(best_iou) else 1.0
    if recall < _LEAST_RECALL:
        used = "all" if max_windows is None else f"the {max_windows}"
        logger.warning(
            f"Windows of data set {name!r} ({path}): {used} of an image cover "
            f"{100 * recall:.1f}% of its objects by IoU 0.5, and no detector on them finds more. "
            "Expected 80% or more: make others (tools/proposals.py make --method quality, or "
            "--max-windows and DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN and _TEST higher), or take "
            "an RPN (tools/prepare_data.py --proposals rpn)"
        )


def _best_iou(record: dict, windows: np.ndarray) -> np.ndarray:
    """(number of objects,) IoU of each object with the window that overlaps it most."""
    objects = [
        BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
        for x in record.get("annotations", ())
        if not (x.get("difficult", 0) or x.get("iscrowd", 0))
    ]
    if not objects or not len(windows):
        return np.zeros(len(objects))
    iou = pairwise_iou(Boxes(torch.tensor(objects)), Boxes(torch.from_numpy(windows)))
    return iou.amax(1).numpy()
