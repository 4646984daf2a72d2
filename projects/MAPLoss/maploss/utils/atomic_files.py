# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are whole or absent, wherever a process is killed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from iopath.common.file_io import file_lock


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str | None]:
    """
    Makes the folder `path` in one step: yields a temporary folder to fill, renamed at the end.

    Yields None where `path` exists already. A lock lets only one process fill it; a process that
    is killed leaves a temporary folder, which the next one removes, and never half of `path`.
    """
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    if os.path.isdir(path):
        yield None
        return
    with file_lock(path):
        if os.path.isdir(path):
            yield None
            return
        _remove(parent, f"{name}.tmp-")
        folder = tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=parent)
        try:
            yield folder
            # mkdtemp makes a folder that only its owner can read; caches may be shared.
            os.chmod(folder, 0o755)
            os.replace(folder, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: str) -> Iterator[str]:
    """
    Writes the file `path` in one step: yields a temporary path to write, renamed at the end.

    It is on the disk before it has its name, so that a machine that stops leaves no half of it
    either. Nothing is left where the body raises, and a file that was there stays.
    """
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    stem, extension = os.path.splitext(name)
    folder = tempfile.mkdtemp(prefix=f".{stem}.tmp-", dir=parent)
    try:
        temporary = os.path.join(folder, f"file{extension}")
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some file systems cannot, those of networks
            _flush(parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(path: str, *, is_beginning: bool = False) -> None:
    """
    Removes what processes that were killed have left of :func:`new_file`; none may be at it.

    Args:
        path: of the file.
        is_beginning: of all files whose paths begin with `path`.
    """
    parent, name = os.path.split(os.path.abspath(path))
    stem = name if is_beginning else os.path.splitext(name)[0] + ".tmp-"
    _remove(parent, f".{stem}")


def _remove(parent: str, beginning: str) -> None:
    """Temporary folders whose names begin so."""
    for leftover in os.listdir(parent):
        if leftover.startswith(beginning) and ".tmp-" in leftover:
            shutil.rmtree(os.path.join(parent, leftover), ignore_errors=True)


def _flush(path: str) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
