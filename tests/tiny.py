# SPDX-License-Identifier: Apache-2.0
"""
The one tiny detector and data set of the tests.

Settings are dictionaries by full key: `as_list` makes of them what merge_from_list takes and what
train_net.py takes behind its options, in processes too that have registered nothing.
"""

from collections.abc import Container, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from maploss.data.proposals import write_proposals
from maploss.engine import load_config
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "tiny"
CLASSES = ["a", "b", "c", "d"]
NUM_IMAGES = 8

# What makes any config small enough for a CPU.
SMALLER = {
    "MODEL.DEVICE": "cpu",
    "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
    "MODEL.ROI_BOX_HEAD.FULLY_CONNECTED.DIMS": [16, 8],  # fc6 of VGG16 has 100 million weights
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 8,
}
DETECTOR = SMALLER | {
    "MODEL.SMALL_CONVNET.CHANNELS": [4, 4, 4, 4],
    "MODEL.SMALL_CONVNET.NORM": "",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 2,
    "MODEL.MAP_LOSS.AP_TYPE": "area",
}
# The backbone of Detectron2's Faster R-CNN, with anchors for small images.
RESNET_FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
}
# A run of 8 iterations. The schedule has a warm-up and a step, so that resuming has to find both.
RUN = {
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 6,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,  # else none, and the mAP loss has no gradient
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 8,
    "SOLVER.STEPS": (5,),
    "SOLVER.WARMUP_ITERS": 3,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.EVAL_PERIOD": 0,
    "DATALOADER.NUM_WORKERS": 0,
}


def as_list(settings: dict) -> list[str]:
    return [str(x) for setting in settings.items() for x in setting]


def config_file(config: str) -> str:
    return str(REPOSITORY / f"configs/Shapes-Detection/{config}.yaml")


def make_cfg(settings: dict | None = None) -> CfgNode:
    """The config of the mAP loss on the shapes with the tiny detector, and `settings` over it."""
    return load_config(config_file("map"), as_list(DETECTOR | (settings or {})))


def arguments(folder: Path, output: str, *args: str, config: str = "softmax", **keys) -> list[str]:
    """
    Of train_net.py, for a run on the data of `folder` that writes to `folder`/`output`.

    Args:
        args: options, such as --resume. keys: settings; __ stands for the points in their names.
    """
    settings = DETECTOR | RUN | data_settings(folder) | {"OUTPUT_DIR": folder / output}
    settings |= {key.replace("__", "."): value for key, value in keys.items()}
    return ["--config-file", config_file(config), *args, *as_list(settings)]


def data_settings(folder: Path) -> dict:
    """Declares the data set of `folder`, to train and to test on."""
    entry = {"NAME": NAME, "FORMAT": "voc", "ROOT": str(folder), "SPLIT": "tiny"}
    settings = {"DATASETS.DECLARED": [entry | {"CLASSES": CLASSES}]}
    for part in ("TRAIN", "TEST"):
        settings[f"DATASETS.{part}"] = (NAME,)
        settings[f"DATASETS.PROPOSAL_FILES_{part}"] = (str(folder / "tiny.npz"),)
    return settings


def write_data(folder: Path, upright: Container[int] = ()) -> None:
    """
    Images of noise in VOC's layout, those named `upright` with their sides exchanged.

    The first three of an image's 20 windows are its objects, of three classes; the third one is
    difficult.
    """
    rng = np.random.default_rng(0)
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    windows = []
    for i in range(NUM_IMAGES):
        width, height = (48, 64) if i in upright else (64, 48)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(folder / f"JPEGImages/{i}.png"), pixels)
        corners = rng.integers(0, [width - 24, height - 24], size=(20, 2))
        boxes = np.concatenate([corners, corners + rng.integers(8, 25, (20, 2))], axis=1)
        objects = [_xml_object(CLASSES[(i + k) % 4], boxes[k], k == 2) for k in range(3)]
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        text = f"<annotation>{size}{''.join(objects)}</annotation>"
        (folder / f"Annotations/{i}.xml").write_text(text)
        windows.append(boxes.astype(np.float32))
    image_ids = [str(i) for i in range(NUM_IMAGES)]
    (folder / "ImageSets/Main/tiny.txt").write_text("\n".join(image_ids))
    write_proposals(str(folder / "tiny.npz"), image_ids, windows)


def _xml_object(name: str, box: np.ndarray, is_difficult: bool) -> str:
    # VOC counts pixels from 1, the last one included.
    corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box + np.array([1, 1, 0, 0]), strict=True))
    tags = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
    flag = f"<difficult>{int(is_difficult)}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{tags}</bndbox></object>"


def keys_of(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Full names of all keys of a config."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def train_on(model: nn.Module, inputs: list[dict], learning_rate: float) -> list[float]:
    """The losses of 30 updates of AdamW on one minibatch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(model(inputs).values())
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values
