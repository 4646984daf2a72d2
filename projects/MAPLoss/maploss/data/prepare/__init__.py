# SPDX-License-Identifier: Apache-2.0
"""From a folder of images and boxes to a config that trains on it."""

from .find_data import find_data
from .found import FoundData, FoundPart
from .prepare_data import PrepareOptions, prepare_data

__all__ = ["FoundData", "FoundPart", "PrepareOptions", "find_data", "prepare_data"]
