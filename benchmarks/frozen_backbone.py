# SPDX-License-Identifier: Apache-2.0
"""
Trains heads on a frozen backbone whose outputs are computed once: real images on a CPU.

    python benchmarks/frozen_backbone.py --config-file={A,B}.yaml [--seed={1,2,3}] [KEY VALUE ...]

Both options can be given several times, as the shell makes of the braces. All configs get the same
images, windows and start; they must share the backbone and the data sets. Overrides at the end go
to all; SOLVER.MAX_ITER is the number of updates. Prints a table and writes
<output>/<config>-<seed>/ap.json, metrics.json (for tools/plot_metrics.py) and model_final.pth, from
which train_net.py can train the backbone too. TEST.EVAL_PERIOD evaluates in between.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage, JSONWriter
from detectron2.utils.logger import setup_logger
from maploss import engine
from maploss.data.mapper import MAPDatasetMapper
from maploss.data.records import load_records
from maploss.engine.checkpoints import loading
from maploss.engine.safe_checkpointer import SafeCheckpointer
from maploss.evaluation import APEvaluator
from tabulate import tabulate
from torch import nn

logger = logging.getLogger("maploss.benchmarks.frozen_backbone")
_LOG_PERIOD = 25
_AP = ("AP50", "AP50-voc07", "AP75", "AP", "AP-pool")


class CachedImages:
    """Images of one data set: what the mapper gives, and the backbone's outputs as float16."""

    def __init__(
        self, cfg: CfgNode, model: nn.Module, name: str, is_train: bool, limit: int | None = None
    ) -> None:
        files = cfg.DATASETS.PROPOSAL_FILES_TRAIN if is_train else cfg.DATASETS.PROPOSAL_FILES_TEST
        dicts = load_records([name], files, filter_empty=is_train)
        mapper = MAPDatasetMapper(cfg, is_train=is_train)
        self.inputs, self.features = [], []
        for index, record in enumerate(dicts[:limit]):
            item = mapper(record)
            with torch.no_grad():
                image = model.preprocess_image([item])
                features = model.backbone(image.tensor)
            self.features.append({k: v[0].half() for k, v in features.items()})
            item["image"] = item["image"][:, :1, :1]  # only its size was needed
            self.inputs.append(item)
            if index % 200 == 199:
                logger.info(f"{name}: features of {index + 1}/{len(dicts)} images")

    def batch(self, inds: list[int]) -> tuple[ImageList, dict[str, torch.Tensor], list[dict]]:
        """Features padded to a common size, as those of a padded batch of images."""
        inputs = [self.inputs[i] for i in inds]
        features = {
            name: ImageList.from_tensors([self.features[i][name].float() for i in inds]).tensor
            for name in self.features[inds[0]]
        }
        sizes = [x["proposals"].image_size for x in inputs]
        return ImageList(features[next(iter(features))], sizes), features, inputs


