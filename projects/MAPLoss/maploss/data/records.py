# SPDX-License-Identifier: Apache-2.0
"""The images of data sets with their annotations and windows."""

import contextlib
from collections.abc import Sequence

from detectron2.data import get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.detection_utils import check_metadata_consistency

from .proposals import load_and_check


def load_records(
    names: Sequence[str], proposal_files: Sequence[str] | None, *, filter_empty: bool
) -> list[dict]:
    """
    Detectron2's dataset dicts of registered data sets, with the windows of their proposal files.

    Detectron2's own get_detection_dataset_dicts runs whatever is pickled in a proposal file.

    Args:
        names: of data sets.
        proposal_files: one (.npz) for each; None where the model makes its own windows.
        filter_empty: leaves out images without an object, crowds aside.

    Raises:
        ValueError: windows that cannot be used, see :func:`load_and_check`, another number of
            files, data sets of other classes, or no image at all.
    """
    if proposal_files is not None and len(proposal_files) != len(names):
        raise ValueError(
            f"Proposal files: expected one per data set {tuple(names)}, got {tuple(proposal_files)}"
        )
    with contextlib.suppress(AttributeError):  # classes have no names
        check_metadata_consistency("thing_classes", names)
    records: list[dict] = []
    for i, name in enumerate(names):
        # It would stop at a data set of background images only.
        found = get_detection_dataset_dicts([name], filter_empty=False)
        if filter_empty and "annotations" in found[0]:
            found = filter_images_with_only_crowd_annotations(found)
        records += found if proposal_files is None else load_and_check(found, proposal_files[i])
    if not records:
        raise ValueError(f"No image with an object in {tuple(names)}")
    return records
