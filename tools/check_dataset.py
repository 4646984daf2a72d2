# SPDX-License-Identifier: Apache-2.0
"""
Reads a whole data set, images too, and lists what is wrong with it, a line each.

    python tools/check_dataset.py voc_2007_trainval [--config-file CONFIG.yaml] [KEY VALUE ...]

A data set of your own, in VOC's layout or COCO's form, is declared in the config or at the end:
DATASETS.DECLARED "[{...}]", as in the README. Exit status 1 where something is wrong.
"""

import argparse
import sys

import maploss  # noqa: F401 (registers the data sets)
from detectron2.data import MetadataCatalog
from maploss.data.check_dataset import check_coco, check_voc
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
        metadata = MetadataCatalog.get(args.dataset)
        if hasattr(metadata, "json_file"):
            problems = check_coco(metadata.json_file, metadata.image_root)
        elif hasattr(metadata, "dirname"):
            problems = check_voc(metadata.dirname, metadata.split, metadata.thing_classes)
        else:
            raise ValueError(f"{args.dataset!r} is neither in VOC's layout nor in COCO's form")
        for problem in problems:
            count += 1
            print(problem, flush=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.dataset}: {count} problems" if count else f"{args.dataset}: nothing wrong")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
