# SPDX-License-Identifier: Apache-2.0
"""
Makes, imports and checks the windows (object proposals) of a data set.

    python tools/proposals.py make voc_2007_trainval windows.npz [--method fast] [--max-windows N]
    python tools/proposals.py import voc_2007_trainval windows.npz voc_2007_trainval.mat
    python tools/proposals.py check voc_2007_trainval windows.npz

make: selective search (fast, quality), or dense windows over scale, position and aspect ratio. Uses
all cores; stopped or killed, the same command goes on. import: a .mat released with Fast R-CNN, an
.npz of more images, or, with PICKLE_ON True at the end, a .pkl of Detectron2. check: coverage,
windows per image, recall, bad boxes; exit status 1 where something is wrong. A data set of your own
is declared with --config-file CONFIG.yaml or at the end: DATASETS.DECLARED "[{...}]", as in the
README.
"""

import argparse
import sys

import maploss  # noqa: F401 (registers the data sets)
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from maploss.data.check_proposals import ProposalReport, check_proposals
from maploss.data.declared import check_registered, register_declared_datasets
from maploss.data.import_proposals import import_proposals
from maploss.data.make_proposals import METHODS, make_proposals
from maploss.engine import load_config


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and the overrides of the config at its end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("make", "import", "check"):
        command = commands.add_parser(name)
        command.add_argument("dataset", help="name of a data set, registered or declared")
        command.add_argument("file", help="the proposal file (.npz)")
        if name == "make":
            command.add_argument("--method", choices=METHODS, default="fast")
            text = "the best so many of an image, 0 for all (default: %(default)s)"
            command.add_argument("--max-windows", type=int, default=2000, help=text)
        if name == "import":
            command.add_argument("archive", help="the .mat, .npz or .pkl file")
        command.add_argument("--config-file", default="")
    return parser.parse_known_args()


def describe(report: ProposalReport) -> str:
    """What a report says, a line each."""
    lines = [
        f"images covered: {len(report.counts)} of {len(report.counts) + len(report.missing)}"
        + (f"; missing: {report.missing[0]} first" if report.missing else "")
    ]
    if len(report.counts):
        low, middle, high = np.percentile(report.counts, (0, 50, 100)).astype(int)
        lines.append(
            f"windows per image: least {low}, median {middle}, most {high}, "
            f"all {report.counts.sum()}"
        )
    if report.without:
        lines.append(f"images with no window: {len(report.without)}; {report.without[0]} first")
    if report.num_others:
        lines.append(f"other images in the file: {report.num_others}")
    lines += [f"recall at IoU {t:g}: {100 * r:.1f}%" for t, r in report.recall.items()]
    lines[-1] += f" of {report.num_objects} objects"
    lines += [f"windows {name}: {count}" for name, count in report.bad.items() if count]
    return "\n".join(lines)


def main() -> int:
    """Runs one command; the exit status."""
    args, overrides = parse()
    setup_logger(name="maploss")
    try:
        if not args.file.endswith(".npz"):
            convert = f"import {args.dataset} NEW.npz {args.file} PICKLE_ON True"
            hint = f"; tools/proposals.py {convert} converts it" * args.file.endswith(".pkl")
            raise ValueError(f"{args.file}: expected a name that ends in .npz{hint}")
        cfg = load_config(args.config_file, overrides)
        register_declared_datasets(cfg.DATASETS.DECLARED)
        check_registered(args.dataset)
        records = DatasetCatalog.get(args.dataset)
        if args.command == "make":
            make_proposals(records, args.file, args.method, args.max_windows)
        if args.command == "import":
            ids = [x["image_id"] for x in records]
            import_proposals(args.archive, args.file, ids, allow_pickle=cfg.PICKLE_ON)
        report = check_proposals(records, args.file)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(report))
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
