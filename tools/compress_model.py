# SPDX-License-Identifier: Apache-2.0
"""
Compresses the fully connected layers of a trained detector by truncated SVD.

    python tools/compress_model.py --config-file output/demo/config.yaml --ranks 1024 256 \\
        --output output/compressed [--opts KEY VALUE ...]

The last checkpoint of OUTPUT_DIR, or MODEL.WEIGHTS if given, is compressed: a rank for each linear
layer of the box head, 0 leaves it whole. Writes model.pth and a config.yaml for it, which
train_net.py --eval-only takes, and prints what each layer lost.
"""

import argparse
import sys
from pathlib import Path

import maploss  # noqa: F401 (registers the models)
import torch
from maploss.engine import load_trained
from maploss.modeling.compression import compress
from tabulate import tabulate


def main() -> None:
    """Loads, compresses, writes, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--ranks", type=int, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        cfg, model = load_trained(args.config_file, args.opts)
        layers = compress(model.roi_heads.box_head, args.ranks)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    weights = (args.output / "model.pth").resolve()
    torch.save({"model": model.state_dict()}, weights)
    cfg.MODEL.ROI_BOX_HEAD.SVD_RANKS = args.ranks
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.OUTPUT_DIR = str(args.output)
    (args.output / "config.yaml").write_text(cfg.dump())
    rows = []
    for x in layers:
        before = x.shape[0] * x.shape[1]
        after = x.rank * sum(x.shape)
        rows.append([x.name, f"{x.shape[0]} x {x.shape[1]}", x.rank, before, after, 100 * x.error])
    headers = ["layer", "shape", "rank", "weights", "compressed", "error, %"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
