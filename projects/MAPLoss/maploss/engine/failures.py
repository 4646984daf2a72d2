# SPDX-License-Identifier: Apache-2.0
"""Failures of files, processes and disks in one line: nothing that a traceback explains."""

import re

from detectron2.utils.events import EventWriter

from ..data.images import ImageError

# Messages of torch: that of a worker itself ends in "worker process", with its number.
_WORKER_DIED = re.compile(r"DataLoader worker \(pid")
_RANK_LOST = re.compile(r"gloo/transport|NCCL")


class TrainingStopped(BaseException):
    """
    Training cannot go on, for a reason outside of the program: one line that says where it was and
    what there is to go on from.

    It is no Exception, since Detectron2's training loop logs the traceback of those.
    """


def one_line_reason(
    error: BaseException, *, is_writing: bool, output_dir: str, num_ranks: int
) -> str | None:
    """
    What happened, or None where the error is of another kind, whose traceback is wanted.

    Args:
        error: what was raised.
        is_writing: it came from what writes files.
        output_dir: where these are, for errors that do not name one.
        num_ranks: number of processes that train together.
    """
    text = " ".join(str(error).split())
    if isinstance(error, ImageError):
        return error.reason()
    failed_write = _first_os_error(error) if is_writing else None
    if failed_write and not failed_write.strerror:
        return str(failed_write)  # a checkpoint's, which says all itself
    if failed_write:
        path = failed_write.filename or f"to {output_dir}"
        return f"cannot write {path}: {failed_write.strerror}"
    if not isinstance(error, RuntimeError):
        return None
    if _WORKER_DIED.search(text):
        return f"a process that reads images has died: {text[:300]}"
    if num_ranks > 1 and _RANK_LOST.search(text):
        return f"another process of this training has died or does not answer: {text[:300]}"
    return None


def _first_os_error(error: BaseException | None) -> OSError | None:
    # torch.save raises a RuntimeError where it cannot end the file that it could not write.
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class NamedWriter(EventWriter):
    """An event writer whose failures name its file."""

    def __init__(self, writer: EventWriter, path: str) -> None:
        """
        Args:
            writer: all work is its.
            path: of its file or folder.
        """
        self._writer = writer
        self._path = path

    def write(self) -> None:
        try:
            self._writer.write()
        except OSError as error:
            raise self._named(error) from error

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror or str(error), self._path)
