# SPDX-License-Identifier: Apache-2.0
"""Images, annotations and windows of DATASETS, for training and test."""

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from torch.utils.data import DataLoader

from ..data.mapper import MAPDatasetMapper
from ..data.records import load_records


def training_records(cfg: CfgNode, *, filter_empty: bool = True) -> list[dict]:
    """Dataset dicts of DATASETS.TRAIN; with `filter_empty` of images with objects only."""
    files = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
    return load_records(cfg.DATASETS.TRAIN, files, filter_empty=filter_empty)


def build_mapper(cfg: CfgNode, *, is_train: bool) -> MAPDatasetMapper:
    """That of the loaders: it reads no image where DATALOADER.FEATURE_CACHE has its features."""
    return MAPDatasetMapper(cfg, is_train, with_image=not cfg.DATALOADER.FEATURE_CACHE.FOLDER)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Detectron2's, for one of DATASETS.TEST."""
    files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        files = [cfg.DATASETS.PROPOSAL_FILES_TEST[list(cfg.DATASETS.TEST).index(dataset_name)]]
    return build_detection_test_loader(
        load_records([dataset_name], files, filter_empty=False),
        mapper=build_mapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
