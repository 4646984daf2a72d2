# SPDX-License-Identifier: Apache-2.0
import json
from collections import Counter

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from maploss.config import add_maploss_config
from maploss.engine import build_optimizer, freeze_except, load_config
from maploss.layers import MAPLoss, MAPLossSettings
from maploss.modeling import MAPOutputLayers
from maploss.modeling.map_loss_config import map_loss_from_config
from maploss.modeling.plain_convnet import NETWORKS

from tests.tiny import REPOSITORY, SMALLER, as_list

CONFIGS = REPOSITORY / "configs"
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    # What is searched is no config.
    if not path.name.startswith("Base-") and path.parent.name != "search"
)


def load(leaf):
    return load_config(str(CONFIGS / leaf), [])


def test_there_are_leaves():
    assert len(LEAVES) >= 10


def depth(path):
    """Levels of _BASE_ below a config."""
    bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    return max([0, *(1 + depth(path.parent / base) for base in bases)])


def test_no_config_has_more_than_three_levels_of_bases():
    depths = {str(path.relative_to(CONFIGS)): depth(path) for path in CONFIGS.rglob("*.yaml")}
    assert [path for path, levels in depths.items() if levels > 3] == []
    assert max(depths.values()) > 1


def test_no_two_leaves_differ_at_test_only():
    found = {}
    for leaf in LEAVES:
        cfg = load(leaf)
        del cfg["TEST"], cfg["OUTPUT_DIR"]
        found.setdefault(json.dumps(cfg), []).append(leaf)
    assert [leaves for leaves in found.values() if len(leaves) > 1] == []


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_config_survives_being_written_and_read(leaf, tmp_path):
    cfg = load(leaf)
    copy = tmp_path / "config.yaml"
    copy.write_text(cfg.dump())
    # As JSON, since YAML turns tuples into lists.
    assert json.dumps(load_config(str(copy), [])) == json.dumps(cfg)


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
        cfg = load(leaf)
        parts = (cfg.MODEL, cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR)
        found.setdefault(json.dumps(parts), []).append(leaf)
    return list(found.values())


def is_plain(leaf):
    return load(leaf).MODEL.BACKBONE.NAME == "build_plain_convnet_backbone"


SAME_TRAINING = same_training()


@pytest.mark.parametrize("leaves", SAME_TRAINING, ids=lambda leaves: leaves[0])
def test_a_config_builds_cuts_no_detections_and_trains(leaves, storage, monkeypatch):
    # 20 steps of VGG16 take seconds; with an eighth of its channels it is as deep.
    for name, layers in NETWORKS.items():
        monkeypatch.setitem(NETWORKS, name, [(key, thin(spec)) for key, spec in layers])
    build_and_train(leaves)


@pytest.mark.slow
@pytest.mark.parametrize(
    "leaves", [x for x in SAME_TRAINING if is_plain(x[0])], ids=lambda leaves: leaves[0]
)
def test_a_network_with_all_its_channels_trains(leaves, storage):
    build_and_train(leaves)


def thin(spec):
    return {**spec, "channels": spec["channels"] // 8} if isinstance(spec, dict) else spec


def build_and_train(leaves):
    for leaf in leaves:
        cfg = load(leaf)
        if cfg.MODEL.META_ARCHITECTURE == "RankingDeformableDETR":
            pytest.importorskip("transformers", minversion="5.8")
        has_heads = not cfg.MODEL.META_ARCHITECTURE.startswith("Ranking")
        if leaf.startswith("COCO-Detection") or not has_heads:
            continue  # limits as usual on COCO; no ROI heads
        predictor_class = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME).predictor_class
        predictor = predictor_class(cfg, ShapeSpec(channels=2))
        assert predictor.test_score_thresh == float("-inf")
        # 100 where the AP is COCO's, which counts no more; else NMS alone decides.
        limit = 100 if leaf.startswith("PascalVOC-Detection/Losses/") else -1
        assert predictor.test_detections_per_image == limit
        assert predictor.test_nms_iou_thresh == 0.3
    cfg = load(leaves[0])
    cfg.merge_from_list(as_list(SMALLER))
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 100
    torch.manual_seed(0)
    model = build_model(cfg)
    freeze_except(model, cfg.MODEL.TRAIN_ONLY)
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
    if leaves[0].endswith("deformable_detr_map_finetune.yaml"):
        return  # no box of random weights overlaps an object, and only such a box learns
    after = [p for p in model.parameters() if p.requires_grad]
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_every_config_writes_to_a_folder_of_its_own():
    folders = Counter(load(leaf).OUTPUT_DIR for leaf in LEAVES)
    assert [folder for folder, count in folders.items() if count > 1] == []