def train_heads(
    cfg: CfgNode, model: nn.Module, train: CachedImages, test: CachedImages, folder: Path
) -> dict:
    """The heads' own forward, losses and the config's solver; returns what the last update left."""
    optimizer = engine.build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    updates, period = cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD
    generator = torch.Generator().manual_seed(cfg.SEED)
    order: list[int] = []
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.json"
    metrics.unlink(missing_ok=True)
    writer = JSONWriter(str(metrics))
    start = time.perf_counter()
    with EventStorage() as storage:
        for update in range(updates):
            model.train()
            while len(order) < cfg.SOLVER.IMS_PER_BATCH:
                order += torch.randperm(len(train.inputs), generator=generator).tolist()
            inds, order = order[: cfg.SOLVER.IMS_PER_BATCH], order[cfg.SOLVER.IMS_PER_BATCH :]
            batch, features, inputs = train.batch(inds)
            proposals = [x["proposals"] for x in inputs]
            targets = [x["instances"] for x in inputs]
            _, losses = model.roi_heads(batch, features, proposals, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            scheduler.step()
            for name, loss in losses.items():
                storage.put_scalar(name, float(loss))
            is_last = update == updates - 1
            if is_last or (period > 0 and update % period == period - 1):
                results = evaluate(model, test, cfg.DATASETS.TEST[0], folder)
                for name in _AP:
                    storage.put_scalar(f"bbox/{name}", results[name], smoothing_hint=False)
            if is_last or update % _LOG_PERIOD == _LOG_PERIOD - 1:
                watched = {k: h.median(_LOG_PERIOD) for k, h in storage.histories().items()}
                shown = "  ".join(f"{k} {v:.4g}" for k, v in watched.items() if "roi_head" not in k)
                pace = (time.perf_counter() - start) / (update + 1)
                logger.info(f"update {update + 1}/{updates}  {pace:.2f} s/update  {shown}")
                writer.write()
            storage.step()
    writer.close()
    SafeCheckpointer(model, str(folder)).save("model_final")
    return {**watched, **{name: results[name] for name in _AP}}


def evaluate(model: nn.Module, images: CachedImages, name: str, folder: Path) -> dict:
    """AP of the heads on a cached data set."""
    model.eval()
    evaluator = APEvaluator(name, str(folder))
    evaluator.reset()
    with torch.no_grad():
        for index in range(len(images.inputs)):
            batch, features, inputs = images.batch([index])
            proposals = [x["proposals"] for x in inputs]
            detections, _ = model.roi_heads(batch, features, proposals, None)
            evaluator.process(inputs, model._postprocess(detections, inputs, batch.image_sizes))
    return evaluator.evaluate()["bbox"]


def load_config(path: str, overrides: list[str]) -> CfgNode:
    """The config as train_net.py prepares it; everything before the heads must be frozen."""
    cfg = engine.load_config(path, [*overrides, "INPUT.RANDOM_FLIP", "none"])
    engine.prepare_config(cfg, eval_only=False)
    return cfg


def build(cfg: CfgNode, seed: int) -> nn.Module:
    """The model with its pretrained backbone; the same start of the heads for the same seed."""
    cfg.SEED = seed
    torch.manual_seed(seed)
    model = build_model(cfg)
    engine.set_box_targets(model, cfg)
    checkpointer = SafeCheckpointer(model, allow_pickle=cfg.ALLOW_PICKLE)
    with loading(checkpointer, cfg.MODEL.WEIGHTS, resume=False):
        checkpointer.load(cfg.MODEL.WEIGHTS)
    if any(p.requires_grad for p in model.backbone.parameters()):
        raise ValueError("MODEL.BACKBONE.FREEZE_AT: expected all layers frozen, got some not")
    return model


def main() -> None:
    """Runs every config with every seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config-file", action="append", required=True)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--output", default="output/frozen_backbone")
    args, overrides = parser.parse_known_args()
    seeds = args.seed or [1]
    setup_logger(args.output, name="maploss")
    configs = {Path(path).stem: load_config(path, overrides) for path in args.config_file}
    first = next(iter(configs.values()))
    model = build(first, seeds[0])
    train = CachedImages(first, model, first.DATASETS.TRAIN[0], is_train=True)
    test = CachedImages(first, model, first.DATASETS.TEST[0], is_train=False)
    rows = []
    for seed in seeds:
        for name, cfg in configs.items():
            model = build(cfg, seed)
            torch.manual_seed(seed)  # the same windows for all
            try:
                found = train_heads(cfg, model, train, test, Path(args.output) / f"{name}-{seed}")
            except FloatingPointError as error:
                logger.warning(f"{name} seed {seed} diverged: {error}")
                rows.append([name, seed])
                continue
            minibatch = found.get("map/minibatch_map", float("nan"))
            rows.append([name, seed, *(found[x] for x in _AP), 100 * minibatch])
            logger.info(f"{name} seed {seed}: AP50 {found['AP50']:.2f}")
    headers = ["config", "seed", *("AP50:95" if x == "AP" else x for x in _AP), "minibatch mAP"]
    print(tabulate(rows, headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()
