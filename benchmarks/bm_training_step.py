# SPDX-License-Identifier: Apache-2.0
"""
Cost of a training step with the mAP losses beside one with softmax, on the same windows.

    python benchmarks/bm_training_step.py [--steps 20] [--methods softmax map] [--device cuda]

16 images of the shapes data set, the whole network trains. The steps of all methods take turns, so
that a machine that slows down slows all of them. Prints medians of the time, and of the ratios to
the step with softmax of the same turn, of which half are between the quartiles; never fails. On a
CPU the time is that of the process (`time.process_time`): other programs count little.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import maploss  # noqa: F401 (registers the models and the data sets)
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from maploss.config import add_maploss_config
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import build_optimizer, prepare_config, training_records
from report import Row, machine, table

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "Shapes-Detection"
QUARTILES = torch.tensor([0.25, 0.5, 0.75])
# Configs and overrides; the first is the unit.
METHODS: dict[str, tuple[str, list[str]]] = {
    "softmax": ("softmax", []),
    "map": ("map", []),
    "map, ten overlaps": ("map", ["MODEL.MAP_LOSS.IOU_THRESHS", "coco"]),
    **{
        f"map, sde, {level}": ("map_steps", ["MODEL.MAP_LOSS.TRANSITIVITY", level])
        for level in ("exact", "label_aware", "paper")
    },
}


def measure(
    device: str = "cpu", *, steps: int = 20, methods: Sequence[str] = tuple(METHODS)
) -> list[Row]:
    """The methods by turns, the first of which is the unit."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    runs = []
    for name in methods:
        config, overrides = METHODS[name]
        cfg = get_cfg()
        add_maploss_config(cfg)
        cfg.merge_from_file(str(CONFIGS / f"{config}.yaml"))
        cfg.merge_from_list([*overrides, "MODEL.DEVICE", device])
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
    rows, unit = [], runs[0][-1][2:]
    for name, *_, times in runs:
        ratios = [x / y for x, y in zip(times[2:], unit, strict=True)]
        low, middle, high = (float(x) for x in torch.tensor(ratios).quantile(QUARTILES))
        rows.append(
            Row(
                Path(__file__).stem,
                name,
                1e3 * statistics.median(times[2:]),
                middle,
                methods[0],
                note=f"{middle:.3f}, quartiles {low:.3f} and {high:.3f}; goal 1.02",
            )
        )
    return rows


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
