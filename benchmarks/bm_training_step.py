# SPDX-License-Identifier: Apache-2.0
"""
Cost of a training step with the mAP losses beside one with softmax, on the same windows.

    python -m benchmarks.bm_training_step [--steps 20] [--methods softmax map] [--device cuda]

16 images of the shapes data set, the whole network trains. The steps of all methods take turns, so
that a machine that slows down slows all of them. Prints medians of the time, and of the ratios to
the step with softmax of the same turn, of which half are between the quartiles; never fails. On a
CPU the time is that of the process (`time.process_time`): other programs count little.

"boxes" are regressed, one of each class, or "one box" for all; a quarter of the windows is over
objects. Softmax learns them by 1 - GIoU, the mAP loss by its own derivatives over ten overlaps.
"map" is the default: all classes in one list. "map, sde" ranks class by class.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import maploss  # noqa: F401 (registers the models and the data sets)
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from maploss.config import add_maploss_config
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import build_optimizer, prepare_config, training_records

from benchmarks.report import Row, machine, table

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "Shapes-Detection"
QUARTILES = torch.tensor([0.25, 0.5, 0.75])


class Method(NamedTuple):
    """A config of the shapes, overrides, the method that is the unit, and the goal in this unit."""

    config: str
    overrides: list[str] = []  # noqa: RUF012 (of a tuple, never changed)
    unit: str = "softmax"
    goal: float = 1.02


def _methods_with_boxes(name: str, is_class_agnostic: bool) -> dict[str, Method]:
    overrides = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", str(is_class_agnostic)]
    overrides += ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "1.0"]
    overrides += ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.25"]
    giou = ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"]
    of_map = ["MODEL.MAP_LOSS.BOX_REG.BOXES", "regressed", "MODEL.MAP_LOSS.IOU_THRESHS", "coco"]
    of_map += ["MODEL.MAP_LOSS.BOX_REG.GRADIENT", "error_driven"]
    unit = f"softmax, {name}"
    return {
        unit: Method("softmax", overrides + giou, unit, 1.0),
        f"map, {name}": Method("map", overrides + of_map, unit, 1.05),
    }


METHODS = {
    "softmax": Method("softmax", goal=1.0),
    "map": Method("map"),
    "map, ten overlaps": Method("map", ["MODEL.MAP_LOSS.IOU_THRESHS", "coco"]),
    **{
        f"map, sde, {level}": Method("map_steps", ["MODEL.MAP_LOSS.TRANSITIVITY", level])
        for level in ("exact", "label_aware", "paper")
    },
    **_methods_with_boxes("boxes", False),
    **_methods_with_boxes("one box", True),
}


def config_of(name: str, device: str = "cpu") -> CfgNode:
    """Of a method."""
    method, cfg = METHODS[name], get_cfg()
    add_maploss_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{method.config}.yaml"))
    cfg.merge_from_list([*method.overrides, "MODEL.DEVICE", device])
    return cfg


def measure(
    device: str = "cpu", *, steps: int = 20, methods: Sequence[str] = tuple(METHODS)
) -> list[Row]:
    """The methods and their units by turns."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    runs = []
    for name in dict.fromkeys(y for x in methods for y in (METHODS[x].unit, x)):
        cfg = config_of(name, device)
        prepare_config(cfg, eval_only=False)
        torch.manual_seed(0)
        model = build_model(cfg).train()
        runs.append((name, model, build_optimizer(cfg, model), []))
    dicts = training_records(cfg)
    mapper = MAPDatasetMapper(cfg, is_train=True)
    batch = [mapper(record) for record in dicts[: cfg.SOLVER.IMS_PER_BATCH]]
    with EventStorage():
        for _ in range(steps + 2):
            for _, model, optimizer, times in runs:
                torch.manual_seed(0)  # the same windows
                start = clock()
                losses = model(batch)
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(clock() - start)
    all_times = {name: times[2:] for name, *_, times in runs}
    return [_row(name, times, all_times[METHODS[name].unit]) for name, times in all_times.items()]


def _row(name: str, times: Sequence[float], unit: Sequence[float]) -> Row:
    """Of one method, by the seconds of its steps and of those of its unit."""
    ratios = [x / y for x, y in zip(times, unit, strict=True)]
    low, middle, high = (float(x) for x in torch.tensor(ratios).quantile(QUARTILES))
    return Row(
        Path(__file__).stem,
        name,
        1e3 * statistics.median(times),
        middle,
        METHODS[name].unit,
        note=f"{middle:.3f}, quartiles {low:.3f} and {high:.3f}; goal {METHODS[name].goal:.2f}",
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(machine(args.device))
    print(table(measure(args.device, steps=args.steps, methods=args.methods)))


if __name__ == "__main__":
    main()
