# SPDX-License-Identifier: Apache-2.0
"""
What the property tests draw: windows, objects and scores, small and often on the edge of something.

Coordinates and scores are fractions with a power of two below them, so that sums, shifts and
scales by powers of two are exact and an overlap is over a threshold or is not.
"""

import numpy as np
import torch
from hypothesis import strategies as st
from maploss.layers import match_detections

from tests.scenes import Scene

# Factors of about 1e-3 and 1e6.
SCALES = st.sampled_from([2.0**-10, 1.0, 2.0**20])
DTYPES = st.sampled_from([torch.float32, torch.float64])
AP_TYPES = st.sampled_from(["area", "voc07", "coco101"])
TRANSITIVITIES = st.sampled_from(["exact", "label_aware", "paper", "none"])
MARGINS = st.sampled_from([0.25, 1.0, 3.0])
_SIDE = st.integers(0, 12)
# A box by its corner and sides; sides of 0 make it empty.
_BOX = st.tuples(_SIDE, _SIDE, _SIDE, _SIDE)
# Many with a side of 10: tenths of it are exact, and so are overlaps of tenths.
_OBJECT_SIDE = st.sampled_from([10, 10, 4, 5, 8])
_OBJECT_BOX = st.tuples(_SIDE, _SIDE, _OBJECT_SIDE, _OBJECT_SIDE)
_IMAGE_IDS = st.permutations([0, 7, -3, 2**40])
_STEP = st.sampled_from([0, 0, 1, -1, 2])
# Scores that overflow, underflow or cancel.
_EXTREMES = {
    torch.float32: [0.0, 1.0, -1.0, 1e-45, -1e-30, 1e-6, 1e8, -1e30, 3e38, -3e38],
    torch.float64: [0.0, 1.0, -1.0, 5e-324, -1e-30, 1e-6, 1e16, -1e30, 1e300, -1e300],
}


def settings_of_map_loss() -> st.SearchStrategy[dict]:
    """A gradient of map_loss with a level of transitivity that it has."""
    steps = st.fixed_dictionaries(
        {
            "gradient": st.sampled_from(["mee", "sde"]),
            "transitivity": TRANSITIVITIES,
            "pairing": st.sampled_from(["paired", "none"]),
            "ap_type": AP_TYPES,
        }
    )
    pairs = st.fixed_dictionaries(
        {
            "gradient": st.just("error_driven"),
            "transitivity": st.sampled_from(["label_aware", "none"]),
        }
    )
    return pairs | steps


@st.composite
def scores(draw, count: int, dtype=torch.float64, has_ties: bool = True) -> torch.Tensor:
    """(count,) quarters, either with many ties or without any."""
    if has_ties and draw(st.booleans()):
        quarters = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    else:
        quarters = [x - count // 2 for x in draw(st.permutations(range(count)))]
    return torch.tensor(quarters, dtype=dtype) / 4


@st.composite
def extreme_scores(draw, count: int, dtype) -> torch.Tensor:
    # Three at most, so that they meet.
    pool = draw(st.lists(st.sampled_from(_EXTREMES[dtype]), min_size=1, max_size=3))
    some = draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count))
    return torch.tensor(some, dtype=dtype)


@st.composite
def boxes(draw, min_size: int = 0, max_size: int = 10, is_mixed: bool = False) -> torch.Tensor:
    """(R, 4) float32; if `is_mixed`, negative, 1e-3 and 1e6 pixels wide ones side by side."""
    rows = []
    for x, y, width, height in draw(st.lists(_BOX, min_size=min_size, max_size=max_size)):
        scale, shift = (draw(SCALES), draw(st.sampled_from([0.0, -6.0]))) if is_mixed else (1.0, 0)
        corner = np.array([x, y]) + shift
        rows.append(np.r_[corner, corner + np.array([width, height])] * scale)
    return torch.tensor(np.array(rows).reshape(-1, 4), dtype=torch.float32)


@st.composite
def objects(draw, min_size: int = 0, max_size: int = 8) -> dict:
    """The ground truth of a minibatch of up to three images; one object in eight is difficult."""
    rows = draw(
        st.lists(st.tuples(st.integers(0, 2), _OBJECT_BOX), min_size=min_size, max_size=max_size)
    )
    corners = [[x, y, x + width, y + height] for _, (x, y, width, height) in rows]
    is_difficult = draw(st.lists(st.integers(0, 7), min_size=len(rows), max_size=len(rows)))
    return {
        "gt_boxes": torch.tensor(corners, dtype=torch.float64).reshape(-1, 4),
        "gt_image_ids": torch.tensor([image for image, _ in rows], dtype=torch.int64),
        "gt_difficult": torch.tensor(is_difficult, dtype=torch.int64) == 7,
    }


