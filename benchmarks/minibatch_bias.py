# SPDX-License-Identifier: Apache-2.0
"""
How far the mAP of a minibatch is from that of all training images, with and without a memory.

    python benchmarks/minibatch_bias.py --config-file output/shapes/map/config.yaml \
        [--minibatches 150] [KEY VALUE ...]

The detector is trained and stays as it is; each training image is scored once, on windows sampled
as in training. Minibatches of 4, 8, 16 and 32 images are drawn without putting back, with the
detections of the last 0, 1, 4 and 8 in the ranking. Prints a table in Markdown: mean and standard
deviation of mAP of the minibatch minus mAP of all images, in percentage points, and the classes
that have an AP, of all.
"""

import argparse

import torch
from detectron2.utils.events import EventStorage
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import load_trained, prepare_config, training_records
from maploss.layers import DetectionMemory, MAPLossSettings, MAPLossStats, map_loss
from maploss.modeling.gradient_cache import LossInputs
from tabulate import tabulate

BATCHES, SIZES = (4, 8, 16, 32), (0, 1, 4, 8)


@torch.no_grad()
def score_images(cfg, model) -> list[LossInputs]:
    """Of each training image: its windows' scores and its objects."""
    mapper, heads, images = MAPDatasetMapper(cfg, is_train=True), model.roi_heads, []
    torch.manual_seed(0)
    for record in training_records(cfg):
        inputs = mapper(record)
        objects = inputs["instances"]
        windows = heads.label_and_sample_proposals([inputs["proposals"]], [objects])
        features = model.backbone(model.preprocess_image([inputs]).tensor)
        scores = heads.score_windows(features, windows).scores
        images.append(
            LossInputs(
                scores,
                windows[0].proposal_boxes.tensor,
                torch.zeros(len(scores), dtype=torch.int64),
                objects.gt_boxes.tensor,
                objects.gt_classes,
                torch.zeros_like(objects.gt_classes),
                objects.gt_difficult,
            )
        )
    return images


def rank(
    images: list[LossInputs], settings: MAPLossSettings, memory: DetectionMemory | None
) -> MAPLossStats:
    """What the loss says of these images together."""
    joined = LossInputs.join(images, [1] * len(images))
    return map_loss(*joined, settings=settings, memory=memory)[1]


def differences(
    images: list[LossInputs],
    settings: MAPLossSettings,
    whole: float,
    batch: int,
    size: int,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(count,) mAP of a minibatch minus `whole`; (count,) share of the classes with an AP."""
    generator = torch.Generator().manual_seed(0)
    memory = DetectionMemory(size) if size else None
    found, order = [], []
    for i in range(count + size):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator).tolist()
        chosen, order = order[:batch], order[batch:]
        stats = rank([images[j] for j in chosen], settings, memory)
        if i >= size:  # the memory is full
            found.append([stats.map - whole, stats.ap_per_class.isfinite().double().mean()])
    return torch.tensor(found).double().unbind(1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--minibatches", type=int, default=150)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    cfg, model = load_trained(args.config_file, args.overrides)
    prepare_config(cfg, eval_only=False)
    settings = model.roi_heads.box_predictor.map_loss.settings
    with EventStorage():
        images = score_images(cfg, model)
    whole = float(rank(images, settings, None).map)
    print(f"{len(images)} images, mAP of all {100 * whole:.1f}\n")
    rows = []
    for batch in BATCHES:
        cells = []
        for size in SIZES:
            away, present = differences(images, settings, whole, batch, size, args.minibatches)
            cells.append(
                f"{100 * away.mean():+.1f} ± {100 * away.std():.1f} ({100 * present.mean():.0f}%)"
            )
        rows.append([batch, *cells])
    headers = ["images", *(f"memory {size}" for size in SIZES)]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
