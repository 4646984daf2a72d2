# SPDX-License-Identifier: Apache-2.0
"""Arguments of train_net.py for runs of seconds, also in processes that register nothing."""

import json
from pathlib import Path

import cv2
import numpy as np
from maploss.data.proposals import write_proposals

from tests.conftest import REPOSITORY

NUM_IMAGES = 8


def write_tiny_data(folder: Path) -> None:
    """Images of noise in COCO's form, every third one upright, of 2 classes, with 12 windows."""
    rng = np.random.default_rng(0)
    images, annotations, windows = [], [], []
    for i in range(NUM_IMAGES):
        width, height = (48, 64) if i % 3 == 0 else (64, 48)
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (height, width, 3), np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        corners = rng.uniform(0, 24, size=(12, 2))
        windows.append(np.concatenate([corners, corners + rng.uniform(8, 24, (12, 2))], axis=1))
        for k in range(3):
            x0, y0, x1, y1 = windows[-1][k].tolist()
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": (i + k) % 2 + 1}
            annotations.append({"image_id": i, "iscrowd": 0, **box})
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "tiny.json").write_text(json.dumps(coco))
    write_proposals(str(folder / "tiny.npz"), range(NUM_IMAGES), windows)


def arguments(folder: Path, output: str, *args: str, config: str = "softmax", **keys) -> list[str]:
    """For data of `folder`; __ stands for the points in the names of keys."""
    settings = {
        "OUTPUT_DIR": folder / output,
        "DATASETS.DECLARED": [
            {"NAME": f"tiny_{folder.name}", "FORMAT": "coco", "ROOT": str(folder)}
            | {"SPLIT": "tiny.json"}
        ],
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 6,
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,  # else none, and the mAP loss has no gradient
        "MODEL.SMALL_CONVNET.CHANNELS": [4, 4, 4, 4],
        "MODEL.SMALL_CONVNET.NORM": "",
        "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 8,
        "SOLVER.STEPS": "(5,)",
        "SOLVER.WARMUP_ITERS": 3,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "TEST.EVAL_PERIOD": 0,
        "DATALOADER.NUM_WORKERS": 0,
    }
    for part in ("TRAIN", "TEST"):
        settings[f"DATASETS.{part}"] = f"('tiny_{folder.name}',)"
        settings[f"DATASETS.PROPOSAL_FILES_{part}"] = f"('{folder}/tiny.npz',)"
    settings |= {key.replace("__", "."): value for key, value in keys.items()}
    given = [str(x) for setting in settings.items() for x in setting]
    config_file = str(REPOSITORY / f"configs/Shapes-Detection/{config}.yaml")
    return ["--config-file", config_file, *args, *given]
