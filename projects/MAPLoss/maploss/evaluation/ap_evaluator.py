# SPDX-License-Identifier: Apache-2.0
"""Evaluator of detections by AP, at full score precision and with difficult objects."""

import functools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from tabulate import tabulate

from maploss.utils.atomic_files import new_file

from .coco_ap import coco_ap
from .detection_ap import ClassResult, Detections, Objects, evaluate_detections, mean_ap
from .duplicates import count_duplicates
from .pooled_ap import pooled_ap

logger = logging.getLogger(__name__)

# Columns of the table, and what stands in them: of a class or the mean, and of all in one list.
_COLUMNS = {
    "AP50": ("AP50", "AP50-pool"),
    "AP50-voc07": ("AP50-voc07", "AP50-pool-voc07"),
    "AP50-coco101": ("AP50-coco101", "AP50-pool-coco101"),
    "AP75": ("AP75", "AP75-pool"),
    "AP50:95": ("AP", "AP-pool"),
}


class Evaluation(NamedTuple):
    """
    What an evaluation has found on a data set.

    Args:
        dataset_name: as registered.
        class_names: K names.
        records: the data set's dicts; image indices of detections and objects are theirs.
        detections: all of them.
        objects: all of them.
        results: K, one for each class.
    """

    dataset_name: str
    class_names: Sequence[str]
    records: Sequence[dict]
    detections: Detections
    objects: Objects
    results: Sequence[ClassResult]