@st.composite
def windows(draw, gt: dict, max_size: int = 16) -> dict:
    """
    Windows of the images of these objects: an object with its sides moved, the window before or
    some tenths of it, or any box.
    """
    rows, images = [], []
    for _ in range(draw(st.integers(0, max_size))):
        kind = draw(st.sampled_from(["near", "near", "near", "cut", "same", "any"]))
        image, box = draw(st.integers(0, 2)), None
        if kind in ("cut", "same") and rows:
            image, box = images[-1], list(rows[-1])
            if kind == "cut":
                box[3] = box[1] + (box[3] - box[1]) * draw(st.sampled_from([3, 5, 7, 6, 1])) / 10
        elif kind == "near" and len(gt["gt_boxes"]):
            which = draw(st.integers(0, len(gt["gt_boxes"]) - 1))
            image, box = int(gt["gt_image_ids"][which]), gt["gt_boxes"][which].tolist()
            if draw(st.booleans()):
                box = [x + draw(_STEP) for x in box]
                box[2:] = [max(low, high) for low, high in zip(box[:2], box[2:], strict=True)]
        if box is None:
            x, y, width, height = draw(_BOX)
            box = [x, y, x + width, y + height]
        rows.append(box)
        images.append(image)
    return {
        "boxes": torch.tensor(rows, dtype=torch.float64).reshape(-1, 4),
        "image_ids": torch.tensor(images, dtype=torch.int64),
    }


@st.composite
def minibatches(draw, dtype=torch.float64, has_ties: bool = True, max_windows: int = 16) -> dict:
    """The arguments of map_loss; images have any ids, and a class may have no object."""
    gt = draw(objects())
    batch = {**draw(windows(gt, max_windows)), **gt}
    num_classes = draw(st.sampled_from([2, 1, 3]))
    count = len(gt["gt_boxes"])
    classes = draw(st.lists(st.integers(0, num_classes - 1), min_size=count, max_size=count))
    batch["gt_classes"] = torch.tensor(classes, dtype=torch.int64)
    columns = [draw(scores(len(batch["boxes"]), dtype, has_ties)) for _ in range(num_classes)]
    batch["scores"] = torch.stack(columns, dim=1)
    ids = torch.tensor(draw(_IMAGE_IDS))
    return {**batch, **{key: ids[batch[key]] for key in ("image_ids", "gt_image_ids")}}


@st.composite
def scenes(draw, has_ties: bool = True, max_windows: int = 12) -> Scene:
    """Windows of one class, matched to at least one object that counts."""
    gt = draw(objects(1, 4))
    gt["gt_difficult"][0] = False
    found = draw(windows(gt, max_windows))
    matched = match_detections(
        *found.values(), gt["gt_boxes"], gt["gt_image_ids"], gt["gt_difficult"]
    )
    num_gt = int((~gt["gt_difficult"]).sum())
    own = draw(scores(len(matched), has_ties=has_ties))
    return Scene(own, found["boxes"], found["image_ids"], matched, num_gt)


@st.composite
def detections(draw, max_size: int = 14) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scores, matched objects and their number, without boxes."""
    matched = draw(st.lists(st.integers(-2, 7), max_size=max_size))
    # Of 10 and of 20 objects, some levels of recall are a rounding error too high.
    num_gt = draw(st.sampled_from([10, 20, 8]))
    return draw(scores(len(matched))), torch.tensor(matched, dtype=torch.int64), num_gt


@st.composite
def rankings(draw, has_ties: bool = True, max_size: int = 12, dtype=torch.float64) -> tuple:
    """Scores, labels of 1, 0 and -1, and qualities in eighths of the positives."""
    labels = draw(st.lists(st.sampled_from([1, 0, 0, -1]), min_size=1, max_size=max_size))
    eighths = draw(st.lists(st.integers(0, 8), min_size=labels.count(1), max_size=labels.count(1)))
    own = draw(scores(len(labels), dtype, has_ties))
    return own, torch.tensor(labels), torch.tensor(eighths, dtype=dtype) / 8


@st.composite
def rising_maps(draw, values: torch.Tensor) -> torch.Tensor:
    """A strictly rising function of the values, which keeps ties."""
    unique, place = values.unique(return_inverse=True)
    gaps = draw(st.lists(st.integers(1, 9), min_size=len(unique), max_size=len(unique)))
    return (torch.tensor(gaps, dtype=values.dtype).cumsum(0) / 4 - 3)[place]