# Keys of MODEL.MAP_LOSS, none at its default, and what the loss gets of them.
KEYS = {
    "AP_TYPE": "voc07",
    "IOU_THRESHS": [0.6, 0.7],
    "GRADIENT": "sde",
    "TRANSITIVITY": "paper",
    "GRAD_CLIP": 0.1,
    "ERROR_DRIVEN": {"MARGIN": 2.0},
    "NEAREST_STEPS": {"MIN_DELTA": 0.2, "PAIRING": "none"},
    "REINFORCE": {"NUM_SAMPLES": 5, "NOISE": 0.3},
    "LOG_SPACE": {"ENABLED": True, "EPS": 0.03},
    "SCORE_REG": {"WEIGHT": 2e-5, "POWER": 2.0},
    "BOX_REG": {"BOXES": "regressed", "GRADIENT": "mee"},
    "POOLED": 0.25,
    "MEMORY": 3,
}
FOR_ALL = {"iou_threshs": (0.6, 0.7), "ap_type": "voc07", "nms_thresh": 0.4, "grad_clip": 0.1}
SETTINGS_OF_STEPS = MAPLossSettings(
    **FOR_ALL,
    gradient="sde",
    transitivity="paper",
    box_gradient="mee",
    pooled=0.25,
    eps=0.03,
    min_delta=0.2,
    pairing="none",
)


@pytest.fixture
def unusual_cfg(tiny_cfg):
    """The tiny detector with KEYS."""
    tiny_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.4
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    tiny_cfg.MODEL.MAP_LOSS.merge_from_other_cfg(CfgNode(KEYS))
    return tiny_cfg


def test_the_loss_gets_the_settings_of_the_config(unusual_cfg):
    predictor = MAPOutputLayers(unusual_cfg, ShapeSpec(channels=2))
    assert predictor.test_nms_iou_thresh == 0.4
    assert predictor.nms_on_regressed
    loss = predictor.map_loss
    assert (loss.score_reg_weight, loss.score_reg_power) == (2e-5, 2.0)
    assert loss.memory.size == 3
    assert loss.settings == SETTINGS_OF_STEPS


def test_what_belongs_to_another_choice_takes_no_part(unusual_cfg):
    keys = unusual_cfg.MODEL.MAP_LOSS
    keys.REINFORCE.NUM_SAMPLES = 7
    assert map_loss_from_config(unusual_cfg).settings == SETTINGS_OF_STEPS
    keys.REINFORCE.NUM_SAMPLES = 5
    keys.GRADIENT, keys.TRANSITIVITY = "reinforce", None
    samples = {"gradient": "reinforce", "eps": 0.03, "num_samples": 5, "noise": 0.3}
    samples["pooled"] = 0.25
    assert map_loss_from_config(unusual_cfg).settings == MAPLossSettings(
        **FOR_ALL, **samples, box_gradient="mee"
    )
    # The margin is that of boxes as well.
    keys.BOX_REG.GRADIENT = "error_driven"
    assert map_loss_from_config(unusual_cfg).settings == MAPLossSettings(
        **FOR_ALL, **samples, box_gradient="error_driven", margin=2.0
    )
    # Without regression boxes have no gradient.
    keys.BOX_REG.BOXES = "none"
    assert map_loss_from_config(unusual_cfg).settings == MAPLossSettings(**FOR_ALL, **samples)
    keys.GRADIENT, keys.TRANSITIVITY, keys.LOG_SPACE.ENABLED = "error_driven", "none", False
    assert map_loss_from_config(unusual_cfg).settings == MAPLossSettings(
        **FOR_ALL, transitivity="none", log_space=False, margin=2.0, pooled=0.25
    )


