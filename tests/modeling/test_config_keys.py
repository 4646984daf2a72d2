# SPDX-License-Identifier: Apache-2.0
"""Each config key of this project acts: what comes of a detector changes with it."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from maploss.config import add_maploss_config
from maploss.layers import control_points

from tests.modeling import test_config
from tests.modeling.test_config import make_batch
from tests.tiny import REPOSITORY, keys_of

BOXES = ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 1.0]
REGRESSED = [*BOXES, "MODEL.MAP_LOSS.BOX_REG.BOXES", "regressed"]
REGRESSED += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0, "MODEL.MAP_LOSS.IOU_THRESHS", "coco"]
SOFTMAX = ["MODEL.ROI_HEADS.NAME", "SoftmaxROIHeads", *BOXES]
OHEM = ["MODEL.ROI_HEADS.NAME", "OHEMROIHeads", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 3]
RANKING = ["MODEL.ROI_HEADS.NAME", "RankingROIHeads", *BOXES]
HEAD = ["MODEL.ROI_BOX_HEAD.NAME", "FullyConnectedHead"]
PLAIN = [*HEAD, "MODEL.BACKBONE.NAME", "build_plain_convnet_backbone"]
PLAIN += ["MODEL.ROI_HEADS.IN_FEATURES", ["conv5"]]
SQUEEZE = ["MODEL.BACKBONE.NAME", "build_squeezenet_backbone"]
SQUEEZE += ["MODEL.ROI_HEADS.IN_FEATURES", ["fire9"]]
POINTS = control_points(torch.linspace(0.1, 0.9, 40, dtype=torch.float64).reshape(5, 8)).tolist()


def of_loss(name):
    return [*RANKING, "MODEL.RANKING_LOSS.NAME", name]


# A value that changes what comes of the tiny detector, after these overrides.
ACTING = {
    "MODEL.MAP_LOSS.WINDOWS": ("all", ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 6]),
    "MODEL.MAP_LOSS.BOX_REG.BOXES": ("windows", REGRESSED),
    "MODEL.OHEM.NMS_THRESH": (0.01, OHEM),
    "MODEL.OHEM.PER_IMAGE_ON": (True, OHEM),
    "MODEL.OHEM.ONE_PASS_ON": (True, OHEM),
    "MODEL.RANKING_LOSS.NAME": ("ap", RANKING),
    "MODEL.RANKING_LOSS.DELTA": (0.1, of_loss("ap")),
    "MODEL.RANKING_LOSS.IOU_THRESHS": ("[0.8]", of_loss("smooth_ap")),
    "MODEL.RANKING_LOSS.SMOOTH_AP.TEMPERATURE": (0.1, of_loss("smooth_ap")),
    "MODEL.RANKING_LOSS.DIRECT_AP.EPSILON": (10.0, of_loss("direct_ap")),
    "MODEL.RANKING_LOSS.PARAMETERIZED_AP.FORM": ("square", RANKING),
    "MODEL.RANKING_LOSS.PARAMETERIZED_AP.NUM_RANKED": (3, RANKING),
    "MODEL.RANKING_LOSS.PARAMETERIZED_AP.BOX_HEAD.POINTS": (POINTS, RANKING),
    "MODEL.ROI_BOX_HEAD.FULLY_CONNECTED.DIMS": ([5, 4], HEAD),
    "MODEL.ROI_BOX_HEAD.SVD_RANKS": ([3, 0], []),
    "MODEL.SQUEEZENET.OUT_FEATURES": (["fire3", "fire9"], SQUEEZE),
    "MODEL.PLAIN_CONVNET.NETWORK": ("alexnet", PLAIN),
    "MODEL.SMALL_CONVNET.CHANNELS": ([4, 4, 4, 6], []),
    "MODEL.SMALL_CONVNET.STRIDES": ([2, 2, 2, 1], []),
    "MODEL.SMALL_CONVNET.NORM": ("BN", []),
    "TEST.BOX_REG.ENABLED": (False, SOFTMAX),
    "TEST.BOX_REG.ITERATIONS": (2, SOFTMAX),
    "TEST.BOX_VOTING_IOU_THRESH": (0.3, SOFTMAX),
}
# The others: the test in which they act.
ELSEWHERE = {
    "DATALOADER.FEATURE_CACHE.FOLDER": (
        "tests/engine/test_feature_cache.py",
        "test_the_backbone_runs_once_for_each_view_in_all_runs_together",
    ),
    "DATALOADER.FEATURE_CACHE.MAX_GIB": (
        "tests/engine/test_feature_cache.py",
        "test_what_does_not_go_with_the_cache_stops_a_run_with_one_line",
    ),
    "DATALOADER.UNREADABLE_IMAGES": (
        "tests/engine/test_trainer.py",
        "test_an_unreadable_image_can_be_skipped_and_is_counted",
    ),
    "DATASETS.DECLARED": (
        "tests/data/test_declared.py",
        "test_a_config_declares_one_on_the_command_line_or_in_a_file",
    ),
    "MODEL.CLASS_NAMES": (
        "tests/test_export.py",
        "test_the_demo_takes_an_exported_and_compressed_detector",
    ),
    "MODEL.MAP_LOSS.VIS_PERIOD": (
        "tests/engine/test_loss_pictures.py",
        "test_without_a_period_or_the_loss_there_are_no_such_pictures",
    ),
    "MODEL.TIMM.NAME": (
        "tests/modeling/test_timm_backbone.py",
        "test_network_and_outputs_are_those_of_the_config",
    ),
    "MODEL.TIMM.OUT_FEATURES": (
        "tests/modeling/test_timm_backbone.py",
        "test_network_and_outputs_are_those_of_the_config",
    ),
    "MODEL.TRAIN_DIFFICULT_ON": (
        "tests/modeling/test_ranking_detectors.py",
        "test_difficult_objects_train_where_the_config_says_so",
    ),
    "MODEL.TRAIN_ONLY": (
        "tests/test_train_net.py",
        "test_box_regression_is_learned_with_either_loss_and_stage_by_stage",
    ),
    "PICKLE_ON": ("tests/engine/test_setup.py", "test_pickles_are_read_where_that_is_on"),
    "SOLVER.ACCUMULATE_STEPS": (
        "tests/test_train_net.py",
        "test_passes_of_few_images_make_the_update_of_many_and_go_on_when_resumed",
    ),
    "SOLVER.OPTIMIZER": (
        "tests/engine/test_optimizer.py",
        "test_adamw_decays_weights_but_not_norms_and_leaves_frozen_parameters_out",
    ),
    "TEST.PYRAMID.BEST_SIDE": (
        "tests/modeling/test_image_pyramid.py",
        "test_the_best_size_is_that_of_the_config",
    ),
    "TEST.PYRAMID.SIZES": (
        "tests/modeling/test_image_pyramid.py",
        "test_detections_on_a_pyramid_are_in_the_size_of_the_original_image",
    ),
}
for part in ("RPN", "RETINANET"):
    ELSEWHERE[f"MODEL.RANKING_LOSS.PARAMETERIZED_AP.{part}.POINTS"] = (
        "tests/modeling/test_ranking_detectors.py",
        "test_searched_points_are_in_the_checkpoint",
    )
for part in ("RPN", "BOX_HEAD", "RETINANET"):
    ELSEWHERE[f"MODEL.RANKING_LOSS.PARAMETERIZED_AP.{part}.GRADIENT_SCALE"] = (
        "tests/modeling/test_ranking_detectors.py",
        "test_the_gradient_scale_of_the_config_reaches_the_boxes_of_each_part",
    )
DETR = ["LOSS", "IN_FEATURES", "NUM_FEATURE_LEVELS", "NUM_QUERIES", "D_MODEL", "FFN_DIM"]
DETR += ["NUM_HEADS", "NUM_POINTS", "ENCODER_LAYERS", "DECODER_LAYERS", "DROPOUT"]
DETR += ["CLASS_WEIGHT", "L1_WEIGHT", "GIOU_WEIGHT"]
DETR = [f"MODEL.DEFORMABLE_DETR.{key}" for key in DETR]
for key in ("POINTS", "GRADIENT_SCALE"):
    DETR.append(f"MODEL.RANKING_LOSS.PARAMETERIZED_AP.DEFORMABLE_DETR.{key}")
for key in DETR:
    ELSEWHERE[key] = (
        "tests/modeling/test_detr_keys.py",
        "test_a_key_changes_what_comes_of_the_detector",
    )


@pytest.fixture(scope="module")
def added_keys():
    """What add_maploss_config adds: names and defaults."""
    cfg = get_cfg()
    before = {*keys_of(cfg)}
    add_maploss_config(cfg)
    return {key: value_of(cfg, key) for key in keys_of(cfg) if key not in before}


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_every_key_of_the_project_has_a_test_in_which_it_acts(added_keys):
    of_the_loss = {f"MODEL.MAP_LOSS.{key}" for key in test_config.ACTING}
    assert {*added_keys} == {*ACTING, *ELSEWHERE, *of_the_loss}
    assert len(added_keys) == len(ACTING) + len(ELSEWHERE) + len(of_the_loss)


@pytest.mark.parametrize("key", ELSEWHERE)
def test_the_test_in_which_a_key_acts_is_there_and_its_file_names_the_key(key):
    path, name = ELSEWHERE[key]
    text = (REPOSITORY / path).read_text()
    assert f"def {name}(" in text
    assert key.split(".")[-1] in text


def test_booleans_end_in_on_or_are_called_enabled(added_keys):
    booleans = [key for key, value in added_keys.items() if isinstance(value, bool)]
    assert [key for key in booleans if not key.endswith(("_ON", ".ENABLED"))] == []
    assert len(booleans) > 3


def outcome(cfg, overrides):
    """
    Of a detector: shapes of its outputs and parameters, the number of windows in each pass of
    training through its head, its losses and their gradients, and its detections.
    """
    cfg = cfg.clone()
    cfg.merge_from_list([x if isinstance(x, str) else repr(x) for x in overrides])
    torch.manual_seed(0)
    model = build_model(cfg)
    found = [str(model.backbone.output_shape())]
    found += [f"{name} {tuple(x.shape)}" for name, x in model.state_dict().items()]
    with torch.no_grad():  # at first all scores are close to each other, all boxes to their windows
        for layer in (model.roi_heads.box_predictor.cls_score, box_layer(model)):
            if layer is not None:
                layer.weight.mul_(100)
    model.roi_heads.box_head.register_forward_hook(lambda *x: found.append(f"pass of {len(x[2])}"))
    torch.manual_seed(0)
    losses = model(make_batch(4))
    found += [f"{name} {value:.5f}" for name, value in losses.items()]
    sum(losses.values()).backward()
    found += [f"gradient {x.grad.norm():.4g}" for x in model.parameters() if x.grad is not None]
    with torch.no_grad():
        for x in model.eval()(make_batch(4)):
            boxes = torch.cat([x["instances"].pred_boxes.tensor, x["instances"].scores[:, None]], 1)
            found += [" ".join(f"{value:.3f}" for value in row) for row in boxes.tolist()]
    return found


def box_layer(model):
    return model.roi_heads.box_predictor.bbox_pred


@pytest.mark.parametrize("key", ACTING)
def test_a_key_changes_what_comes_of_the_detector(tiny_cfg, storage, key):
    value, before = ACTING[key]
    assert outcome(tiny_cfg, before) == outcome(tiny_cfg, before)
    assert outcome(tiny_cfg, before) != outcome(tiny_cfg, [*before, key, value])


def test_one_pass_is_refused_where_it_does_nothing(tiny_cfg):
    tiny_cfg.MODEL.MAP_LOSS.WINDOWS, tiny_cfg.MODEL.OHEM.ONE_PASS_ON = "hard", True
    with pytest.raises(ValueError, match=r"^MODEL.OHEM.ONE_PASS_ON: expected False with .*'hard'"):
        build_model(tiny_cfg)


@pytest.mark.parametrize("name", ["parameterized_ap", "smooth_ap", "direct_ap", "focal"])
def test_a_width_of_the_step_is_refused_by_losses_without_one(tiny_cfg, name):
    tiny_cfg.merge_from_list([str(x) for x in of_loss(name)])
    tiny_cfg.MODEL.RANKING_LOSS.DELTA = 0.5
    message = (
        rf"^MODEL.RANKING_LOSS.DELTA: expected 0 with NAME '{name}' \(only ap, alrp, .* got 0.5"
    )
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg)
