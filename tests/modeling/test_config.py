# SPDX-License-Identifier: Apache-2.0
import inspect
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from maploss.config import add_maploss_config
from maploss.engine import build_optimizer, train_only
from maploss.layers import MAPLoss, map_loss
from maploss.modeling import MAPOutputLayers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    # What is searched is no config.
    if not path.name.startswith("Base-") and path.parent.name != "search"
)


def load(path):
    cfg = get_cfg()
    add_maploss_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def test_there_are_leaves():
    assert len(LEAVES) >= 10


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_config_survives_being_written_and_read(leaf, tmp_path):
    cfg = load(CONFIGS / leaf)
    copy = tmp_path / "config.yaml"
    copy.write_text(cfg.dump())
    # As JSON, since YAML turns tuples into lists.
    assert json.dumps(load(copy)) == json.dumps(cfg)


def make_batch(num_classes):
    """Two images of noise, each with an object, windows around it, and some over nothing."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for i in range(2):
        gt = torch.tensor([[4.0, 4, 28, 28]])
        around = gt + 3 * torch.randn(8, 4, generator=generator)
        nothing = torch.tensor([[18.0, 18, 46, 30], [0, 0, 9, 9], [28, 0, 48, 16]])
        proposals, instances = Instances((32, 48)), Instances((32, 48))
        proposals.proposal_boxes = Boxes(torch.cat([around, nothing]))
        instances.gt_boxes, instances.gt_classes = Boxes(gt), torch.tensor([i % num_classes])
        image = torch.randint(0, 256, (3, 32, 48), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "proposals": proposals, "instances": instances})
    return batch


def same_training():
    """Leaves that differ in data, schedule or test only: one of them trains for all."""
    found = {}
    for leaf in LEAVES:
        cfg = load(CONFIGS / leaf)
        parts = (cfg.MODEL, cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR)
        found.setdefault(json.dumps(parts), []).append(leaf)
    return list(found.values())


@pytest.mark.parametrize("leaves", same_training(), ids=lambda leaves: leaves[0])
def test_a_config_builds_cuts_no_detections_and_trains(leaves, storage):
    for leaf in leaves:
        cfg = load(CONFIGS / leaf)
        if leaf.startswith("COCO-Detection") or cfg.MODEL.META_ARCHITECTURE == "RankingRetinaNet":
            continue  # limits as usual on COCO; no ROI heads
        predictor_class = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME).predictor_class
        predictor = predictor_class(cfg, ShapeSpec(channels=2))
        assert predictor.test_score_thresh == float("-inf")
        assert predictor.test_detections_per_image == -1
        assert predictor.test_nms_iou_thresh == 0.3
    cfg = load(CONFIGS / leaves[0])
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_BOX_HEAD.FC_DIMS = [16, 8]  # fc6 of VGG16 has 100 million weights
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 100
    torch.manual_seed(0)
    model = build_model(cfg)
    train_only(model, cfg.MODEL.TRAIN_ONLY)
    # Small steps: without clipping or regulariser training may fail, as the paper says it does.
    cfg.SOLVER.BASE_LR /= 100
    optimizer = build_optimizer(cfg, model)
    batch = make_batch(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    for _ in range(20):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    after = [p for p in model.parameters() if p.requires_grad]
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_every_config_writes_to_a_folder_of_its_own():
    folders = Counter(load(CONFIGS / leaf).OUTPUT_DIR for leaf in LEAVES)
    assert [folder for folder, count in folders.items() if count > 1] == []


def test_the_loss_gets_the_settings_of_the_config(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.4
    tiny_cfg.MODEL.MAP_LOSS.merge_from_other_cfg(
        CfgNode(
            {
                "AP_TYPE": "voc07",
                "MATCH_IOU_THRESH": 0.6,
                "ESTIMATOR": "sde",
                "MIN_DELTA": 0.2,
                "TRANSITIVITY": "paper",
                "PAIRING": "paired",
                "MARGIN": 2.0,
                "GRAD_CLIP": 0.0,
                "LOG_SPACE": False,
                "EPS": 0.03,
                "SCORE_REG_WEIGHT": 2e-5,
                "SCORE_REG_POWER": 2.0,
            }
        )
    )
    predictor = MAPOutputLayers(tiny_cfg, ShapeSpec(channels=2))
    assert predictor.test_nms_iou_thresh == 0.4
    assert predictor.map_loss.score_reg_weight == 2e-5
    assert predictor.map_loss.score_reg_power == 2.0
    assert predictor.map_loss.settings == {
        "ap_type": "voc07",
        "nms_thresh": 0.4,
        "match_iou_thresh": 0.6,
        "estimator": "sde",
        "min_delta": 0.2,
        "transitivity": "paper",
        "pairing": "paired",
        "margin": 2.0,
        "grad_clip": None,
        "log_space": False,
        "eps": 0.03,
    }


def test_the_defaults_are_those_of_the_loss():
    cfg = get_cfg()
    add_maploss_config(cfg)
    cfg.MODEL.MAP_LOSS.pop("AP_TYPE")  # "auto" is known to the config only
    for name in ("BOX_REG", "WINDOWS", "VIS_PERIOD"):  # of others than the loss
        cfg.MODEL.MAP_LOSS.pop(name)
    cfg.MODEL.MAP_LOSS.MEMORY_SIZE = cfg.MODEL.MAP_LOSS.pop("MEMORY")
    cfg.MODEL.MAP_LOSS.GRAD_CLIP = cfg.MODEL.MAP_LOSS.GRAD_CLIP or None  # 0 = off
    for function in (map_loss, MAPLoss.__init__):
        for name, parameter in inspect.signature(function).parameters.items():
            if name.upper() in cfg.MODEL.MAP_LOSS:
                assert cfg.MODEL.MAP_LOSS.pop(name.upper()) == parameter.default, name
    assert not cfg.MODEL.MAP_LOSS
