# SPDX-License-Identifier: Apache-2.0
"""What a run settles before it starts: the device, the proposal files, the classes."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..config import add_maploss_config
from ..data.declared import check_registered, register_declared_datasets
from ..data.images import check_images_exist
from ..data.proposal_files import proposal_files_for
from ..modeling.timm_backbone import import_timm
from ..utils.atomic_files import new_file
from .feature_cache import check_cache_config
from .weights_input import check_weights_input, how_to_get

logger = logging.getLogger(__name__)


def load_config(config_file: str, overrides: Sequence[str]) -> CfgNode:
    """
    Detectron2's and this project's defaults, the file (none for ""), then the overrides.

    OUTPUT_DIR is :func:`default_output_dir` of the file where neither names one.

    Args:
        config_file: path of a yaml.
        overrides: KEY VALUE KEY VALUE .., as on the command line.

    Raises:
        ValueError: no such file, or what is no key of the config or has another type.
    """
    cfg = get_cfg()
    add_maploss_config(cfg)
    cfg.OUTPUT_DIR = ""  # to see whether anybody names one
    source = config_file
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)  # no Python objects in a yaml
        source = " ".join(map(str, overrides))
        if "MODEL.MAP_LOSS.IOU_THRESHS" in overrides:
            cfg.MODEL.MAP_LOSS.IOU_THRESHS = None  # yacs puts no "coco" over a list, and none back
        cfg.merge_from_list(list(overrides))
    except OSError:
        raise
    except Exception as error:  # fvcore and yacs assert; a file that is no config can raise all
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"Config: {reason} (in {source})") from error
    cfg.OUTPUT_DIR = cfg.OUTPUT_DIR or default_output_dir(config_file)
    return cfg


def default_output_dir(config_file: str) -> str:
    """
    The folder of a run's results, from the path of its config.

    configs/OHEM/L_ohem.yaml gives output/OHEM/L_ohem. A file that is in no folder "configs" gives
    output/ and its name; none ("") gives output.
    """
    if not config_file:
        return "output"
    parts = Path(config_file).with_suffix("").parts
    if "configs" in parts[:-1]:
        last = max(i for i, part in enumerate(parts[:-1]) if part == "configs")
        return os.path.join("output", *parts[last + 1 :])
    return os.path.join("output", parts[-1])


def prepare_config(cfg: CfgNode, *, eval_only: bool) -> None:
    """
    Fits the config of a run to the machine and to its data sets; changes `cfg`.

    - The data sets of DATASETS.DECLARED are registered.
    - MODEL.DEVICE becomes "cpu" where it asks for CUDA and there is none.
    - DATASETS.PROPOSAL_FILES_TRAIN (unless `eval_only`) and _TEST are filled where they are empty:
      missing windows are made. Files that are given are checked. Windows that cover few objects
      are a warning.

    Raises:
        ValueError: no data set to train on, or to evaluate where that is all, or one that is not
            registered; annotations or windows that cannot be used, the message names the file;
            MODEL.ROI_HEADS.NUM_CLASSES (or RETINANET's) not that of the data sets, or these have
            other classes; no object to train on; layers are frozen in training, but there are no
            weights for them; a wrong entry of DATASETS.DECLARED; a key that does not go with
            DATALOADER.FEATURE_CACHE; a backbone of timm that is not there.
            Pretrained weights that expect another input than INPUT.FORMAT, MODEL.PIXEL_MEAN and
            PIXEL_STD.
        OSError: a file of a data set, an image, or weights that do not exist.
    """
    logger.info(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}")
    register_declared_datasets(cfg.DATASETS.DECLARED)
    check_cache_config(cfg, eval_only=eval_only)
    if cfg.MODEL.BACKBONE.NAME.startswith("build_timm_"):
        import_timm(cfg.MODEL.TIMM.NAME)
    if not eval_only:
        _check_training(cfg)
    elif not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST: expected the name of a data set, got none")
    prepare_device(cfg)
    names = cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    classes: dict[str, list[str]] = {}
    for name in names:
        _check_classes(name, cfg, classes)
    for name in dict.fromkeys(names):
        records = DatasetCatalog.get(name)
        check_images_exist(x["file_name"] for x in records)
        objects = (a for x in records for a in x["annotations"])
        is_for_training = not eval_only and name in cfg.DATASETS.TRAIN
        if is_for_training and all(a.get("iscrowd", 0) for a in objects):
            raise ValueError(
                f"Data set {name!r}: none of its {len(records)} images has an object to train on"
            )
    if cfg.MODEL.LOAD_PROPOSALS:
        _fill_proposal_files(cfg, eval_only)


def _check_training(cfg: CfgNode) -> None:
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN: expected the name of a data set, got none")
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0 and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS: expected a file, since layers frozen by MODEL.BACKBONE.FREEZE_AT = "
            f"{cfg.MODEL.BACKBONE.FREEZE_AT} would stay random, got none. {how_to_get(cfg)}"
        )
    check_weights_input(cfg)  # before windows are made, which takes minutes


@contextlib.contextmanager
def preserve_config(output_dir: str) -> Iterator[None]:
    """
    Around Detectron2's `default_setup`, which writes `output_dir`/config.yaml: that of a training
    run, which has a checkpoint there, stays as it is.
    """
    path = os.path.join(output_dir, "config.yaml")
    is_trained = os.path.exists(os.path.join(output_dir, "last_checkpoint"))
    if not (comm.is_main_process() and is_trained and os.path.exists(path)):
        yield
        return
    with open(path, "rb") as f:
        config = f.read()
    try:
        yield
    finally:
        with new_file(path) as temporary, open(temporary, "wb") as f:
            f.write(config)


def show_as_at_test(cfg: CfgNode) -> None:
    """Training images as the test has them, the same at each pass: of its size, without flips."""
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST


def prepare_device(cfg: CfgNode) -> None:
    """MODEL.DEVICE becomes "cpu" where it asks for CUDA and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} but there is no CUDA: using the CPU")
        cfg.MODEL.DEVICE = "cpu"


