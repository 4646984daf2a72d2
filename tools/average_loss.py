# SPDX-License-Identifier: Apache-2.0
"""
Average training loss over all windows of a data set, for the checkpoints of runs, as curves.

    python tools/average_loss.py curves.png softmax=output/softmax ohem=output/ohem
        [--images 500] [--opts KEY VALUE ...]

Each folder is the OUTPUT_DIR of a run with SoftmaxROIHeads or OHEMROIHeads; those of one label are
seeds of one method. Writes average_loss.json into each, one line a checkpoint, and the picture
(Shrivastava et al. 2016, Figure 3). --images: so many of DATASETS.TRAIN, at equal distances.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import maploss  # noqa: F401 (registers the models and the data sets)
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import (
    load_config,
    load_for_evaluation,
    prepare_config,
    show_as_at_test,
    training_records,
)
from maploss.engine.checkpoints import find_checkpoints
from maploss.evaluation import average_loss
from maploss.visualization import draw_metric_curves, group_runs
from tqdm import tqdm


def measure(folder: Path, max_images: int, overrides: list[str]) -> Path:
    """The losses of all checkpoints of a run; returns the file that has them."""
    checkpoints = find_checkpoints(folder)
    cfg = load_config(str(folder / "config.yaml"), overrides)
    if cfg.MODEL.ROI_HEADS.NAME not in ("SoftmaxROIHeads", "OHEMROIHeads"):
        raise ValueError(
            f"{folder}: expected SoftmaxROIHeads or OHEMROIHeads, whose windows have losses of "
            f"their own, got {cfg.MODEL.ROI_HEADS.NAME}"
        )
    if not cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(f"{folder}: MODEL.LOAD_PROPOSALS: expected True, got False")
    # The labels of all windows.
    cfg.MODEL.ROI_HEADS.NAME = "OHEMROIHeads"
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = max(cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, 1)
    show_as_at_test(cfg)
    prepare_config(cfg, eval_only=False)
    records = training_records(cfg)
    records = records[:: math.ceil(len(records) / max_images)]
    mapper, model = MAPDatasetMapper(cfg, is_train=True), build_model(cfg)
    lines = []
    for iteration, path in checkpoints.items():
        load_for_evaluation(model, str(path), str(folder), resume=False)
        loss = average_loss(model, map(mapper, tqdm(records, desc=str(path), unit="image")))
        lines.append({"iteration": iteration - 1, "train/average_loss": loss})
        print(f"{folder}: {loss:.4f} after {iteration} iterations")
    result = folder / "average_loss.json"
    result.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return result


def main() -> None:
    """Measures all runs and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("picture")
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    setup_logger(name="maploss")
    try:
        if args.images < 1:
            raise ValueError(f"--images: expected at least 1, got {args.images}")
        runs = {
            label: [measure(folder, args.images, args.opts) for folder in folders]
            for label, folders in group_runs(args.folders).items()
        }
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    draw_metric_curves(args.picture, runs)


if __name__ == "__main__":
    main()
