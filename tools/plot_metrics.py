# SPDX-License-Identifier: Apache-2.0
"""
Draws the curves of training runs into one picture.

    python tools/plot_metrics.py curves.png softmax=output/softmax-1 softmax=output/softmax-2 ...

Each folder has a metrics.json. Those of one label are seeds of one method; without a label it is
the folder's name without the number at its end.
"""

import argparse

from maploss.visualization import draw_metric_curves, group_runs


def main() -> None:
    """RaggedIndex the folders by name and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("picture")
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    args = parser.parse_args()
    runs = group_runs(args.folders)
    draw_metric_curves(args.picture, {k: [x / "metrics.json" for x in v] for k, v in runs.items()})


if __name__ == "__main__":
    main()
