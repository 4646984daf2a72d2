# SPDX-License-Identifier: Apache-2.0
"""
Trains linear SVMs on the features of a trained detector, in the place of its classifier.

    python tools/train_svm.py --config-file output/run/config.yaml --output output/svm \\
        [--opts KEY VALUE ...]

The last checkpoint of OUTPUT_DIR, or MODEL.WEIGHTS if given, gives the features of the windows of
DATASETS.TRAIN; box regression, where there is some, stays. Writes model.pth and a config.yaml for
it, which train_net.py --eval-only takes: softmax against SVM on the same features. Needs
scikit-learn: pip install 'maploss[svm]'.
"""

import argparse
import sys
from pathlib import Path

import maploss  # noqa: F401 (registers the models and the data sets)
import torch
from detectron2.utils.logger import setup_logger
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import load_trained, prepare_config, show_as_at_test, training_records
from maploss.modeling.post_hoc_svm import extract_features, train_svms


def main() -> None:
    """Loads the model, trains, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    setup_logger(name="maploss")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        cfg, model = load_trained(args.config_file, args.opts)
        show_as_at_test(cfg)
        if not cfg.MODEL.LOAD_PROPOSALS:
            raise ValueError("MODEL.LOAD_PROPOSALS: expected True (windows of a file), got False")
        prepare_config(cfg, eval_only=False)
        model.to(cfg.MODEL.DEVICE)
        records = training_records(cfg)
        mapper = MAPDatasetMapper(cfg, is_train=True)
        weight, bias = train_svms(
            lambda: extract_features(model, map(mapper, records)),
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    # K raw scores and no background: the predictor of MAPROIHeads.
    state = model.state_dict()
    state["roi_heads.box_predictor.cls_score.weight"] = torch.from_numpy(weight)
    state["roi_heads.box_predictor.cls_score.bias"] = torch.from_numpy(bias)
    torch.save({"model": state}, args.output / "model.pth")
    cfg.MODEL.ROI_HEADS.NAME = "MAPROIHeads"
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False  # of no use at test, and refused by these heads
    has_regression = "roi_heads.box_predictor.bbox_pred.weight" in state
    cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = "windows" if has_regression else "none"
    cfg.MODEL.WEIGHTS = str((args.output / "model.pth").resolve())
    cfg.OUTPUT_DIR = str(args.output)
    (args.output / "config.yaml").write_text(cfg.dump())
    print(f"{len(weight)} SVMs in {cfg.MODEL.WEIGHTS}; evaluate them by")
    print(f"python train_net.py --eval-only --config-file {args.output / 'config.yaml'}")


if __name__ == "__main__":
    main()
