# SPDX-License-Identifier: Apache-2.0
"""
Trains softmax and the mAP losses on the shapes data set and prints one table.

    python -m experiments.compare [--seed={1,2}] [--output output/compare] [--only TEXT]
        [KEY VALUE ...]

All rows of a seed see the same images and windows in the same order, for the same number of
iterations; those with 25% foreground see the same images, and more of the windows on objects, those
with half the minibatch twice the iterations. "map" is the default, which ranks all classes in one
list; kept windows, nearest steps and the paper's loss are ranked class by class. The ablations are
the paper's (section 5). Overrides at the end go to all. A run that was finished by the same command
is not run again.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "Shapes-Detection"
LOSS = "MODEL.MAP_LOSS"
REG = f"{LOSS}.SCORE_REG.WEIGHT"
POOLED = f"{LOSS}.POOLED=0.0"
HALF = ["SOLVER.IMS_PER_BATCH=8", "SOLVER.MAX_ITER=1200", "SOLVER.STEPS=(900,)"]
ROWS = [
    ("softmax", "softmax", []),
    ("softmax, SGD", "softmax", ["SOLVER.OPTIMIZER=SGD", "SOLVER.BASE_LR=0.1"]),
    ("softmax, 25% foreground", "softmax", ["MODEL.ROI_HEADS.POSITIVE_FRACTION=0.25"]),
    ("map", "map", []),
    ("map, class by class", "map", [f"{LOSS}.TRANSITIVITY=label_aware", POOLED]),
    ("map, kept windows only", "map", [f"{LOSS}.TRANSITIVITY=none", POOLED]),
    *(
        (
            f"map, {gradient}, {level}",
            "map_steps",
            [f"{LOSS}.GRADIENT={gradient}", f"{LOSS}.TRANSITIVITY={level}"],
        )
        for gradient in ("mee", "sde")
        for level in ("exact", "label_aware", "paper", "none")
    ),
    ("map, sde, exact, unpaired", "map_steps", [f"{LOSS}.NEAREST_STEPS.PAIRING=none"]),
    ("map, 25% foreground", "map", ["MODEL.ROI_HEADS.POSITIVE_FRACTION=0.25"]),
    ("map, half the minibatch", "map", HALF),
    ("map, as in the paper", "map_paper", []),
    ("paper, 25% foreground", "map_paper", ["MODEL.ROI_HEADS.POSITIVE_FRACTION=0.25"]),
    ("paper, half the minibatch", "map_paper", HALF),
    # As large as the fourth power at a score of 3.
    ("paper, L2 instead of L4", "map_paper", [f"{LOSS}.SCORE_REG.POWER=2.0", f"{REG}=1e-4"]),
    ("paper, no regulariser", "map_paper", [f"{REG}=0.0"]),
    ("paper, no clipping", "map_paper", [f"{LOSS}.GRAD_CLIP=0.0"]),
    ("paper, no log", "map_paper", [f"{LOSS}.LOG_SPACE.ENABLED=False"]),
]


def train(
    name: str, config: str, keys: list[str], seed: int, output: Path, rest: list[str]
) -> Path:
    """Runs train_net.py unless the same command has finished; returns the output folder."""
    folder = output / f"{''.join(c if c.isalnum() else '_' for c in name)}-{seed}"
    overrides = [part for key in [*keys, f"SEED={seed}"] for part in key.split("=")]
    command = ["--config-file", str(CONFIGS / f"{config}.yaml"), *overrides, *rest]
    record = folder / "command.json"
    if not record.is_file() or json.loads(record.read_text()) != command:
        (folder / "diverged").unlink(missing_ok=True)
        train_net = [sys.executable, str(ROOT / "train_net.py")]
        done = subprocess.run([*train_net, *command, "OUTPUT_DIR", str(folder)])
        # Scores that are not finite stop a run in the middle: a result. All else is a fault.
        if done.returncode == 1 and (folder / "metrics.json").is_file():
            (folder / "diverged").touch()
        else:
            done.check_returncode()
        record.write_text(json.dumps(command))
    return folder


def measure(folder: Path) -> list[float] | None:
    """AP of the last evaluation, the minibatch's mAP at the end, pace; None if it diverged."""
    if (folder / "diverged").exists():
        return None
    bbox = json.loads((folder / "inference" / "ap.json").read_text())["bbox"]
    logged = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    pace = statistics.median(x["time"] for x in logged if "time" in x)
    minibatch = [x["map/minibatch_map"] for x in logged if "map/minibatch_map" in x]
    last = 100 * statistics.mean(minibatch[-5:]) if minibatch else float("nan")
    return [bbox["AP50"], bbox["AP50-voc07"], bbox["AP"], last, pace]


def row(name: str, folders: list[Path]) -> list:
    """Name, optimizer, mean and each seed of AP50, means of the rest."""
    solver = yaml.safe_load((folders[0] / "config.yaml").read_text())["SOLVER"]
    cells = [name, f"{solver['OPTIMIZER']} {solver['BASE_LR']:g}"]
    measured = [measure(folder) for folder in folders]
    done = [x for x in measured if x is not None]
    seeds = ", ".join("diverged" if x is None else f"{x[0]:.1f}" for x in measured)
    if not done:
        return [*cells, None, seeds]
    means = [statistics.mean(column) for column in zip(*done, strict=True)]
    return [*cells, means[0], seeds, *(None if math.isnan(x) else x for x in means[1:])]


def main() -> None:
    """Runs all rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "compare")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args, rest = parser.parse_known_args()
    rows = []
    for name, config, keys in ROWS:
        if args.only in name:
            seeds = args.seed or [1]
            folders = [train(name, config, keys, seed, args.output, rest) for seed in seeds]
            rows.append(row(name, folders))
    if not rows:
        parser.error(f"--only: no row contains {args.only!r}")
    headers = [
        "method",
        "optimizer",
        "AP50",
        "seeds",
        "11 points",
        "AP50:95",
        "minibatch mAP",
        "s/iteration",
    ]
    floats = (None, None, ".1f", None, ".1f", ".1f", ".1f", ".3f")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=floats))


if __name__ == "__main__":
    main()
