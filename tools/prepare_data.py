# SPDX-License-Identifier: Apache-2.0
"""
Makes a config of a folder of images and boxes, and says what is wrong with it.

    python tools/prepare_data.py PATH [--output data.yaml]
    python train_net.py --config-file data.yaml

PATH is a folder, or a file that describes one: VOC's layout or any folder of XML and images, a json
of COCO's form, YOLO's data.yaml or label files, a CSV of file, box and class. Splits are found, or
made: 80% train, 20% are evaluated.
"""

import argparse
import logging
import sys
from pathlib import Path

import maploss  # noqa: F401 (registers the data sets)
from maploss.data.images import ImageError
from maploss.data.prepare import PrepareOptions, prepare_data
from maploss.data.prepare.prepare_data import base_path
from maploss.engine.own_data_base import choose_base

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "Own-Data"


def main() -> int:
    """Prints what was found; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="folder of the data set, or its .yaml, .json or .csv")
    parser.add_argument("--output", default="data.yaml", help="default: %(default)s")
    parser.add_argument(
        "--proposals",
        choices=("selective_search", "rpn"),
        default="selective_search",
        help="where windows come from: selective search, which takes about half a second an image, "
        "once; or an RPN, which is trained with the rest (default: %(default)s)",
    )
    parser.add_argument("--weights", default="", help="file of the backbone's weights")
    parser.add_argument(
        "--caffe", action="store_true", help="these were converted from Caffe: BGR minus the mean"
    )
    args = parser.parse_args()
    # Warnings of the loaders say again what is listed as problems.
    logging.getLogger("maploss").setLevel(logging.ERROR)
    try:
        chosen = choose_base(args.weights, args.proposals, is_caffe=args.caffe)
        base = base_path(str(CONFIGS / chosen.file), args.output)
        prepare_data(args.path, PrepareOptions(args.output, base, chosen.keys), print)
    except ImageError as error:
        print(f"error: {error.reason()}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in chosen.notes:
        print(f"- {note}")
    print(f"next: python train_net.py --config-file {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