class APEvaluator(DatasetEvaluator):
    """
    AP per class, its mean and AP-pool, at IoU .5, .75 and .5:.95, by area, 11 and 101 points.

    Unlike Detectron2's evaluator of VOC it keeps the scores as they are (that one rounds them to
    three digits, which makes ties), and any data set with `thing_classes` will do. Objects marked
    `difficult` or `iscrowd` are ignored. Writes ap.json, ap.txt and true_positives.json.

    `evaluation` is what :meth:`evaluate` has found, for who draws it; None before, and on other
    processes than the main one.
    """

    evaluation: Evaluation | None

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: registered, with annotations.
            output_dir: where the files are written, by the main process; None writes none.
        """
        self._dataset_name = dataset_name
        metadata = MetadataCatalog.get(dataset_name)
        self._class_names = tuple(metadata.thing_classes)
        self._is_coco = metadata.get("evaluator_type", None) == "coco"
        self._output_dir = output_dir
        self._predictions: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.evaluation = None

    def reset(self) -> None:
        """Forgets all detections."""
        self._predictions = {}
        self.evaluation = None

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """
        Keeps the detections of a batch.

        Args:
            inputs: dicts with `image_id`.
            outputs: dicts with `instances`: pred_boxes, scores and pred_classes.

        Raises:
            FloatingPointError, ValueError: a score that is not finite, an unknown class.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            # Never with fewer digits, which would make ties; half precision widens without loss.
            scores = instances.scores.detach()
            scores = scores if scores.dtype == torch.float64 else scores.float()
            classes = instances.pred_classes.long()
            image_id = str(image["image_id"])
            if not torch.isfinite(scores).all():
                raise FloatingPointError(f"Image {image_id!r}: a detection's score is not finite")
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(
                self._class_names
            ):
                raise ValueError(
                    f"Image {image_id!r}: expected classes below {len(self._class_names)}, "
                    f"got {int(classes.min())} to {int(classes.max())}"
                )
            boxes = instances.pred_boxes.tensor.detach().float()
            self._predictions[image_id] = (boxes, scores, classes)

    def evaluate(self) -> OrderedDict | None:
        """
        AP in percent, on the main process; None on the others.

        Returns:
            {"bbox": {...}} with `AP` (mean over classes and IoU .5:.95, by area), `AP50` and `AP75`
            (at IoU .5 and .75); `AP-pool`, `AP50-pool` and `AP75-pool`, of all classes in one list
            (:func:`pooled_ap`); each also with `-voc07` (11 points) and `-coco101` (101 points and
            COCO's matching) behind; and `AP50-<class>`, unless that is one of these names. A class
            without an object is nan and not in the means. `duplicates-per-image` is a number and no
            percentage (:func:`count_duplicates`). For a data set in COCO's form also
            {"coco": {...}}: those of :func:`coco_ap`, and `AP-pool` and `AP50-pool` by 101 points.

        Raises:
            ValueError: an empty data set, an object of an unknown class, an unknown image.
        """
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        # By image id: an image that two processes have seen counts once.
        predictions = {key: value for part in gathered for key, value in part.items()}
        detections = self._collect_detections(predictions)
        results = evaluate_detections(detections, self._objects, len(self._class_names))
        means = mean_ap(results) | pooled_ap(results)
        bbox = {name: 100 * value for name, value in means.items()}
        for class_name, result in zip(self._class_names, results, strict=True):
            bbox.setdefault(f"AP50-{class_name}", 100 * result.ap["AP50"])
        duplicates = count_duplicates(detections, results)
        bbox["duplicates-per-image"] = sum(duplicates) / len(self._records)
        found = OrderedDict(bbox=bbox)
        table = format_table(self._class_names, results)
        table += (
            f"\nDuplicates per image, at each class's best F1: {bbox['duplicates-per-image']:.3f}"
        )
        if self._is_coco:
            coco = coco_ap(detections, self._objects, len(self._class_names))
            coco |= {name: means[f"{name}-coco101"] for name in ("AP-pool", "AP50-pool")}
            found["coco"] = {name: 100 * value for name, value in coco.items()}
            shown = ", ".join(f"{name} {value:.2f}" for name, value in found["coco"].items())
            table += f"\nBy COCO's rule: {shown}"
        logger.info(f"AP in percent on {self._dataset_name}:\n{table}")
        if self._output_dir is not None:
            self._write(self._output_dir, found, table, results)
        self.evaluation = Evaluation(
            self._dataset_name, self._class_names, self._records, detections, self._objects, results
        )
        return found

    @functools.cached_property
    def _records(self) -> list[dict]:
        records = DatasetCatalog.get(self._dataset_name)
        if not records:
            raise ValueError(f"Data set {self._dataset_name!r}: expected images, got none")
        return records

    @functools.cached_property
    def _objects(self) -> Objects:
        rows = []
        for i, record in enumerate(self._records):
            for annotation in record.get("annotations", ()):
                if not 0 <= annotation["category_id"] < len(self._class_names):
                    raise ValueError(
                        f"Image {record['image_id']!r} of {self._dataset_name!r}: expected objects "
                        f"of classes 0 to {len(self._class_names) - 1}, "
                        f"got class {annotation['category_id']}"
                    )
                rows.append((i, annotation))
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for _, a in rows]
        return Objects(
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            classes=torch.tensor([a["category_id"] for _, a in rows], dtype=torch.int64),
            image_inds=torch.tensor([i for i, _ in rows], dtype=torch.int64),
            is_difficult=torch.tensor([bool(a.get("difficult", 0)) for _, a in rows]).bool(),
            is_crowd=torch.tensor([bool(a.get("iscrowd", 0)) for _, a in rows]).bool(),
            areas=torch.tensor(
                [
                    a.get("area", (x2 - x1) * (y2 - y1))
                    for (_, a), (x1, y1, x2, y2) in zip(rows, boxes, strict=True)
                ]
            ).double(),
        )

    def _collect_detections(self, predictions: dict) -> Detections:
        """All detections in the order of the data set, however many processes made them."""
        ids = [str(record["image_id"]) for record in self._records]
        unknown = set(predictions) - set(ids)
        if unknown:
            raise ValueError(
                f"Predictions for image {min(unknown)!r}, which {self._dataset_name!r} has not"
            )
        missing = len(ids) - len(predictions)
        if missing:
            logger.warning(
                f"{missing} of {len(ids)} images of {self._dataset_name} have no prediction; "
                "they count as images without detections."
            )
        seen = [
            (i, predictions[image_id]) for i, image_id in enumerate(ids) if image_id in predictions
        ]
        empty = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        boxes, scores, classes = (
            torch.cat([empty[j]] + [prediction[j] for _, prediction in seen]) for j in range(3)
        )
        counts = torch.tensor([len(p[1]) for _, p in seen], dtype=torch.int64)
        inds = torch.tensor([i for i, _ in seen], dtype=torch.int64)
        return Detections(boxes, scores, classes, inds.repeat_interleave(counts))

    def _write(self, output_dir: str, found: dict, table: str, results: list[ClassResult]) -> None:
        classes = {
            name: {
                "num_objects": result.num_objects,
                "num_difficult": result.num_difficult,
                "num_detections": len(result.inds),
                **{key: 100 * value for key, value in result.ap.items()},
                "best_f1": result.best_f1,
                "best_f1_score_thresh": result.best_f1_thresh,
            }
            for name, result in zip(self._class_names, results, strict=True)
        }
        content = {
            "dataset": self._dataset_name,
            "num_images": len(self._records),
            **found,
            "classes": classes,
        }
        with new_file(os.path.join(output_dir, "ap.json")) as path, open(path, "w") as f:
            json.dump(_without_nan(content), f, indent=2)
        by_class = zip(self._class_names, map(_true_positives, results), strict=True)
        true_positives = {"dataset": self._dataset_name, "classes": dict(by_class)}
        name = os.path.join(output_dir, "true_positives.json")
        with new_file(name) as path, open(path, "w") as f:
            json.dump(true_positives, f)
        with new_file(os.path.join(output_dir, "ap.txt")) as path, open(path, "w") as f:
            f.write(f"AP in percent on {self._dataset_name}\n\n{table}\n")
        logger.info(f"Wrote ap.json, ap.txt, true_positives.json to {output_dir}")


