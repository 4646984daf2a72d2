# SPDX-License-Identifier: Apache-2.0
"""MAPLoss: detectors trained for mean average precision, on Detectron2."""

from . import data, modeling  # noqa: F401 (registers data sets and models)
from .config import add_maploss_config

__version__ = "0.1.0"
__all__ = ["add_maploss_config"]
