# SPDX-License-Identifier: Apache-2.0
"""
Draws whether the detections of evaluated runs that are placed best come first.

    python tools/plot_ranking.py ranking.png softmax=output/softmax-1 softmax=output/softmax-2 ...

Each folder is an OUTPUT_DIR whose inference/ has a true_positives.json, which every evaluation
writes. Those of one label are seeds of one method and share a panel; without a label it is the
folder's name without the number at its end.
"""

import argparse
import sys

from maploss.visualization import draw_ranking, group_runs


def main() -> None:
    """Groups the folders by label and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture")
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    args = parser.parse_args()
    runs = group_runs(args.folders)
    files = {k: [x / "inference" / "true_positives.json" for x in v] for k, v in runs.items()}
    try:
        draw_ranking(args.picture, files)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
