# SPDX-License-Identifier: Apache-2.0
"""What all forms of data sets do to be known by name."""

from collections.abc import Callable

from detectron2.data import DatasetCatalog, MetadataCatalog


def register_data_set(name: str, load: Callable[[], list[dict]], **metadata: object) -> None:
    """
    Registers a data set, in place of one of the same name.

    Args:
        name: of the data set.
        load: gives its dataset dicts; called when they are needed.
        metadata: what Detectron2's MetadataCatalog has of it.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
