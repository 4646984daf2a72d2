# SPDX-License-Identifier: Apache-2.0
"""
Can the loss lower itself? The mAP of one minibatch over updates on that minibatch alone.

    python -m benchmarks.one_minibatch --config-file CONFIG.yaml [--updates 40] [KEY VALUE ...]

Features are pooled once from a backbone that stays as it is; only the head trains, from the same
start, by the config's optimizer without its schedule: softmax, pairs, and the nearest steps with
each estimator, pairing and transitivity. Prints a table in Markdown. Of the first update: what
pushes scores up and down, summed over windows and classes; and the cosine between the change of
scores that the gradient asked for and the one that the shared weights made of it, mean over all.
"""

import argparse
import itertools

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from maploss.engine import build_optimizer
from maploss.layers.nms_ap_steps import TRANSITIVITIES
from maploss.layers.pair_gradient import PAIR_TRANSITIVITIES
from maploss.layers.pseudo_gradient import ESTIMATORS, PAIRINGS
from maploss.modeling import MAPOutputLayers
from tabulate import tabulate
from torch import nn

from .frozen_backbone import CachedImages, build, load_config

_SHOWN = 4


def variants() -> list[tuple[list[str], list]]:
    """Cells that name a row, and its overrides."""
    rows: list[tuple[list[str], list]] = [
        (["softmax", "", ""], ["MODEL.ROI_HEADS.NAME", "SoftmaxROIHeads"])
    ]
    steps = itertools.product(ESTIMATORS, PAIRINGS[::-1], TRANSITIVITIES)
    for estimator, pairing, level in [*(("pairs", "", x) for x in PAIR_TRANSITIVITIES), *steps]:
        overrides = ["MODEL.ROI_HEADS.NAME", "MAPROIHeads"]
        overrides += ["MODEL.MAP_LOSS.ESTIMATOR", estimator, "MODEL.MAP_LOSS.TRANSITIVITY", level]
        if pairing:
            overrides += ["MODEL.MAP_LOSS.PAIRING", pairing]
        rows.append(([estimator, pairing, level], overrides))
    return rows


class OneMinibatch:
    """The windows that train, their objects, and what is pooled from them."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        name = cfg.DATASETS.TRAIN[0]
        images = CachedImages(cfg, model, name, is_train=True, limit=cfg.SOLVER.IMS_PER_BATCH)
        _, features, inputs = images.batch(list(range(len(images.inputs))))
        heads = model.roi_heads
        self.targets: list[Instances] = [x["instances"] for x in inputs]
        torch.manual_seed(cfg.SEED)
        with EventStorage():
            self.windows = heads.label_and_sample_proposals(
                [x["proposals"] for x in inputs], self.targets
            )
        with torch.no_grad():
            self.pooled = heads.pooler(
                [features[x] for x in heads.in_features], [x.proposal_boxes for x in self.windows]
            )

    def train(self, cfg: CfgNode, updates: int) -> list[float]:
        """mAP in percent at some updates, both sums, the largest score at the end, the cosine."""
        heads = build(cfg, cfg.SEED).roi_heads
        predictor, optimizer = heads.box_predictor, build_optimizer(cfg, heads)
        watcher = _watcher(cfg)
        curve, cosines, sums = [], [], [float("nan")] * 2
        before = asked = None
        for update in range(updates + 1):
            outputs = predictor(heads.box_head(self.pooled))
            with EventStorage() as storage, torch.no_grad():
                watcher.losses(predictor.detection_scores(outputs), self.windows, self.targets)
                curve.append(100 * storage.latest()["map/minibatch_map"][0])
            if before is not None:
                change = outputs.detach() - before
                cosines.append(float(torch.cosine_similarity(change.ravel(), asked.ravel(), dim=0)))
            before = outputs.detach()
            outputs.retain_grad()
            with EventStorage() as storage:
                losses = predictor.losses(outputs, self.windows, self.targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            asked = -outputs.grad
            if update == 0:
                sums = [float(asked.clamp(min=0).sum()), float(-asked.clamp(max=0).sum())]
            if update < updates:
                optimizer.step()
        shown = [curve[updates * i // _SHOWN] for i in range(_SHOWN + 1)]
        return [*shown, *sums, float(outputs.detach().abs().max()), sum(cosines) / len(cosines)]


def _watcher(cfg: CfgNode) -> MAPOutputLayers:
    """Tells the minibatch's mAP from any scores, by the cheapest loss."""
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.MAP_LOSS.ESTIMATOR", "pairs"])
    cfg.merge_from_list(["MODEL.MAP_LOSS.TRANSITIVITY", "none"])
    return MAPOutputLayers(cfg, build(cfg, cfg.SEED).roi_heads.box_head.output_shape)


def main() -> None:
    """Runs all variants and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--updates", type=int, default=40)
    args, overrides = parser.parse_known_args()
    setup_logger(name="maploss")
    cfg = load_config(args.config_file, overrides)
    minibatch = OneMinibatch(cfg, build(cfg, cfg.SEED))
    rows = []
    for cells, keys in variants():
        variant = cfg.clone()
        variant.merge_from_list(keys)
        try:
            rows.append([*cells, *minibatch.train(variant, args.updates)])
        except FloatingPointError:
            rows.append([*cells, *[float("nan")] * (_SHOWN + 5)])
    after = [f"mAP after {args.updates * i // _SHOWN}" for i in range(_SHOWN + 1)]
    headers = ["loss", "pairing", "transitivity", *after, "up", "down", "largest score", "cosine"]
    floats = ("", "", "", *[".1f"] * len(after), ".2f", ".2f", ".1f", ".3f")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=floats))


if __name__ == "__main__":
    main()
