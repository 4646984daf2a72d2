# SPDX-License-Identifier: Apache-2.0
"""
Trains or evaluates a detector:

    python train_net.py --config-file configs/Shapes-Detection/map.yaml [--num-gpus N]
        [--resume] [--eval-only] [KEY VALUE ...]

--resume goes on from the last checkpoint in OUTPUT_DIR. --eval-only evaluates MODEL.WEIGHTS, or,
with --resume or where MODEL.WEIGHTS is empty, that checkpoint.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator

import maploss  # noqa: F401 (registers the models and the data sets)
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from maploss.data.images import ImageError
from maploss.engine import (
    Trainer,
    TrainingStopped,
    load_config,
    load_for_evaluation,
    prepare_config,
    preserve_config,
    use_feature_cache,
)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What is wrong before training lies in the user's words or files: it ends with one line."""
    try:
        yield
    except ImageError as error:
        sys.exit(f"error: {error.reason()}")
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyError as error:
        if "registry" not in str(error):  # else a wrong name of a part of the model
            raise
        sys.exit(f"error: {error.args[0]}")


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run, with output folder, loggers and random seed set up."""
    cfg = load_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="maploss")
    prepare_config(cfg, eval_only=args.eval_only)
    cfg.freeze()
    with preserve_config(cfg.OUTPUT_DIR) if args.eval_only else contextlib.nullcontext():
        default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> dict | None:
    """One run; returns the results of the evaluation."""
    if args.eval_only:
        return evaluate(args)
    with one_line_errors():
        cfg = setup(args)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        use_feature_cache(cfg, trainer.model, eval_only=False)
    try:
        trainer.train()
    except TrainingStopped as error:
        sys.exit(f"error: {error}")
    return getattr(trainer, "_last_eval_results", None)


def evaluate(args: argparse.Namespace) -> dict:
    """Results of the weights that --eval-only means."""
    with one_line_errors():
        cfg = setup(args)
        model = Trainer.build_model(cfg)
        options = {"resume": args.resume, "allow_pickle": cfg.PICKLE_ON}
        load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, **options)
        use_feature_cache(cfg, model, eval_only=True)
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
    machines = args.num_machines, args.machine_rank, args.dist_url
    try:
        launch(main, args.num_gpus, *machines, args=(args,))
    except torch.multiprocessing.ProcessExitedException as error:
        # Killed, or it has said why itself; a process that raised is shown with its traceback.
        sys.exit(f"error: {error}; --resume goes on from the last checkpoint")