def _check_classes(dataset_name: str, cfg: CfgNode, known: dict[str, list[str]]) -> None:
    """Its classes against their number and those of the data sets before, which it joins."""
    part = "RETINANET" if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE else "ROI_HEADS"
    num_classes = cfg.MODEL[part].NUM_CLASSES
    check_registered(dataset_name)
    classes = MetadataCatalog.get(dataset_name).get("thing_classes", None)
    for other, others in known.items():
        if classes is not None and list(classes) != others:
            raise ValueError(
                f"Data sets {other!r} and {dataset_name!r}: expected the same classes in the same "
                f"order, got {others} and {list(classes)}"
            )
    if classes is not None:
        known[dataset_name] = list(classes)
    if classes is not None and len(classes) != num_classes:
        raise ValueError(
            f"MODEL.{part}.NUM_CLASSES: expected {len(classes)}, the number of classes of data set "
            f"{dataset_name!r}, got {num_classes}"
        )


def _fill_proposal_files(cfg: CfgNode, eval_only: bool) -> None:
    # The main process first: what has to be made is made once, and the others read it.
    if not comm.is_main_process():
        comm.synchronize()
    datasets, allow_pickle = cfg.DATASETS, cfg.PICKLE_ON
    if not eval_only:
        datasets.PROPOSAL_FILES_TRAIN = proposal_files_for(
            datasets.TRAIN,
            datasets.PROPOSAL_FILES_TRAIN,
            allow_pickle=allow_pickle,
            max_windows=datasets.PRECOMPUTED_PROPOSAL_TOPK_TRAIN,
        )
    datasets.PROPOSAL_FILES_TEST = proposal_files_for(
        datasets.TEST,
        datasets.PROPOSAL_FILES_TEST,
        allow_pickle=allow_pickle,
        max_windows=datasets.PRECOMPUTED_PROPOSAL_TOPK_TEST,
    )
    if comm.is_main_process():
        comm.synchronize()
