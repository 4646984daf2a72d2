# SPDX-License-Identifier: Apache-2.0
"""What a data set holds: images, objects of each class, sizes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Summary:
    """
    Of a part of a data set.

    num_images: all of them. num_empty: without an object. counts: objects of each class. box_sides:
    (number of objects,) square root of the area, in pixels. shares: the same by the image's shorter
    side. image_sides: (number of images, 2) shorter and longer side in pixels.
    """

    num_images: int
    num_empty: int
    counts: Counter[int]
    box_sides: np.ndarray
    shares: np.ndarray
    image_sides: np.ndarray


def summarize(records: Sequence[dict]) -> Summary:
    """Summary of Detectron2's dataset dicts, with boxes XYXY in pixels; crowds do not count."""
    counts: Counter[int] = Counter()
    sides, shares, image_sides = [], [], []
    num_empty = 0
    for record in records:
        objects = [x for x in record["annotations"] if not x.get("iscrowd", 0)]
        num_empty += not objects
        shorter = min(record["width"], record["height"])
        image_sides.append((shorter, max(record["width"], record["height"])))
        for item in objects:
            x1, y1, x2, y2 = item["bbox"]
            counts[item["category_id"]] += 1
            sides.append(((x2 - x1) * (y2 - y1)) ** 0.5)
            shares.append(sides[-1] / shorter)
    return Summary(
        len(records),
        num_empty,
        counts,
        np.array(sides, dtype=np.float64),
        np.array(shares, dtype=np.float64),
        np.array(image_sides, dtype=np.float64).reshape(-1, 2),
    )


def merge(summaries: Sequence[Summary]) -> Summary:
    """Of several parts together."""
    return Summary(
        sum(x.num_images for x in summaries),
        sum(x.num_empty for x in summaries),
        sum((x.counts for x in summaries), Counter()),
        np.concatenate([x.box_sides for x in summaries]),
        np.concatenate([x.shares for x in summaries]),
        np.concatenate([x.image_sides for x in summaries]),
    )


def describe(summaries: dict[str, Summary], classes: Sequence[str]) -> list[str]:
    """
    Images and objects of each part and class as a table, and the sizes, as lines.

    Args:
        summaries: by the part's name.
        classes: their names.
    """
    rows: list[Sequence[object]] = [
        ["", *summaries],
        ["images", *(x.num_images for x in summaries.values())],
        ["without objects", *(x.num_empty for x in summaries.values())],
        *([name, *(x.counts[i] for x in summaries.values())] for i, name in enumerate(classes)),
    ]
    first = max(len(str(row[0])) for row in rows)
    widths = [max(len(str(row[i])) for row in rows) for i in range(1, len(rows[0]))]
    lines = [
        f"  {row[0]!s:<{first}}"
        + "".join(f"  {cell!s:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
        for row in rows
    ]
    whole = merge(list(summaries.values()))
    if len(whole.box_sides):
        low, middle, high = np.percentile(whole.box_sides, (10, 50, 90))
        lines.append(
            f"box sizes (square root of the area): {low:.0f} pixels (10%), {middle:.0f} (median), "
            f"{high:.0f} (90%)"
        )
    shorter, longer = np.median(whole.image_sides, axis=0)
    largest = whole.image_sides[whole.image_sides[:, 1].argmax()]
    lines.append(
        f"image sizes: {shorter:.0f} x {longer:.0f} (median), {largest[0]:.0f} x {largest[1]:.0f} "
        "(largest)"
    )
    return lines


def warnings_of(
    summaries: dict[str, Summary], classes: Sequence[str], train: Sequence[str]
) -> list[str]:
    """
    Classes that cannot be learned or tested, and too few images, a line each.

    Args:
        summaries: by the part's name.
        classes: their names.
        train: names of the parts that train.
    """
    lines = []
    for kind, names in (
        ("train on", train),
        ("evaluate", [x for x in summaries if x not in train]),
    ):
        counts = sum((summaries[x].counts for x in names), Counter())
        missing = [name for i, name in enumerate(classes) if not counts[i]]
        if missing and names:
            shown = ", ".join(missing[:10]) + (", .." if len(missing) > 10 else "")
            lines.append(f"no object to {kind} of {shown}")
    num_images = sum(summaries[x].num_images for x in train)
    if num_images < 50:
        lines.append(f"{num_images} images to train on are few: expect a weak detector")
    return lines
