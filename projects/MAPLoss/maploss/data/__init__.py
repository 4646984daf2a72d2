# SPDX-License-Identifier: Apache-2.0
"""Data sets, proposals, and the mapper from dataset dicts to the model's input."""

from .builtin import register_builtin_datasets
from .declared import register_declared_datasets
from .mapper import MAPDatasetMapper
from .proposal_files import proposal_files_for
from .shapes import shapes_proposal_file
from .voc import VOCFolders, load_voc, register_voc

__all__ = [
    "MAPDatasetMapper",
    "VOCFolders",
    "load_voc",
    "proposal_files_for",
    "register_builtin_datasets",
    "register_declared_datasets",
    "register_voc",
    "shapes_proposal_file",
]

register_builtin_datasets()
