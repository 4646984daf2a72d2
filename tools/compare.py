# SPDX-License-Identifier: Apache-2.0
"""
Trains softmax and the mAP losses on the shapes data set and prints one table.

    python tools/compare.py [--output output/compare] [--only TEXT] [KEY VALUE ...]

All rows see the same images and windows in the same order, for the same number of iterations; the
one with 25% foreground sees the same images, and more of the windows on objects.
Overrides at the end go to all. A row that was finished by the same command is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "Shapes-Detection"
ROWS = [
    ("softmax", "softmax", []),
    ("softmax, AdamW", "softmax", ["SOLVER.OPTIMIZER=AdamW", "SOLVER.BASE_LR=0.003"]),
    ("softmax, 25% foreground", "softmax", ["MODEL.ROI_HEADS.POSITIVE_FRACTION=0.25"]),
    ("map", "map", []),
    ("map, kept windows only", "map", ["MODEL.MAP_LOSS.TRANSITIVITY=none"]),
    *(
        (
            f"map, {estimator}, {level}",
            "map_steps",
            [f"MODEL.MAP_LOSS.ESTIMATOR={estimator}", f"MODEL.MAP_LOSS.TRANSITIVITY={level}"],
        )
        for estimator in ("mee", "sde")
        for level in ("exact", "label_aware", "paper")
    ),
    ("map, sde, exact, unpaired", "map_steps", ["MODEL.MAP_LOSS.PAIRING=none"]),
    ("map, as in the paper", "map_paper", []),
]


def train(name: str, config: str, keys: list[str], output: Path, rest: list[str]) -> Path:
    """Runs train_net.py unless the same command has finished; returns the output folder."""
    folder = output / "".join(c if c.isalnum() else "_" for c in name)
    overrides = [part for key in keys for part in key.split("=")]
    command = ["--config-file", str(CONFIGS / f"{config}.yaml"), *overrides, *rest]
    record = folder / "command.json"
    if not record.is_file() or json.loads(record.read_text()) != command:
        train_net = [sys.executable, str(ROOT / "train_net.py")]
        subprocess.run([*train_net, *command, "OUTPUT_DIR", str(folder)], check=True)
        record.write_text(json.dumps(command))
    return folder


def row(name: str, folder: Path) -> list:
    """Name, optimizer, AP of the last evaluation and the pace of training."""
    bbox = json.loads((folder / "inference" / "ap.json").read_text())["bbox"]
    solver = yaml.safe_load((folder / "config.yaml").read_text())["SOLVER"]
    optimizer = f"{solver['OPTIMIZER']} {solver['BASE_LR']:g}"
    logged = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    pace = statistics.median(x["time"] for x in logged if "time" in x)
    minibatch = [x["map/minibatch_map"] for x in logged if "map/minibatch_map" in x]
    last = 100 * statistics.mean(minibatch[-5:]) if minibatch else None
    return [name, optimizer, bbox["AP50"], bbox["AP50-voc07"], bbox["AP"], last, pace]


def main() -> None:
    """Runs all rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "compare")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args, rest = parser.parse_known_args()
    rows = []
    for name, config, keys in ROWS:
        if args.only in name:
            rows.append(row(name, train(name, config, keys, args.output, rest)))
    if not rows:
        parser.error(f"--only: no row contains {args.only!r}")
    headers = [
        "method",
        "optimizer",
        "AP50",
        "11 points",
        "AP50:95",
        "minibatch mAP",
        "s/iteration",
    ]
    floats = (None, None, ".1f", ".1f", ".1f", ".1f", ".3f")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=floats))


if __name__ == "__main__":
    main()
