# SPDX-License-Identifier: Apache-2.0
"""
Reads a whole data set, images too, and lists what is wrong with it, a line each.

    python tools/check_dataset.py voc_2007_trainval [--config-file CONFIG.yaml] [KEY VALUE ...]

A data set of your own (voc, coco, yolo, csv) is declared in the config or at the end:
DATASETS.DECLARED "[{...}]", as in the README. Exit status 1 where something is wrong.
"""

import argparse
import sys

import maploss  # noqa: F401 (registers the data sets)
from maploss.data.check_dataset import check_dataset
from maploss.data.declared import check_registered, register_declared_datasets
from maploss.engine import load_config


def main() -> int:
    """Prints all problems; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="name of a data set, registered or declared")
    parser.add_argument("--config-file", default="")
    args, overrides = parser.parse_known_args()
    count = 0
    try:
        cfg = load_config(args.config_file, overrides)
        register_declared_datasets(cfg.DATASETS.DECLARED)
        check_registered(args.dataset)
        for problem in check_dataset(args.dataset):
            count += 1
            print(problem, flush=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.dataset}: {count} problems" if count else f"{args.dataset}: nothing wrong")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
