# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from maploss.engine import box_targets, set_box_targets
from maploss.engine.box_targets import box_target_stats
from maploss.modeling.box_regressor import box_deltas


def make_record(windows, objects, classes, **flags):
    return {
        "proposal_boxes": torch.tensor(windows).reshape(-1, 4).numpy(),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": c, **flags}
            for box, c in zip(objects, classes, strict=True)
        ],
    }


def make_records(seed, class_id, shift):
    """Two images of 40 windows each around an object of 40 x 30 at (20, 30)."""
    generator = torch.Generator().manual_seed(seed)
    box = torch.tensor([20.0, 30, 60, 60])
    noise = torch.randn(80, 4, generator=generator) + shift
    records = [
        make_record((box + part).tolist(), [[20.0, 30, 40, 30]], [class_id])
        for part in noise.split(40)
    ]
    return records, box_deltas(box + noise, box.expand(80, 4))


def test_the_statistics_are_those_of_the_windows_over_objects_of_each_class():
    first, first_deltas = make_records(0, 0, 0.0)
    second, second_deltas = make_records(1, 2, 3.0)
    far = make_record([[0.0, 0, 10, 10]], [[20.0, 30, 40, 30]], [0])
    mean, std = box_target_stats([*first, *second, far], 3, 0.5)
    torch.testing.assert_close(mean[0], first_deltas.mean(0))
    torch.testing.assert_close(std[2], second_deltas.std(0, unbiased=False))
    both = torch.cat([first_deltas, second_deltas])
    torch.testing.assert_close(mean[1], both.mean(0))  # a class without windows
    mean, std = box_target_stats([*first, *second], 1, 0.5)
    torch.testing.assert_close(mean, both.mean(0, keepdim=True))
    torch.testing.assert_close(std, both.std(0, unbiased=False, keepdim=True))


def test_difficult_objects_count_where_they_train_and_only_the_first_windows_do():
    records = [make_record([[20.0, 30, 60, 60], [20, 30, 64, 60]] * 40, [[20.0, 30, 40, 30]], [0])]
    records[0]["annotations"][0]["difficult"] = 1
    mean, _ = box_target_stats(records, 1, 0.5, with_difficult=True)
    assert mean.any()
    windows = [[20.0, 30, 60, 60]] * 40 + [[20, 30, 70, 60]] * 9
    both = [make_record(windows, [[20.0, 30, 40, 30]], [0])]
    assert not box_target_stats(both, 1, 0.5, max_windows=40)[0].any()
    assert box_target_stats(both, 1, 0.5)[0].any()


@pytest.mark.parametrize(("num", "is_own"), [(29, False), (30, True)])
def test_a_class_with_fewer_than_30_windows_gets_the_statistics_of_all(num, is_own):
    few = make_record([[20.0, 30, 64, 60]] * num, [[20.0, 30, 40, 30]], [1])
    many = make_record([[20.0, 30, 62, 60]] * 100, [[20.0, 30, 40, 30]], [0])
    mean, _ = box_target_stats([few, many], 2, 0.5)
    alone, _ = box_target_stats([few] * 2, 1, 0.5)
    assert torch.allclose(mean[1], alone[0]) == is_own


@pytest.mark.parametrize("flags", [{"difficult": 1}, {"iscrowd": 1}])
def test_difficult_objects_and_crowds_are_left_out(flags):
    records = [make_record([[20.0, 30, 60, 60]] * 40, [[20.0, 30, 40, 31]], [0], **flags)]
    mean, std = box_target_stats(records, 2, 0.5)
    assert not mean.any()
    assert (std == 1).all()


def test_windows_that_are_all_alike_leave_a_variance_above_zero():
    records = [make_record([[20.0, 30, 60, 60]] * 40, [[20.0, 30, 40, 31]], [0])]
    assert (box_target_stats(records, 1, 0.5)[1] > 0).all()


@pytest.fixture
def regressed_cfg(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.NAME = "SoftmaxROIHeads"
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    return tiny_cfg


def test_a_model_gets_them_unless_its_windows_come_from_an_rpn(regressed_cfg, monkeypatch):
    records, deltas = make_records(0, 0, 0.0)
    monkeypatch.setattr(box_targets, "training_records", lambda *_, **__: records)
    regressed_cfg.MODEL.LOAD_PROPOSALS = False
    model = build_model(regressed_cfg)
    set_box_targets(model, regressed_cfg)
    regressor = model.roi_heads.box_predictor.bbox_pred
    torch.testing.assert_close(regressor.target_std[1], torch.tensor([0.1, 0.1, 0.2, 0.2]))
    regressed_cfg.MODEL.LOAD_PROPOSALS = True
    set_box_targets(model, regressed_cfg)
    torch.testing.assert_close(regressor.target_mean[0], deltas.mean(0))
    assert "roi_heads.box_predictor.bbox_pred.target_mean" in model.state_dict()


def test_of_many_images_those_at_equal_distances_are_measured(regressed_cfg, monkeypatch):
    first, deltas = make_records(0, 0, 0.0)
    second, _ = make_records(1, 0, 3.0)
    records = [first[0], second[0], first[1], second[1]]
    monkeypatch.setattr(box_targets, "training_records", lambda *_, **__: records)
    monkeypatch.setattr(box_targets, "MAX_IMAGES", 2)
    model = build_model(regressed_cfg)
    set_box_targets(model, regressed_cfg)
    mean = model.roi_heads.box_predictor.bbox_pred.target_mean[0]
    torch.testing.assert_close(mean, deltas.mean(0))


def test_a_model_without_box_regression_is_left_alone(tiny_cfg, monkeypatch):
    monkeypatch.delattr(box_targets, "training_records")
    set_box_targets(build_model(tiny_cfg), tiny_cfg)
