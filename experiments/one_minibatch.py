# SPDX-License-Identifier: Apache-2.0
"""
Can the loss lower itself? The mAP of one minibatch over updates on that minibatch alone.

    python -m experiments.one_minibatch --config-file CONFIG.yaml [--updates 40] [KEY VALUE ...]

Features are pooled once from a backbone that stays as it is; only the head trains, from the same
start, by the config's optimizer without its schedule: softmax, the error-driven gradient, and the
nearest steps with each pairing and transitivity, class by class (POOLED 0). SOLVER.IMS_PER_BATCH
images. Prints a table in Markdown: mAP of the minibatch on itself; what pushes scores up and down
at the first update, summed over windows and classes, and the percentage of it that falls to the one
class with the most; the largest score at the end; the cosine between the change of scores that the
gradient asked for and the one that the shared weights made of it, mean over all updates.
"""

import argparse
import itertools

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import build_optimizer, load_config, prepare_config, training_records
from maploss.engine.checkpoints import loading
from maploss.engine.safe_checkpointer import SafeCheckpointer
from maploss.layers.map_loss.error_driven_gradient import ERROR_DRIVEN_TRANSITIVITIES
from maploss.layers.steps.nms_ap_steps import TRANSITIVITIES
from maploss.layers.steps.pseudo_gradient import ESTIMATORS, PAIRINGS
from maploss.modeling import MAPOutputLayers
from maploss.modeling.output_layers import BoxOutputLayers, BoxPredictions
from tabulate import tabulate
from torch import nn

_SHOWN = 4


def variants() -> list[tuple[list[str], list]]:
    """Cells that name a row, and its overrides."""
    rows: list[tuple[list[str], list]] = [
        (["softmax", "", ""], ["MODEL.ROI_HEADS.NAME", "SoftmaxROIHeads"])
    ]
    steps = itertools.product(ESTIMATORS, PAIRINGS[::-1], TRANSITIVITIES)
    for gradient, pairing, level in [
        *(("error_driven", "", x) for x in ERROR_DRIVEN_TRANSITIVITIES),
        *steps,
    ]:
        overrides = ["MODEL.ROI_HEADS.NAME", "MAPROIHeads", "MODEL.MAP_LOSS.POOLED", "0.0"]
        overrides += ["MODEL.MAP_LOSS.GRADIENT", gradient, "MODEL.MAP_LOSS.TRANSITIVITY", level]
        if pairing:
            overrides += ["MODEL.MAP_LOSS.NEAREST_STEPS.PAIRING", pairing]
        rows.append(([gradient, pairing, level], overrides))
    return rows


class OneMinibatch:
    """The windows that train, their objects, and what is pooled from them."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        mapper = MAPDatasetMapper(cfg, is_train=True)
        inputs = [mapper(x) for x in training_records(cfg)[: cfg.SOLVER.IMS_PER_BATCH]]
        heads = model.roi_heads
        self.targets: list[Instances] = [x["instances"] for x in inputs]
        torch.manual_seed(cfg.SEED)
        with EventStorage():
            self.windows = heads.label_and_sample_proposals(
                [x["proposals"] for x in inputs], self.targets
            )
        self.feature_shapes = model.backbone.output_shape()
        with torch.no_grad():
            features = model.backbone(model.preprocess_image(inputs).tensor)
            self.pooled = heads.pooler(
                [features[x] for x in heads.in_features], [x.proposal_boxes for x in self.windows]
            )

    def train(self, cfg: CfgNode, updates: int) -> list[float]:
        """mAP in percent at some updates, sums, the largest share and score, the cosine."""
        torch.manual_seed(cfg.SEED)
        heads = build_roi_heads(cfg, self.feature_shapes)
        predictor, optimizer = heads.box_predictor, build_optimizer(cfg, heads)
        watcher = _watcher(cfg, heads.box_head.output_shape)
        curve, cosines, sums = [], [], []
        before = asked = None
        for update in range(updates + 1):
            outputs = predictor(heads.box_head(self.pooled)).scores
            if before is not None:
                change = (outputs.detach() - before).ravel()
                cosines.append(float(torch.cosine_similarity(change, asked.ravel(), dim=0)))
            if update % (updates // _SHOWN) == 0:
                scores = predictor.detection_scores(outputs.detach())
                curve.append(100 * self._losses(watcher, scores)[1]["map/minibatch_map"][0])
            if update == updates:
                break
            before = outputs.detach()
            outputs.retain_grad()
            losses, _ = self._losses(predictor, outputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            asked = -outputs.grad
            if update == 0:
                per_class = asked.abs().sum(0)[: cfg.MODEL.ROI_HEADS.NUM_CLASSES]
                share = 100 * per_class.max() / per_class.sum()
                up, down = asked.clamp(min=0).sum(), -asked.clamp(max=0).sum()
                sums = [float(up), float(down), float(share)]
            optimizer.step()
        return [*curve, *sums, float(outputs.detach().abs().max()), sum(cosines) / len(cosines)]

    def _losses(self, predictor: BoxOutputLayers, scores: torch.Tensor) -> tuple[dict, dict]:
        """The losses, and what they put into the event storage."""
        with EventStorage() as storage:
            outputs = BoxPredictions(scores)
            return predictor.losses(outputs, self.windows, self.targets), storage.latest()


def build(cfg: CfgNode) -> nn.Module:
    """The model with its pretrained backbone."""
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    checkpointer = SafeCheckpointer(model, allow_pickle=cfg.PICKLE_ON)
    with loading(checkpointer, cfg.MODEL.WEIGHTS, resume=False):
        checkpointer.load(cfg.MODEL.WEIGHTS)
    return model


def _watcher(cfg: CfgNode, input_shape: ShapeSpec) -> MAPOutputLayers:
    """Tells the minibatch's mAP from any scores, by the cheapest loss."""
    cfg = cfg.clone()
    cfg.MODEL.MAP_LOSS.GRADIENT, cfg.MODEL.MAP_LOSS.TRANSITIVITY = "error_driven", "none"
    return MAPOutputLayers(cfg, input_shape)


def main() -> None:
    """Runs all variants and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--updates", type=int, default=40)
    args, overrides = parser.parse_known_args()
    if args.updates <= 0 or args.updates % _SHOWN:
        parser.error(f"--updates: expected a multiple of {_SHOWN} above 0, got {args.updates}")
    cfg = load_config(args.config_file, [*overrides, "INPUT.RANDOM_FLIP", "none"])
    prepare_config(cfg, eval_only=False)
    minibatch = OneMinibatch(cfg, build(cfg))
    present = torch.cat([x.gt_classes[x.gt_difficult == 0] for x in minibatch.targets]).unique()
    print(
        f"{len(minibatch.windows)} images, {len(minibatch.pooled)} windows, {len(present)} of "
        f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes present"
    )
    rows = []
    for cells, keys in variants():
        variant = cfg.clone()
        variant.merge_from_list(keys)
        try:
            rows.append([*cells, *minibatch.train(variant, args.updates)])
        except FloatingPointError:
            rows.append([*cells, *[float("nan")] * (_SHOWN + 6)])
    after = [f"mAP after {args.updates * i // _SHOWN}" for i in range(_SHOWN + 1)]
    watched = ["up", "down", "one class, %", "largest score", "cosine"]
    headers = ["loss", "pairing", "transitivity", *after, *watched]
    floats = ("", "", "", *[".1f"] * len(after), ".2f", ".2f", ".0f", ".1f", ".3f")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=floats))


if __name__ == "__main__":
    main()
