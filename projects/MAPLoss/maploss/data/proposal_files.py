# SPDX-License-Identifier: Apache-2.0
"""Which proposal file belongs to which data set."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence

from detectron2.data import DatasetCatalog

from .cache_root import cache_root
from .cached_proposals import cached_proposals
from .check_proposals import warn_of_low_recall
from .import_proposals import import_proposals
from .proposals import load_and_check

logger = logging.getLogger(__name__)

# Data sets that make their own proposals: name -> function that returns the proposal file.
_PROPOSAL_MAKERS: dict[str, Callable[[], str]] = {}


def register_proposals(name: str, maker: Callable[[], str]) -> None:
    """Says that the data set `name` has proposals, in the file that `maker` makes and returns."""
    _PROPOSAL_MAKERS[name] = maker


def proposal_files_for(
    names: Sequence[str],
    given: Sequence[str] = (),
    *,
    allow_pickle: bool = False,
    max_windows: int | None = None,
) -> tuple[str, ...]:
    """
    One proposal file (.npz) for each data set, for DATASETS.PROPOSAL_FILES_TRAIN and _TEST.

    With nothing given, the files of data sets that make their own (the shapes), or windows by
    selective search, made now or found in the cache. A given .mat or .pkl is converted once, into
    the cache. All are checked to cover every image. Windows that cover few objects are a warning.

    Args:
        names: data set names.
        given: files given by the user, empty or one per data set.
        allow_pickle: these may be .pkl.
        max_windows: so many of each image are used; None for all.

    Raises:
        ValueError: an image without proposals, a wrong number of files, or windows that have to be
            made where OpenCV has no selective search.
        FileNotFoundError: no such file.
    """
    if given and len(given) != len(names):
        raise ValueError(
            f"Proposal files: expected one per data set {tuple(names)}, got {tuple(given)}"
        )
    for name, path in zip(names, given, strict=False):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"Proposal file of data set {name!r} not found: {path}")
    files = []
    for name, path in zip(names, given or [""] * len(names), strict=True):
        records = DatasetCatalog.get(name)
        path = _given_file(name, path, records, allow_pickle) if path else _made_file(name, records)
        warn_of_low_recall(name, load_and_check(records, path), path, max_windows)
        files.append(path)
    return tuple(files)


def _made_file(name: str, records: list[dict]) -> str:
    return _PROPOSAL_MAKERS[name]() if name in _PROPOSAL_MAKERS else cached_proposals(name, records)


def _given_file(name: str, path: str, records: list[dict], allow_pickle: bool) -> str:
    if path.endswith(".mat") or (path.endswith(".pkl") and allow_pickle):
        return _converted(name, path, [record["image_id"] for record in records])
    return path


def _converted(name: str, archive: str, image_ids: list) -> str:
    """The archive's proposal file in the cache; its name changes with archive and data set."""
    stat = os.stat(archive)
    key = repr((os.path.abspath(archive), stat.st_size, stat.st_mtime_ns, image_ids))
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    stem = os.path.splitext(os.path.basename(archive))[0]
    out_path = os.path.join(cache_root(), "proposals", f"{stem}-{name}-{digest}.npz")
    if not os.path.isfile(out_path):
        logger.info(f"Converting proposals {archive} -> {out_path}")
        import_proposals(archive, out_path, image_ids, allow_pickle=True)
    return out_path
