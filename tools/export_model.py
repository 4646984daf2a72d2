# SPDX-License-Identifier: Apache-2.0
"""
Writes a trained detector as a checkpoint for others, with a config beside it.

    python tools/export_model.py --config-file output/demo/config.yaml --output exported \\
        [--name my_detector] [--ranks 1024 256] [--opts KEY VALUE ...]

The last checkpoint of OUTPUT_DIR, or MODEL.WEIGHTS if given, without the optimizer; --ranks
compresses the box head by truncated SVD. The name has the first digits of the file's sha256. The
config is for Detectron2's DefaultPredictor (after `import maploss`) and for tools/demo.py, on
images alone.
"""

import argparse
import sys
from pathlib import Path

import maploss  # noqa: F401 (registers the models and the data sets)
from maploss.engine import load_trained
from maploss.export import export_model
from maploss.modeling.compression import compress


def main() -> None:
    """Loads, compresses if asked, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--name", default="model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[])
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        cfg, model = load_trained(args.config_file, args.opts)
        if args.ranks:
            compress(model.roi_heads.box_head, args.ranks)
            cfg.MODEL.ROI_BOX_HEAD.SVD_RANKS = args.ranks
        path = export_model(cfg, model, args.output, args.name)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{path} and {path.with_suffix('.yaml').name}")


if __name__ == "__main__":
    main()