# Of each key of the loss: a value that changes loss or gradient, after these overrides.
STEPS = ["GRADIENT", "sde"]
SAMPLES = ["GRADIENT", "reinforce"]
ACTING = {
    "AP_TYPE": ("voc07", []),
    "IOU_THRESHS": ("[0.8]", []),
    "GRADIENT": ("mee", []),
    "TRANSITIVITY": ("none", []),
    "GRAD_CLIP": ("0.01", []),
    "ERROR_DRIVEN.MARGIN": ("2.0", []),
    "NEAREST_STEPS.MIN_DELTA": ("2.0", STEPS),
    "NEAREST_STEPS.PAIRING": ("none", STEPS),
    "REINFORCE.NUM_SAMPLES": ("3", SAMPLES),
    "REINFORCE.NOISE": ("1.0", SAMPLES),
    "LOG_SPACE.ENABLED": ("False", []),
    "LOG_SPACE.EPS": ("0.01", []),
    "SCORE_REG.WEIGHT": ("0.1", []),
    "SCORE_REG.POWER": ("2.0", ["SCORE_REG.WEIGHT", "0.1"]),
    "BOX_REG.GRADIENT": ("mee", ["BOX_REG.BOXES", "regressed"]),
    "POOLED": ("0.5", []),
    "MEMORY": ("1", []),
}


