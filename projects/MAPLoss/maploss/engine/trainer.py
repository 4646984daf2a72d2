# SPDX-License-Identifier: Apache-2.0
"""Detectron2's trainer for this project: what it builds, how it resumes, and how it fails."""

import contextlib
import logging
import os
from collections.abc import Iterator

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.utils.data import DataLoader

from ..data.train_loader import TrainLoader
from ..evaluation import APEvaluator
from ..layers import MAPLoss
from ..modeling.cached_features import cached_meta_arch
from ..modeling.map_output_layers import map_output_layers_of
from ..utils.seeding import seed_generators
from ..visualization import draw_evaluation
from .accumulating_trainer import AccumulatingTrainer
from .box_targets import set_box_targets
from .checkpoints import loading
from .failures import NamedWriter, TrainingStopped, one_line_reason
from .loaders import build_mapper, build_test_loader, training_records
from .loss_pictures import LossPictures
from .optimizer import build_optimizer, freeze_except
from .preserve_loss_buffers import preserve_loss_buffers
from .progress_writer import ProgressWriter
from .safe_checkpointer import SafeCheckpointer

logger = logging.getLogger(__name__)

# Of the random numbers of an iteration, apart from those of other uses of the same seed.
_ITERATION = 2


class Trainer(DefaultTrainer):
    """
    DefaultTrainer with this project's loaders, optimizer and evaluation, that goes on exactly where
    it was killed, and whose failures name iteration and files.

    The random numbers and images of an iteration are functions of seed, iteration and rank; the
    seed is SEED, or a random one that the checkpoint keeps. So what `--resume` makes of a
    checkpoint is what a training without a stop would have made.

    A loss or score that is not finite, in training or in the evaluations meanwhile, names the
    iteration and the last checkpoint of this run; a checkpoint that cannot be loaded is named, and
    resuming goes on from the one before it if it is damaged. An image that cannot be read, a worker
    or another rank that died, and files that cannot be written raise
    :class:`~maploss.engine.failures.TrainingStopped`, one line that names iteration and checkpoint
    too.
    """

    _trainer: SimpleTrainer
    checkpointer: DetectionCheckpointer
    _hooks: list[HookBase]

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self._seed = self._trainer.data_loader.seed
        # Detectron2's own trainer of mixed precision needs CUDA.
        if cfg.SOLVER.ACCUMULATE_STEPS != 1 or cfg.SOLVER.AMP.ENABLED:
            self._trainer = AccumulatingTrainer(
                self._trainer.model,
                self._trainer.data_loader,
                self._trainer.optimizer,
                num_passes=cfg.SOLVER.ACCUMULATE_STEPS,
                is_amp=cfg.SOLVER.AMP.ENABLED,
            )
        # Before a checkpoint is loaded, whose box regression may have been trained for others.
        set_box_targets(self.model, cfg)
        self._older_tag: int | None = None
        self._stopped: str | None = None

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """As DefaultTrainer; of MODEL.TRAIN_ONLY and DATALOADER.FEATURE_CACHE too."""
        if cfg.DATALOADER.FEATURE_CACHE:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.META_ARCHITECTURE = cached_meta_arch(cfg.MODEL.META_ARCHITECTURE)
        model = super().build_model(cfg)
        freeze_except(model, cfg.MODEL.TRAIN_ONLY)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> APEvaluator:
        return APEvaluator(dataset_name, _results_folder(cfg, dataset_name))

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict:
        """As DefaultTrainer; draws what each APEvaluator has found."""
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results = super().test(cfg, model, evaluators)
        for evaluator in evaluators:
            if isinstance(evaluator, APEvaluator) and evaluator.evaluation is not None:
                evaluation = evaluator.evaluation
                draw_evaluation(evaluation, _results_folder(cfg, evaluation.dataset_name))
        return results

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        records = training_records(cfg, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        return TrainLoader(cfg, records, build_mapper(cfg, is_train=True))

    def build_writers(self) -> list[EventWriter]:
        folder = self.cfg.OUTPUT_DIR
        metrics = os.path.join(folder, "metrics.json")
        return [
            ProgressWriter(self.max_iter),
            NamedWriter(JSONWriter(metrics), metrics),
            NamedWriter(TensorboardXWriter(folder), folder),
        ]

    def build_hooks(self) -> list:
        # Made by Detectron2 just before, and about to be given to the hook that saves.
        made = self.checkpointer
        self.checkpointer = SafeCheckpointer(
            made.model,
            made.save_dir,
            allow_pickle=self.cfg.PICKLE_ON,
            **made.checkpointables,
        )
        made_hooks = super().build_hooks()
        if comm.is_main_process():
            # First, so that no evaluation comes between a minibatch and its pictures.
            pictures = LossPictures(
                self.model, self.cfg.MODEL.MAP_LOSS.VIS_PERIOD, self.cfg.INPUT.FORMAT
            )
            made_hooks.insert(0, pictures)
        return made_hooks

    def resume_or_load(self, resume: bool = True) -> None:
        resume = resume and self.checkpointer.choose_last()
        with (
            loading(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume=resume),
            preserve_loss_buffers(self.model),
        ):
            super().resume_or_load(resume=resume)
        # The checkpoints of an older run are no place to go on from, unless this one did.
        self._older_tag = None if resume else self._tag_time()

    def state_dict(self) -> dict:
        loss = self._map_loss()
        state = {**super().state_dict(), "seed": self._seed}
        state["_trainer"] = self._trainer.state_dict()  # Detectron2 0.5 saves no optimizer
        if loss is not None:
            state["map_loss"] = _settings_kept(loss)
        if loss is not None and loss.memory is not None:
            state["detection_memory"] = loss.memory.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        loss = self._map_loss()
        if loss is not None:
            _resume_map_loss(loss, state_dict)
        seed = state_dict.get("seed", self._seed)  # not in checkpoints of older versions
        if self.cfg.SEED >= 0 and seed != self.cfg.SEED:
            logger.warning(f"SEED is {self.cfg.SEED}: going on with {seed}, that of the checkpoint")
        self._seed = seed

    def _map_loss(self) -> MAPLoss | None:
        predictor = map_output_layers_of(self.model)
        return None if predictor is None else predictor.map_loss

    def train(self) -> dict | None:
        loader = self._trainer.data_loader
        loader.seed = self._seed
        loader.start = self.start_iter * self.cfg.SOLVER.ACCUMULATE_STEPS
        for hook in self._hooks:
            if isinstance(hook, hooks.PreciseBN) and not hook._disabled:
                # It has a loader of its own, of which it reads a part each time.
                times = self.start_iter // hook._period if hook._period > 0 else 0
                hook._data_loader.seed = self._seed
                hook._data_loader.start = times * hook._num_iter
        return super().train()

    def run_step(self) -> None:
        with self._annotate_errors():
            seed_generators(self._seed, _ITERATION, self.iter, comm.get_rank())
            super().run_step()
            if self.cfg.DATALOADER.UNREADABLE_IMAGES == "skip":
                counts = comm.gather(self._trainer.data_loader.num_skipped)
                self.storage.put_scalar("data/skipped_images", sum(counts), smoothing_hint=False)

    def after_step(self) -> None:
        with self._annotate_errors(is_writing=True):
            super().after_step()

    def after_train(self) -> None:
        if self.iter < self.max_iter:
            # An iteration failed. Nothing is evaluated after that, even if it was the last one:
            # this rank would wait for others, which wait for it.
            self._hooks = [x for x in self._hooks if isinstance(x, hooks.PeriodicWriter)]
        with self._annotate_errors(is_writing=True):
            super().after_train()

    @contextlib.contextmanager
    def _annotate_errors(self, *, is_writing: bool = False) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            last = self._last_checkpoint()
            if last != "none":
                last += "; if written just before, it may hold the parameters that failed"
            raise FloatingPointError(
                f"training stopped in iteration {self._iteration()}: {error} "
                f"(last checkpoint: {last})"
            ) from error
        except (OSError, RuntimeError) as error:
            reason = one_line_reason(
                error,
                is_writing=is_writing,
                output_dir=self.cfg.OUTPUT_DIR,
                num_ranks=comm.get_world_size(),
            )
            if reason is None:
                raise
            message = (
                f"training stopped in iteration {self._iteration()}: {reason} "
                f"(last checkpoint: {self._last_checkpoint()})"
            )
            # What fails in after_train after that follows from it.
            self._stopped = self._stopped or message
            raise TrainingStopped(self._stopped) from error

    def _iteration(self) -> int:
        # After the last iteration `iter` is one further.
        return min(self.iter, self.max_iter - 1)

    def _last_checkpoint(self) -> str:
        """The last one of this run, or "none"."""
        is_own = self._tag_time() != self._older_tag
        return (is_own and self.checkpointer.get_checkpoint_file()) or "none"

    def _tag_time(self) -> int | None:
        """When the file that names the last checkpoint was written; None if there is none."""
        try:
            tag = os.path.join(self.checkpointer.save_dir, "last_checkpoint")
            return os.stat(tag).st_mtime_ns
        except FileNotFoundError:
            return None


def _results_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Of an evaluation; one below it where there are several, which would overwrite each other."""
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return os.path.join(folder, dataset_name) if len(cfg.DATASETS.TEST) > 1 else folder


def _settings_kept(loss: MAPLoss) -> dict:
    """By key, what should not change without a word where a run is resumed."""
    return {
        "MODEL.MAP_LOSS.IOU_THRESHS": list(loss.settings.iou_threshs),
        "MODEL.MAP_LOSS.MEMORY": loss.memory.size if loss.memory is not None else 0,
    }


def _resume_map_loss(loss: MAPLoss, state_dict: dict) -> None:
    """Takes up the memory, unless it was matched at other overlaps; tells what has changed."""
    now = _settings_kept(loss)
    before = state_dict.get("map_loss", now)  # not in checkpoints of other losses
    memory = state_dict.get("detection_memory") if loss.memory is not None else None
    for key, value in now.items():
        if before[key] == value:
            continue
        message = f"{key} is {value}: the checkpoint was trained with {before[key]}"
        if key == "MODEL.MAP_LOSS.IOU_THRESHS" and memory is not None:
            message += "; the detections that it remembers are left out"
            memory = None
        logger.warning(message)
    if loss.memory is not None and memory is not None:
        loss.memory.load_state_dict(memory)
