# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are missing, broken or of another model, told by name."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from .safe_checkpointer import CheckpointError, SafeCheckpointer


@contextlib.contextmanager
def loading(
    checkpointer: Checkpointer, weights: str, *, resume: bool, complete: bool = False
) -> Iterator[None]:
    """
    Around `checkpointer.resume_or_load(weights, resume=resume)`: its failures name the file.

    Args:
        complete: the file has to have all of the model, not only what is frozen: what stays random
            can be trained, but neither used as it is nor evaluated.

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
    # The only place where a checkpointer tells what it did not find.
    load_model = checkpointer._load_model
    checkpointer._load_model = lambda x: _check(load_model(x), checkpointer.model, complete)
    try:
        yield
    except CheckpointError as error:
        raise ValueError(f"{error}{remedy}") from error
    except Exception as error:  # what is no checkpoint can raise almost anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"Cannot load checkpoint {path}: {reason}{remedy}") from error
    finally:
        del checkpointer._load_model


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
        allow_pickle: `weights` may be a .pkl.

    Raises:
        FileNotFoundError: no such file, or there is neither of the two.
        ValueError: the file cannot be loaded or does not have all of the model's parameters in the
            model's shapes.
    """
    checkpointer = SafeCheckpointer(model, output_dir, allow_pickle=allow_pickle)
    if not (weights or checkpointer.has_checkpoint()):
        raise FileNotFoundError(
            f"--eval-only: expected MODEL.WEIGHTS or a checkpoint in {output_dir}, got neither"
        )
    resume = resume or not weights
    with loading(checkpointer, weights, resume=resume, complete=True):
        checkpointer.resume_or_load(weights, resume=resume)


def _check(incompatible: NamedTuple, model: nn.Module, complete: bool) -> NamedTuple:
    """Raises ValueError if keys are missing or of another shape: all count, or the frozen ones."""
    found = {key: tuple(shape) for key, shape, _ in incompatible.incorrect_shapes}
    expected = model.state_dict()
    required = {key for key, value in model.named_parameters() if not value.requires_grad}
    lacking = [
        f"{key}: expected {tuple(expected[key].shape)}, got {found.get(key, 'none')}"
        for key in sorted(incompatible.missing_keys, key=lambda key: key not in found)
        if complete or key in required
    ]
    if lacking:
        # Those of other shapes all, since each says something; of missing ones a few do.
        shown = max(4, len(found))
        more = f", and {len(lacking) - shown} more" if len(lacking) > shown else ""
        why = "" if complete else "; these are frozen and would stay random"
        raise ValueError(f"weights do not fit the config: {', '.join(lacking[:shown])}{more}{why}")
    return incompatible
