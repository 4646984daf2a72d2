# SPDX-License-Identifier: Apache-2.0
"""
Time of VGG16's fc6 and fc7 on 2,000 windows, whole and compressed (Girshick 2015, section 4.4).

    python -m benchmarks.bm_truncated_svd [--repeat 3] [--windows 2000] [--ranks 1024 256]

Weights are random: time does not depend on them. Prints the median of each, by turns.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.layers import ShapeSpec
from maploss.modeling import FullyConnectedHead
from maploss.modeling.compression import factorize_linear

from benchmarks.report import Row, machine, table


@torch.no_grad()
def measure(
    device: str = "cpu",
    *,
    repeats: int = 3,
    num_windows: int = 2000,
    ranks: Sequence[int] = (1024, 256),
) -> list[Row]:
    """Both heads by turns."""
    shape = ShapeSpec(channels=512, height=7, width=7)
    heads = {
        name: FullyConnectedHead(shape, fc_dims=[4096, 4096], dropout=0.5).eval()
        for name in ("whole", "compressed")
    }
    factorize_linear(heads["compressed"], ranks)
    for head in heads.values():
        head.to(device)
    features = torch.rand(num_windows, 512, 7, 7, device=device)
    times: dict[str, list[float]] = {name: [] for name in heads}
    for turn in range(repeats + 1):
        for name, head in heads.items():
            start = time.perf_counter()
            head(features)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(x) for name, x in times.items()}
    return [
        Row(
            Path(__file__).stem,
            name,
            1e3 * medians[name],
            medians[name] / medians["whole"],
            "whole",
            sum(x.nbytes for x in head.parameters()) / 2**20,
            "parameters",
            f"{num_windows} windows; {medians['whole'] / medians[name]:.2f} times faster",
        )
        for name, head in heads.items()
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--ranks", type=int, nargs=2, default=[1024, 256])
    args = parser.parse_args()
    print(machine(args.device))
    options = {"repeats": args.repeat, "num_windows": args.windows, "ranks": args.ranks}
    print(table(measure(args.device, **options)))


if __name__ == "__main__":
    main()
