# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are missing, broken or of another model, told by name."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils import comm
from torch import nn

from .safe_checkpointer import CheckpointError, SafeCheckpointer


@contextlib.contextmanager
def loading(checkpointer: SafeCheckpointer, weights: str, *, resume: bool) -> Iterator[None]:
    """
    Around `checkpointer.resume_or_load(weights, resume=resume)`: its failures name the file.

    Raises:
        FileNotFoundError: the checkpoint to resume from, or `weights`, does not exist.
        ValueError: `last_checkpoint` is empty, the file cannot be loaded, or it lacks parameters.
    """
    path, remedy = weights, ""
    if resume and checkpointer.has_checkpoint():
        tag = os.path.join(checkpointer.save_dir, "last_checkpoint")
        remedy = f"; delete {tag}, or write the name of a good checkpoint into it"
        path = checkpointer.get_checkpoint_file()
        if not os.path.basename(path):
            raise ValueError(f"{tag}: expected the name of a checkpoint, got nothing{remedy}")
    # What else is a URL, or is read by the main process for all, is left to Detectron2.
    is_local = path and "://" not in path and comm.is_main_process()
    if is_local and not os.path.exists(path.partition("?")[0]):
        raise FileNotFoundError(f"Checkpoint not found: {path}{remedy}")
    try:
        yield
    except CheckpointError as error:
        raise ValueError(f"{error}{remedy}") from error
    except Exception as error:  # what is no checkpoint can raise almost anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"Cannot load checkpoint {path}: {reason}{remedy}") from error


def load_for_evaluation(
    model: nn.Module,
    weights: str,
    output_dir: str,
    *,
    resume: bool,
    allow_pickle: bool = False,
) -> None:
    """
    Loads `weights`, or with `resume` or without weights the last checkpoint in `output_dir`.

    Args:
        model: that is loaded, in place.
        weights: path of a checkpoint, or "".
        output_dir: folder of a training run.
        resume: take the run's last checkpoint, whatever `weights` says.
        allow_pickle: `weights` may be a .pkl.

    Raises:
        FileNotFoundError: no such file, or there is neither of the two.
        ValueError: the file cannot be loaded or does not have all of the model's parameters in the
            model's shapes.
    """
    checkpointer = SafeCheckpointer(
        model, output_dir, allow_pickle=allow_pickle, needs_all_weights=True
    )
    if not (weights or checkpointer.has_checkpoint()):
        raise FileNotFoundError(
            f"--eval-only: expected MODEL.WEIGHTS or a checkpoint in {output_dir}, got neither"
        )
    resume = resume or not weights
    with loading(checkpointer, weights, resume=resume):
        checkpointer.resume_or_load(weights, resume=resume)


def find_checkpoints(folder: Path) -> dict[int, Path]:
    """
    Iterations done, rising, and the checkpoint of each: Detectron2's model_0000299.pth is 300.

    Raises:
        FileNotFoundError: there is none.
    """
    checkpoints = {}
    for path in sorted(folder.glob("model_*.pth")):
        number = re.fullmatch(r"model_(\d+)", path.stem)
        if number:
            checkpoints[int(number[1]) + 1] = path
    if not checkpoints:
        raise FileNotFoundError(f"{folder}: expected checkpoints such as model_0000299.pth")
    return dict(sorted(checkpoints.items()))
