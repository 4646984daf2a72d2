# SPDX-License-Identifier: Apache-2.0
"""
Trains or evaluates a detector:

    python train_net.py --config-file configs/Shapes-Detection/map.yaml [--num-gpus N]
        [--resume] [--eval-only] [KEY VALUE ...]

--resume goes on from the last checkpoint in OUTPUT_DIR. --eval-only evaluates MODEL.WEIGHTS, or,
with --resume or where MODEL.WEIGHTS is empty, that checkpoint.
"""

import os
import sys

import maploss  # noqa: F401 (registers the models and the data sets)
import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import default_argument_parser, default_setup, default_writers, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from detectron2.utils.logger import setup_logger
from maploss.data.images import ImageError
from maploss.data.mapper import MAPDatasetMapper
from maploss.engine import (
    CheckedTrainer,
    ProgressWriter,
    build_optimizer,
    load_config,
    load_for_evaluation,
    prepare_config,
    train_only,
)
from maploss.evaluation import APEvaluator


class Trainer(CheckedTrainer):
    """Detectron2's trainer with this project's data, evaluation and progress line."""

    @classmethod
    def build_model(cls, cfg):
        # A predictor with more outputs draws more random numbers. Without this, which images and
        # windows train would depend on the predictor.
        with torch.random.fork_rng(devices=[]):
            model = super().build_model(cfg)
        train_only(model, cfg.MODEL.TRAIN_ONLY)
        return model

    build_optimizer = staticmethod(build_optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=MAPDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = MAPDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return APEvaluator(dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference"))

    def build_writers(self):
        writers = default_writers(self.cfg.OUTPUT_DIR, self.max_iter)
        progress = ProgressWriter(self.max_iter)
        return [progress if isinstance(x, CommonMetricPrinter) else x for x in writers]

    # Detectron2 0.5 saves no optimizer.
    def state_dict(self):
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])


def setup(args):
    """The frozen config of a run, with output folder, loggers and random seed set up."""
    try:
        cfg = load_config(args.config_file, args.opts)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="maploss")
        prepare_config(cfg, eval_only=args.eval_only)
    except (OSError, ValueError) as error:
        # What is wrong lies in the user's files or words: one line names it, a traceback hides it.
        sys.exit(f"error: {error}")
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    """One run; returns the results of the evaluation."""
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        return getattr(trainer, "_last_eval_results", None)
    model = Trainer.build_model(cfg)
    load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=args.resume)
    try:
        results = Trainer.test(cfg, model)
    except ImageError as error:
        sys.exit(f"error: {error.reason()}")
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    if args.num_gpus > max(torch.cuda.device_count(), 1):
        sys.exit(f"error: --num-gpus {args.num_gpus}: found {torch.cuda.device_count()} GPUs")
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
