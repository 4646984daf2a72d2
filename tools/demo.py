# SPDX-License-Identifier: Apache-2.0
"""
Detects in images: pictures with boxes, and all detections as JSON.

    python tools/demo.py --config-file exported/model_0123abcd.yaml --output detected a.jpg b.png
        [--top 10] [--opts KEY VALUE ...]

For each image <output>/<name>.jpg, and <output>/detections.json: a list of {file, detections: a
list of {box: XYXY in pixels, score, class}}, the best so many of each image. Scores of a detector
trained with the mAP loss are raw: they rank, and have no threshold.
"""

import argparse
import json
import sys
from pathlib import Path

import maploss  # noqa: F401 (registers the models and the data sets)
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import Visualizer
from maploss.data.images import read_image
from maploss.engine import load_config, load_for_evaluation, prepare_device


def main() -> None:
    """Detects, draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    try:
        cfg = load_config(args.config_file, args.opts)
        prepare_device(cfg)
        if cfg.MODEL.LOAD_PROPOSALS:
            raise ValueError(
                f"{args.config_file}: expected a detector that makes its own windows; "
                "tools/export_model.py makes one"
            )
        args.output.mkdir(parents=True, exist_ok=True)
        pictures = [args.output / f"{Path(path).stem}.jpg" for path in args.images]
        if len(set(pictures)) < len(pictures):
            raise ValueError("images: expected files of different names, as their pictures have")
        sources = {Path(path).resolve() for path in args.images}
        if sources.intersection(path.resolve() for path in pictures):
            raise ValueError(
                f"--output {args.output}: expected a folder without the images, "
                "which the pictures would replace"
            )
        images = {path: read_image(path) for path in args.images}
        weights = _beside(cfg.MODEL.WEIGHTS, args.config_file)
        cfg.MODEL.WEIGHTS = ""  # DefaultPredictor would leave random what does not fit
        predictor = DefaultPredictor(cfg)
        load_for_evaluation(
            predictor.model,
            weights,
            cfg.OUTPUT_DIR,
            resume=False,
            allow_pickle=cfg.PICKLE_ON,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    classes = cfg.MODEL.CLASS_NAMES or MetadataCatalog.get(names[0]).thing_classes
    found = []
    for (path, image), target in zip(images.items(), pictures, strict=True):
        best = predictor(image)["instances"].to("cpu")[: args.top]
        names = [classes[i] for i in best.pred_classes.tolist()]
        boxes, scores = best.pred_boxes.tensor, best.scores.tolist()
        detections = [
            {"box": [round(x, 1) for x in box], "score": score, "class": name}
            for box, score, name in zip(boxes.tolist(), scores, names, strict=True)
        ]
        found.append({"file": path, "detections": detections})
        labels = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
        picture = Visualizer(image[:, :, ::-1]).overlay_instances(boxes=boxes, labels=labels)
        picture.save(str(target))
    (args.output / "detections.json").write_text(json.dumps(found, indent=1))
    print(f"{len(found)} images: {args.output / 'detections.json'} and a picture of each")


def _beside(weights: str, config_file: str) -> str:
    """The weights, or those of the same name beside the config, where both were moved."""
    moved = Path(config_file).parent / Path(weights).name
    return str(moved) if weights and not Path(weights).is_file() and moved.is_file() else weights


if __name__ == "__main__":
    main()
