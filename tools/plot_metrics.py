# SPDX-License-Identifier: Apache-2.0
"""
Draws the curves of training runs into one picture.

    python tools/plot_metrics.py curves.png softmax=output/softmax-1 softmax=output/softmax-2 ...

Each folder has a metrics.json. Those of one label are seeds of one method; without a label it is
the folder's name without the number at its end.
"""

import argparse
import re
from pathlib import Path

from maploss.visualization import draw_metric_curves


def main() -> None:
    """Groups the folders by name and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("picture")
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    args = parser.parse_args()
    runs: dict[str, list[Path]] = {}
    for argument in args.folders:
        label, _, folder = argument.rpartition("=")
        label = label or re.sub(r"-\d+$", "", Path(folder).name)
        runs.setdefault(label, []).append(Path(folder) / "metrics.json")
    draw_metric_curves(args.picture, runs)


if __name__ == "__main__":
    main()
