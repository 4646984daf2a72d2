# SPDX-License-Identifier: Apache-2.0
"""
Runs the speed benchmarks one after another and writes one table of all: `make bench`.

    python -m benchmarks.run_all [--device cuda] [--quick]

Each runs in a process of its own. The table is printed and written to output/bench.md, and as JSON
to output/bench.json, after each of them. One that fails is a row of the table; then the others go
on, and the exit status is 1. --quick only tries whether all run: its numbers say nothing.
"""

import argparse
import importlib
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.report import Row, machine, table

# What --quick calls each with.
BENCHMARKS = {
    "bm_map_loss": {"num_images": 8, "num_windows": 256, "repeats": 1},
    "bm_operations": {"num_windows": 50},
    "bm_training_step": {"steps": 1},
    "bm_ohem": {"steps": 1, "num_windows": 200, "num_turns": 1},
    "bm_ranking_losses": {"num_negatives": 2000, "num_images": 1},
    "bm_truncated_svd": {"repeats": 1, "num_windows": 100},
    "bm_global_minibatch": {"processes": [1, 2], "images": 1, "windows": 250, "repeats": 1},
}


def measure(name: str, device: str, options: Mapping) -> list[Row]:
    """The rows of the benchmark of that name."""
    return importlib.import_module(f"benchmarks.{name}").measure(device, **options)


def run_one(name: str, device: str, options: Mapping) -> list[Row]:
    """In a process of its own, so that neither its peak of memory nor its end is another's."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, name, device, options).result()
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [Row(name, "failed", None, note=reason[:200])]


def run_all(device: str, is_quick: bool, output: Path) -> bool:
    """Writes bench.md and bench.json to `output`; whether all have been measured."""
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name, quick in BENCHMARKS.items():
        start = time.perf_counter()
        rows += run_one(name, device, quick if is_quick else {})
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        where = machine(device) + (", --quick" if is_quick else "")
        (output / "bench.md").write_text(f"{where}\n\n{table(rows)}\n")
        content = {"machine": where, "rows": [row._asdict() for row in rows]}
        (output / "bench.json").write_text(json.dumps(content, indent=1))
    print((output / "bench.md").read_text(), end="")
    return all(row.milliseconds is not None for row in rows)


def main() -> int:
    """1 if one has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    return 0 if run_all(args.device, args.quick, Path("output")) else 1


if __name__ == "__main__":
    sys.exit(main())