def format_table(class_names: Sequence[str], results: Sequence[ClassResult]) -> str:
    """One row per class, the mean, and all classes in one list (AP-pool), AP in percent."""
    counts = [(x.num_objects, x.num_difficult, len(x.inds)) for x in results]
    rows = [
        [name, *numbers, *_cells(result.ap, 0, bool(result.num_objects))]
        for name, numbers, result in zip(class_names, counts, results, strict=True)
    ]
    num_present = sum(result.num_objects > 0 for result in results)
    totals = [sum(numbers[i] for numbers in counts) for i in range(3)]
    rows.append([f"mean of {num_present}", *totals, *_cells(mean_ap(results), 0, True)])
    rows.append(["all in one list (AP-pool)", *totals, *_cells(pooled_ap(results), 1, True)])
    headers = ["class", "objects", "difficult", "detections", *_COLUMNS]
    align = ["left"] + ["right"] * (len(headers) - 1)
    table = tabulate(rows, headers, disable_numparse=True, colalign=align)
    absent = [
        name for name, result in zip(class_names, results, strict=True) if not result.num_objects
    ]
    if absent:
        table += f"\nNot in the mean, for want of objects: {', '.join(absent)}"
    return table


def _true_positives(result: ClassResult) -> dict:
    """
    Of a class: how many detections count, and of each true positive at IoU .5 its IoU and its rank
    among these, from 1.
    """
    counts = ~result.is_ignored
    return {
        "num_detections": int(counts.sum()),
        "iou": [round(x, 4) for x in result.iou[result.is_tp].tolist()],
        "rank": counts.cumsum(0)[result.is_tp].tolist(),
    }


def _cells(ap: dict[str, float], which: int, is_known: bool) -> list[str]:
    return [f"{100 * ap[names[which]]:.2f}" if is_known else "-" for names in _COLUMNS.values()]


def _without_nan(value: object) -> object:
    """JSON knows no nan: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
