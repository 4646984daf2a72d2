# SPDX-License-Identifier: Apache-2.0
"""A trained detector as a checkpoint for others: weights, class names, a config; no optimizer."""

import hashlib
import io
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from .modeling.box_regressor import box_regressor_of
from .modeling.map_loss_config import ap_type_from_config, uses_map_loss
from .utils.atomic_files import new_file


def export_model(cfg: CfgNode, model: nn.Module, folder: Path, name: str = "model") -> Path:
    """
    Writes <name>_<first 8 digits of its sha256>.pth and a config.yaml of the same stem.

    Detectron2's DefaultPredictor takes the config, after `import maploss`, and images alone: where
    the detector was trained on precomputed windows, it makes its own (SelectiveSearchProposals).
    The mean and the variance of the targets of box regression go into its weights.

    An image pyramid is left out: DefaultPredictor gives one size.

    Args:
        cfg: that the model was built from; not changed.
        model: its box regression is folded.
        folder: of the two files; made if there is none.
        name: of the files.

    Returns:
        The path of the checkpoint.
    """
    cfg = cfg.clone()
    cfg.defrost()
    regressor = box_regressor_of(model)
    if regressor is not None:
        regressor.fold()
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    classes = MetadataCatalog.get(names[0]).get("thing_classes", None) if names else None
    cfg.MODEL.CLASS_NAMES = list(classes or cfg.MODEL.CLASS_NAMES)
    # What depended on the data sets, which others may not have.
    if uses_map_loss(cfg):
        cfg.MODEL.MAP_LOSS.AP_TYPE = ap_type_from_config(cfg)
    cfg.DATASETS.DECLARED = []
    cfg.PICKLE_ON = False
    if cfg.MODEL.LOAD_PROPOSALS:
        cfg.MODEL.LOAD_PROPOSALS = False
        cfg.TEST.PYRAMID.SIZES = []  # needs the mapper and its precomputed windows
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "SelectiveSearchProposals"
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    metadata = {"thing_classes": cfg.MODEL.CLASS_NAMES, "package": "maploss"}
    buffer = io.BytesIO()
    torch.save({"model": state, "metadata": metadata}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{digest}.pth"
    with new_file(str(path)) as temporary:
        Path(temporary).write_bytes(buffer.getvalue())
    cfg.MODEL.WEIGHTS = str(path.resolve())
    cfg.OUTPUT_DIR = str(folder)
    path.with_suffix(".yaml").write_text(cfg.dump())
    return path
