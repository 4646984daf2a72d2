# SPDX-License-Identifier: Apache-2.0
"""
Draws the curves of training runs into one picture.

    python tools/plot_metrics.py curves.png output/softmax-1 output/softmax-2 output/map-1 ...

Each folder has a metrics.json. Folders whose names differ only in the number at the end are seeds
of one method.
"""

import argparse
import re
from pathlib import Path

from maploss.visualization import draw_metric_curves


def main() -> None:
    """Groups the folders by name and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("picture")
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args()
    runs: dict[str, list[Path]] = {}
    for folder in args.folders:
        runs.setdefault(re.sub(r"-\d+$", "", folder.name), []).append(folder / "metrics.json")
    draw_metric_curves(args.picture, runs)


if __name__ == "__main__":
    main()
