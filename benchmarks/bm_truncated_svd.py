# SPDX-License-Identifier: Apache-2.0
"""
Time of VGG16's fc6 and fc7 on 2,000 windows, whole and compressed (Girshick 2015, section 4.4).

    python benchmarks/bm_truncated_svd.py [--repeat 3] [--windows 2000] [--ranks 1024 256]

Weights are random: time does not depend on them. Prints the median of each, by turns.
"""

import argparse
import statistics
import time

import torch
from detectron2.layers import ShapeSpec
from maploss.modeling import FullyConnectedHead
from maploss.modeling.compression import make_thin
from tabulate import tabulate


@torch.no_grad()
def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--ranks", type=int, nargs=2, default=[1024, 256])
    args = parser.parse_args()
    shape = ShapeSpec(channels=512, height=7, width=7)
    heads = {
        name: FullyConnectedHead(shape, fc_dims=[4096, 4096], dropout=0.5).eval()
        for name in ("whole", "compressed")
    }
    make_thin(heads["compressed"], args.ranks)
    features = torch.rand(args.windows, 512, 7, 7)
    times: dict[str, list[float]] = {name: [] for name in heads}
    for turn in range(args.repeat + 1):
        for name, head in heads.items():
            start = time.perf_counter()
            head(features)
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(x) for name, x in times.items()}
    rows = [
        [
            name,
            sum(x.numel() for x in head.parameters()) / 1e6,
            medians[name],
            medians["whole"] / medians[name],
        ]
        for name, head in heads.items()
    ]
    print(f"{args.windows} windows, {torch.get_num_threads()} threads")
    headers = ["fc6, fc7", "parameters, millions", "seconds", "times faster"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
