# SPDX-License-Identifier: Apache-2.0
"""
How far the mAP of a minibatch is from that of all training images, with and without a memory.

    python -m experiments.minibatch_bias --config-file output/Shapes-Detection/map/config.yaml \
        [--minibatches 150] [--images 200] [KEY VALUE ...]

The detector is trained and stays as it is: any box head on windows of a file, with its last
checkpoint in OUTPUT_DIR or MODEL.WEIGHTS among the keys. Each training image (--images: the first
so many) is scored once, on windows sampled as in training; boxes are those of the test. The
overlaps are MODEL.MAP_LOSS.IOU_THRESHS: "coco" for AP50:95. Minibatches of 4, 8, 16 and 32 images
are drawn without putting back, with the detections of the last 0, 1, 4 and 8 in the ranking.

Prints a table in Markdown: bias and standard deviation, the mean over minibatches and that of one,
of an AP of the minibatch minus that of all images, in percentage points. In "AP" a class without
an object counts 0, as in the loss; in "AP of classes present" it is left out, as in the evaluation.
"AP-pool" is that of all classes in one list, where MODEL.MAP_LOSS.POOLED is more than 0.
"""

import argparse

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.events import EventStorage
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import load_trained, prepare_config, training_records
from maploss.layers import DetectionMemory, MAPLossSettings, MAPLossStats, map_loss
from maploss.layers.map_loss.settings import COCO_IOU_THRESHS
from maploss.modeling.gradient_cache import LossInputs
from maploss.modeling.map_loss_config import settings_from_config
from maploss.modeling.roi_heads import BoxROIHeads
from tabulate import tabulate

BATCHES, SIZES = (4, 8, 16, 32), (0, 1, 4, 8)


@torch.no_grad()
def score_images(cfg: CfgNode, model: GeneralizedRCNN, limit: int | None) -> list[LossInputs]:
    """Of each training image: the scores and boxes of its windows, and its objects."""
    mapper, heads, images = MAPDatasetMapper(cfg, is_train=True), model.roi_heads, []
    predictor = heads.box_predictor
    torch.manual_seed(0)
    for record in training_records(cfg)[:limit]:
        inputs = mapper(record)
        objects = inputs["instances"]
        windows = heads.label_and_sample_proposals([inputs["proposals"]], [objects])
        features = model.backbone(model.preprocess_image([inputs]).tensor)
        outputs = heads.score_proposals(features, windows)
        if not predictor.regress_at_test:
            outputs = outputs._replace(deltas=None)
        images.append(
            LossInputs(
                scores=predictor.detection_scores(outputs.scores),
                boxes=predictor.boxes(outputs, windows),
                image_ids=torch.zeros(len(windows[0]), dtype=torch.int64),
                gt_boxes=objects.gt_boxes.tensor,
                gt_classes=objects.gt_classes,
                gt_image_ids=torch.zeros_like(objects.gt_classes),
                gt_difficult=objects.gt_difficult,
            )
        )
    return images


def measure(
    images: list[LossInputs], settings: MAPLossSettings, memory: DetectionMemory | None
) -> dict[str, float]:
    """By name, in percent: what is said of these images together, ranked once."""
    joined = LossInputs.join(images, [1] * len(images))
    return named_ap(map_loss(*joined, settings=settings, memory=memory)[1], settings.iou_threshs)


def named_ap(stats: MAPLossStats, iou_threshs: tuple[float, ...]) -> dict[str, float]:
    """The mean over overlaps, and of several also the first alone; and the classes present."""
    mean = "AP50:95" if iou_threshs == COCO_IOU_THRESHS else "AP"
    rows = {f"AP{100 * iou_threshs[0]:g}": stats.ap[0]}
    if len(iou_threshs) > 1:
        rows = {mean: stats.ap_per_class, **rows}
    found = {}
    for name, ap in rows.items():
        found[name] = 100 * float(ap.nansum()) / len(ap)
        found[f"{name} of classes present"] = 100 * float(ap.nanmean())
    if stats.pooled_ap is not None:
        found["AP-pool"] = 100 * float(stats.pooled_ap)
    found["classes present"] = 100 * float(stats.ap_per_class.isfinite().double().mean())
    return found


def minibatches(
    images: list[LossInputs], settings: MAPLossSettings, batch: int, size: int, count: int
) -> list[dict[str, float]]:
    """:func:`measure` of `count` minibatches, each with the last `size` in the ranking."""
    generator = torch.Generator().manual_seed(0)
    memory = DetectionMemory(size) if size else None
    found, order = [], []
    for i in range(count + size):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator).tolist()
        chosen, order = order[:batch], order[batch:]
        said = measure([images[j] for j in chosen], settings, memory)
        if i >= size:  # the memory is full
            found.append(said)
    return found


def bias_rows(
    images: list[LossInputs], settings: MAPLossSettings, whole: dict[str, float], count: int
) -> list[list]:
    """Of each number of images and each measure: a cell for each size of the memory."""
    rows = []
    for batch in BATCHES:
        found = [minibatches(images, settings, batch, size, count) for size in SIZES]
        for name in whole:
            # A minibatch of which all objects are difficult has no class present.
            values = [torch.tensor([x[name] for x in said]) for said in found]
            values = [x[x.isfinite()] for x in values]
            if name == "classes present":
                cells = [f"{x.mean():.0f}%" for x in values]
            else:
                cells = [f"{x.mean() - whole[name]:+.1f} ± {x.std():.1f}" for x in values]
            rows.append([batch, name, *cells])
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--minibatches", type=int, default=150)
    parser.add_argument("--images", type=int, help="all by default")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    cfg, model = load_trained(args.config_file, args.overrides)
    prepare_config(cfg, eval_only=False)
    if not isinstance(model.roi_heads, BoxROIHeads) or not cfg.MODEL.LOAD_PROPOSALS:
        parser.error("expected a config with MODEL.LOAD_PROPOSALS and this project's ROI heads")
    settings = settings_from_config(cfg)
    with EventStorage():
        images = score_images(cfg, model, args.images)
    if len(images) < max(BATCHES):
        parser.error(f"expected at least {max(BATCHES)} training images, got {len(images)}")
    whole = measure(images, settings, None)
    print(
        f"{len(images)} images, all together:", ", ".join(f"{k} {v:.1f}" for k, v in whole.items())
    )
    rows = bias_rows(images, settings, whole, args.minibatches)
    headers = ["images", "", *(f"memory {size}" for size in SIZES)]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