def loss_and_gradients(cfg, overrides):
    """
    Of the second of two minibatches, by keys of MODEL.MAP_LOSS and values: the loss, its gradient
    by the scores and by the overlap of boxes.
    """
    cfg = cfg.clone()
    names = [f"MODEL.MAP_LOSS.{key}" for key in overrides[::2]]
    cfg.merge_from_list([x for pair in zip(names, overrides[1::2], strict=True) for x in pair])
    loss = map_loss_from_config(cfg)
    torch.manual_seed(0)  # of GRADIENT "reinforce"
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        corner = 60 * torch.rand(60, 2, generator=generator)
        boxes = torch.cat([corner, corner + 20 + 6 * torch.rand(60, 2, generator=generator)], 1)
        scores = torch.randn(60, 2, generator=generator, requires_grad=True)
        ids, gt_ids = torch.arange(60) % 2, torch.arange(8) % 2
        losses, stats = loss(scores, boxes, ids, boxes[:8] + 1, torch.arange(8) // 4, gt_ids)
        total = sum(losses.values())
        total.backward()
    by_overlap = stats.box_gradient.by_overlap if stats.box_gradient else torch.zeros(())
    return total.detach(), scores.grad, by_overlap


@pytest.mark.parametrize("key", ACTING)
def test_each_key_of_the_loss_acts(tiny_cfg, key):
    value, before = ACTING[key]
    old = loss_and_gradients(tiny_cfg, before)
    new = loss_and_gradients(tiny_cfg, [*before, key, value])
    changes = [float((x - y).abs().max()) for x, y in zip(new, old, strict=True)]
    assert max(changes) > 1e-4


def test_the_defaults_are_those_of_the_loss():
    cfg = get_cfg()
    add_maploss_config(cfg)
    cfg.MODEL.MAP_LOSS.AP_TYPE = "area"  # "auto" is known to the config only
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.3  # Detectron2's own key
    loss, default = map_loss_from_config(cfg), MAPLoss()
    assert loss.settings == default.settings == MAPLossSettings()
    assert loss.score_reg_weight == default.score_reg_weight
    assert loss.score_reg_power == default.score_reg_power
    assert loss.memory is default.memory is None
    # Also those of what is not chosen.
    keys, settings = cfg.MODEL.MAP_LOSS, MAPLossSettings()
    assert settings.min_delta == keys.NEAREST_STEPS.MIN_DELTA
    assert settings.pairing == keys.NEAREST_STEPS.PAIRING
    assert settings.num_samples == keys.REINFORCE.NUM_SAMPLES
    assert settings.noise == keys.REINFORCE.NOISE


WAYS = ("the file", "the command line", "both")
OVERLAPS = [
    ("coco", "coco", tuple(round(0.5 + 0.05 * i, 2) for i in range(10))),
    ("[0.5, 0.75]", "[0.5, 0.75]", (0.5, 0.75)),
    ("[0.6]", "(0.6,)", (0.6,)),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("in_file", "in_line", "expected"), OVERLAPS)
def test_overlaps_are_a_list_or_the_word_coco(tmp_path, way, in_file, in_line, expected):
    file = tmp_path / "config.yaml"
    # In one base and one leaf, so that each replaces the other kind.
    other = "[0.7, 0.8]" if in_file == "coco" else "coco"
    base = tmp_path / "base.yaml"
    base.write_text(f"MODEL:\n  MAP_LOSS:\n    AP_TYPE: area\n    IOU_THRESHS: {other}\n")
    leaf = in_file if way == "the file" else other
    file.write_text(f"_BASE_: base.yaml\nMODEL:\n  MAP_LOSS:\n    IOU_THRESHS: {leaf}\n")
    overrides = [] if way == "the file" else ["MODEL.MAP_LOSS.IOU_THRESHS", in_line]
    cfg = load_config("" if way == "the command line" else str(file), overrides)
    cfg.MODEL.MAP_LOSS.AP_TYPE = "area"
    assert map_loss_from_config(cfg).settings.iou_threshs == expected
    again = tmp_path / "again.yaml"
    again.write_text(cfg.dump())
    assert map_loss_from_config(load_config(str(again), [])).settings.iou_threshs == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MAP_LOSS.IOU_THRESHS", "[]", r"MODEL.MAP_LOSS: iou_threshs: expected at least one"),
        ("MAP_LOSS.IOU_THRESHS", "[0.5, 1.0]", r"MODEL.MAP_LOSS: iou_threshs: .* got 1"),
        ("MAP_LOSS.IOU_THRESHS", "[0.5, 0.5]", r"MODEL.MAP_LOSS: iou_threshs: expected rising"),
        ("MAP_LOSS.IOU_THRESHS", "voc", r"MODEL.MAP_LOSS: iou_threshs: .* 'coco', got 'voc'"),
        ("MAP_LOSS.IOU_THRESHS", "0.5", r"MODEL.MAP_LOSS: iou_threshs: expected a list"),
        (
            "MAP_LOSS.AP_TYPE",
            "ap50",
            r"MODEL.MAP_LOSS.AP_TYPE: expected one of auto, area, voc07, coco101, got 'ap50'$",
        ),
        ("MAP_LOSS.MEMORY", "-1", r"MODEL.MAP_LOSS.MEMORY: expected 0 or more minibatches, got -1"),
        ("MAP_LOSS.GRADIENT", "pairs", r"MODEL.MAP_LOSS: gradient: .* got 'pairs'"),
        ("MAP_LOSS.TRANSITIVITY", "exact", r"MODEL.MAP_LOSS: transitivity of .* got 'exact'"),
        ("MAP_LOSS.GRAD_CLIP", "-1.0", r"MODEL.MAP_LOSS: grad_clip: .* got -1"),
        ("MAP_LOSS.ERROR_DRIVEN.MARGIN", "-1.0", r"MODEL.MAP_LOSS.ERROR_DRIVEN: margin: "),
        # Also where another gradient is chosen.
        ("MAP_LOSS.NEAREST_STEPS.MIN_DELTA", "0.0", r"MODEL.MAP_LOSS.NEAREST_STEPS: min_delta: "),
        ("MAP_LOSS.NEAREST_STEPS.PAIRING", "two", r"MODEL.MAP_LOSS.NEAREST_STEPS: pairing: "),
        ("MAP_LOSS.REINFORCE.NUM_SAMPLES", "1", r"MODEL.MAP_LOSS.REINFORCE: num_samples: .* got 1"),
        ("MAP_LOSS.REINFORCE.NOISE", "0.0", r"MODEL.MAP_LOSS.REINFORCE: noise: .* got 0"),
        ("MAP_LOSS.LOG_SPACE.EPS", "0.0", r"MODEL.MAP_LOSS.LOG_SPACE: eps: .* got 0"),
        ("MAP_LOSS.SCORE_REG.WEIGHT", "-1.0", r"MODEL.MAP_LOSS: score_reg_weight: .* got -1"),
        ("MAP_LOSS.SCORE_REG.POWER", "0.5", r"MODEL.MAP_LOSS: score_reg_power: .* got 0.5"),
        ("MAP_LOSS.POOLED", "-0.1", r"MODEL.MAP_LOSS: pooled: expected .* in \[0, 1\], got -0.1"),
        ("MAP_LOSS.POOLED", "1.5", r"MODEL.MAP_LOSS: pooled: expected .* in \[0, 1\], got 1.5"),
        # Also where no box is regressed.
        ("MAP_LOSS.BOX_REG.GRADIENT", "giou", r"MODEL.MAP_LOSS: box_gradient: .*, got 'giou'"),
        ("ROI_HEADS.NMS_THRESH_TEST", "1.5", r"MODEL.ROI_HEADS.NMS_THRESH_TEST: nms_thresh: "),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_key_and_value(tiny_cfg, key, value, message):
    tiny_cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        MAPOutputLayers(tiny_cfg, ShapeSpec(channels=2))
