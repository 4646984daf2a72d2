# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or absent, and that are read without running what is in them."""

import contextlib
import logging
import math
import os
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from torch import nn

from ..utils.atomic_files import new_file, remove_leftovers
from ..utils.safe_pickle import load_arrays

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A file that is no checkpoint, or a damaged one; the message names it."""


class _TensorsOnly(Checkpointer):
    """Stands behind DetectionCheckpointer, which leaves the reading of .pth to the class behind."""

    def _load_file(self, f: str) -> dict:
        return _load_tensors(f)


class SafeCheckpointer(DetectionCheckpointer, _TensorsOnly):
    """
    Detectron2's checkpointer for files that can be damaged, or of others.

    A checkpoint appears in one step, or not at all. Only tensors and plain containers are read, out
    of pickles (.pkl, the weights of Detectron2's model zoo) only where `allow_pickle` is True.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        allow_pickle: bool = False,
        needs_all_weights: bool = False,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: what is saved and loaded.
            save_dir: folder of the checkpoints.
            allow_pickle: see above.
            needs_all_weights: a file has to have all of the model, not only what is frozen: what
                stays random can be trained, but neither used as it is nor evaluated.
            checkpointables: saved and loaded too, by name.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.allow_pickle = allow_pickle
        self.needs_all_weights = needs_all_weights
        self._instead_of_last = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """
        As Detectron2's; the checkpoints before it, and which is the last, stay where it fails.

        Raises:
            OSError: the file cannot be written, the disk is full; names the file.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        if os.path.isdir(self.save_dir):
            for name_begins in ("model_", "last_checkpoint"):
                beginning = os.path.join(self.save_dir, name_begins)
                remove_leftovers(beginning, is_beginning=True)
        data = {"model": self.model.state_dict()}
        data |= {key: x.state_dict() for key, x in self.checkpointables.items()} | kwargs
        self.logger.info(f"Saving checkpoint to {path}")
        with _saving(path) as temporary, open(temporary, "wb") as f:
            torch.save(data, f)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Writes the name of the last checkpoint, in one step."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        with _saving(path) as temporary, open(temporary, "w") as f:
            f.write(last_filename_basename)
        self._instead_of_last = ""

    def get_checkpoint_file(self) -> str:
        """The last checkpoint, or the one that :meth:`choose_last` has chosen instead."""
        return self._instead_of_last or super().get_checkpoint_file()

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return bool(self._instead_of_last) or super().has_checkpoint()

    def choose_last(self) -> bool:
        """
        Chooses the checkpoint to resume from, the same in all processes; all of them call this.

        It is the last one, or, with a warning, where that cannot be read, the one before it. Where
        none can be read it is the last one, and its error comes when it is loaded.

        Returns:
            Whether there is one.
        """
        path = self._newest_readable() if comm.is_main_process() else ""
        # The other processes may see other files, or see them later.
        path = comm.all_gather(path)[0]
        self._instead_of_last = path if path != super().get_checkpoint_file() else ""
        return bool(path)

    def _newest_readable(self) -> str:
        last = self.get_checkpoint_file() if self.has_checkpoint() else ""
        failures = []
        for path in (last, *_older_checkpoints(last)):
            try:
                if path.endswith(".pth"):
                    _load_tensors(path)
            except (CheckpointError, OSError) as error:
                failures.append(str(error))
                continue
            if failures:
                logger.warning(f"{'; '.join(failures)}: going on from the one before it, {path}")
            return path
        return last

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        if filename.endswith(".pyth"):  # of pycls
            content = _load_tensors(filename)
            if "model_state" not in content:
                raise CheckpointError(f"Cannot load checkpoint {filename}: it has no model_state")
            weights = content["model_state"].items()
            model = {k: v for k, v in weights if not k.endswith("num_batches_tracked")}
            return {"model": model, "__author__": "pycls", "matching_heuristics": True}
        return super()._load_file(filename)

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        """As Detectron2's; ValueError where the file lacks weights that the model needs."""
        incompatible = super()._load_model(checkpoint)
        _check_weights(incompatible, self.model, self.needs_all_weights)
        return incompatible

    def _load_pickle(self, filename: str) -> dict:
        """Of Detectron2's model zoo, or Caffe2's weights, whose names and forms are others."""
        if not self.allow_pickle:
            raise CheckpointError(
                f"Cannot load checkpoint {filename}: a pickle is read only with PICKLE_ON True"
            )
        with _reading(filename), open(filename, "rb") as f:
            content = load_arrays(f)
            if "model" in content and "__author__" in content:
                return content
            blobs = content.get("blobs", content)
            model = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _check_weights(incompatible: _IncompatibleKeys, model: nn.Module, needs_all: bool) -> None:
    """Raises ValueError if keys are missing or of another shape: all count, or the frozen ones."""
    wrong_shapes = {key: tuple(shape) for key, shape, _ in incompatible.incorrect_shapes}
    expected = model.state_dict()
    required = {key for key, value in model.named_parameters() if not value.requires_grad}
    lacking = [
        f"{key}: expected {tuple(expected[key].shape)}, got {wrong_shapes.get(key, 'none')}"
        for key in sorted(incompatible.missing_keys, key=lambda key: key not in wrong_shapes)
        if needs_all or key in required
    ]
    if lacking:
        # Those of other shapes all, since each says something; of missing ones a few do.
        shown = max(4, len(wrong_shapes))
        more = f", and {len(lacking) - shown} more" if len(lacking) > shown else ""
        why = "" if needs_all else "; these are frozen and would stay random"
        raise ValueError(f"weights do not fit the config: {', '.join(lacking[:shown])}{more}{why}")


def _older_checkpoints(path: str) -> list[str]:
    """Those of earlier iterations in the same folder, the newest first."""
    folder, name = os.path.split(path)
    limit = math.inf if name == "model_final.pth" else _iteration(name)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    older = sorted((x for x in names if 0 <= _iteration(x) < limit), key=_iteration, reverse=True)
    return [os.path.join(folder, x) for x in older]


def _iteration(name: str) -> int:
    """-1 for what is named otherwise."""
    match = re.fullmatch(r"model_(\d+)\.pth", name)
    return int(match[1]) if match else -1


def _load_tensors(path: str) -> dict:
    """A dictionary of tensors and plain containers. Raises CheckpointError, or OSError."""
    with _reading(path), open(path, "rb") as f:
        if zipfile.is_zipfile(f):
            # torch looks for damage at the end of a file only.
            with zipfile.ZipFile(f) as archive:
                records = archive.infolist()
                # torch compresses none; a few bytes can stand for gigabytes.
                size = sum(x.file_size for x in records)
                if size > os.fstat(f.fileno()).st_size or any(x.compress_type for x in records):
                    raise ValueError("expected records that are not compressed")
                has_checksums = any(x.CRC for x in records)
                damaged = archive.testzip() if has_checksums else None
            if damaged:
                raise ValueError(f"damaged: the checksum of {damaged} is another")
        f.seek(0)
        content = torch.load(f, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"expected a dictionary, got {type(content).__name__}")
        return content


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"Checkpoint not found: {path}") from None
    except Exception as error:  # what is no checkpoint can raise almost anything
        reason = f"{type(error).__name__}: {error}"
        # What torch says then ends in the advice to run the code in the file.
        if "weights_only" in reason:
            found = re.search(r"GLOBAL (\S+)", reason)
            got = found[1] if found else "something else"
            reason = f"expected tensors and plain containers only, got {got}"
        raise CheckpointError(f"Cannot load checkpoint {path}: {reason}") from error


@contextlib.contextmanager
def _saving(path: str) -> Iterator[str]:
    """A path to write to that becomes `path`."""
    try:
        with new_file(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:
        # torch tells of a position in the file; why it is that stands in the error before.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or error
        raise OSError(f"Cannot save {path}: {reason}") from error
