# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from maploss.data.mapper import MAPDatasetMapper
from maploss.data.records import load_records
from maploss.modeling.image_pyramid import choose_scales, score_on_pyramid
from maploss.modeling.output_layers import BoxPredictions


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (224, 1),  # as it is
        (112, 2),  # twice as large is 224
        (448, 0),  # half as large is 224
        (1000, 0),  # still too large at the smallest scale
        (5, 2),  # too small at all
        (0, 0),  # no area: all are equally far
        (141, 2),  # 30,295 pixels less than 224 x 224, 29,348 more at twice the size
        (142, 1),  # 30,012 less, 30,480 more
    ],
)
def test_a_window_goes_where_its_area_is_closest_to_224_x_224(side, expected):
    box = torch.tensor([[10.0, 20, 10 + side, 20 + side]])
    assert choose_scales(box, [0.5, 1.0, 2.0]).tolist() == [expected]


def test_it_is_the_area_that_counts_not_the_sides():
    long = torch.tensor([[0.0, 0, 896, 56]])
    assert choose_scales(long, [0.5, 1.0, 2.0]).tolist() == [1]


def test_another_size_may_be_the_best():
    box = torch.tensor([[0.0, 0, 50, 50]])
    assert choose_scales(box, [0.5, 1.0, 2.0], 24.0).tolist() == [0]
    assert choose_scales(box, [0.5, 1.0, 2.0], 48.0).tolist() == [1]


def make_windows(boxes, size=(100, 200)):
    windows = Instances(size)
    windows.proposal_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    return windows


def scored_by(score, sizes):
    """Heads and a pyramid whose features are the numbers of the levels."""
    pyramid = SimpleNamespace(sizes=sizes, features=lambda level: level, best_side=224.0)
    return SimpleNamespace(score_proposals=score), pyramid


def test_each_window_is_scored_once_in_the_pixels_of_its_image_and_comes_back_in_order():
    sizes = [(100, 200), (400, 800)]
    boxes = [[0.0, 0, 50, 50], [0, 0, 200, 100], [20, 10, 76, 66]]
    seen = {}

    def score(level, proposals):
        (windows,) = proposals
        seen[sizes[level]] = windows.proposal_boxes.tensor.tolist()
        assert windows.image_size == sizes[level]
        x = windows.proposal_boxes.tensor / sizes[level][0]
        return BoxPredictions(x[:, :2], x)

    outputs = score_on_pyramid(*scored_by(score, sizes), make_windows(boxes))
    assert seen[100, 200] == [boxes[1]]
    assert seen[400, 800] == [[0, 0, 200, 200], [80, 40, 304, 264]]
    torch.testing.assert_close(outputs.deltas, torch.tensor(boxes) / 100)
    torch.testing.assert_close(outputs.scores, torch.tensor(boxes)[:, :2] / 100)


def test_windows_of_three_scales_in_any_order_come_back_in_theirs():
    sizes = [(100 * n, 100 * n) for n in (1, 2, 4)]
    sides = [50.0, 220.0, 110.0, 56.0, 224.0]  # scales 2, 0, 1, 2, 0
    boxes = [[0.0, 0, side, side] for side in sides]

    def score(level, proposals):
        (windows,) = proposals
        return BoxPredictions(windows.proposal_boxes.tensor[:, 2:3] / sizes[level][0])

    outputs = score_on_pyramid(*scored_by(score, sizes), make_windows(boxes, (100, 100)))
    torch.testing.assert_close(outputs.scores[:, 0], torch.tensor(sides) / 100)
    assert outputs.deltas is None


@pytest.fixture
def pyramid_cfg(data_cfg):
    data_cfg.INPUT.MIN_SIZE_TEST = 48
    return data_cfg


def detect(cfg):
    records = load_records(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, filter_empty=False)
    mapper = MAPDatasetMapper(cfg, is_train=False)
    inputs = [mapper(record) for record in records]
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = build_model(cfg).eval()(inputs)
    return inputs, [x["instances"] for x in outputs]


def test_a_pyramid_of_the_image_itself_changes_nothing(pyramid_cfg):
    _, expected = detect(pyramid_cfg)
    pyramid_cfg.TEST.PYRAMID.SIZES = [48]
    inputs, actual = detect(pyramid_cfg)
    assert torch.equal(inputs[0]["pyramid"][0], inputs[0]["image"])
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.pred_boxes.tensor, other.pred_boxes.tensor)
        torch.testing.assert_close(one.scores, other.scores)


@pytest.mark.parametrize("box_reg_weight", [0.0, 1.0])
def test_detections_on_a_pyramid_are_in_the_size_of_the_original_image(pyramid_cfg, box_reg_weight):
    pyramid_cfg.MODEL.ROI_HEADS.NAME = "SoftmaxROIHeads"
    pyramid_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = box_reg_weight
    pyramid_cfg.TEST.PYRAMID.SIZES = [96, 480]
    pyramid_cfg.INPUT.MAX_SIZE_TEST = 200
    inputs, (detections, *_) = detect(pyramid_cfg)
    assert [tuple(x.shape[1:]) for x in inputs[0]["pyramid"]] == [(96, 128), (150, 200)]
    assert detections.image_size == (48, 64)
    if box_reg_weight == 0:
        windows = {tuple(x) for x in inputs[0]["proposals"].proposal_boxes.tensor.tolist()}
        assert {tuple(x) for x in detections.pred_boxes.tensor.tolist()} <= windows
    assert len(detections) > 4


def test_the_best_size_is_that_of_the_config(pyramid_cfg):
    pyramid_cfg.TEST.PYRAMID.SIZES = [48, 480]
    _, (at_480, *_) = detect(pyramid_cfg)
    pyramid_cfg.TEST.PYRAMID.BEST_SIDE = 10.0
    _, (at_48, *_) = detect(pyramid_cfg)
    pyramid_cfg.TEST.PYRAMID.SIZES = [48]
    _, (expected, *_) = detect(pyramid_cfg)
    torch.testing.assert_close(at_48.scores, expected.scores)
    assert len(at_480) != len(expected) or not torch.allclose(at_480.scores, expected.scores)


def test_an_image_without_windows_has_no_detections(pyramid_cfg):
    pyramid_cfg.TEST.PYRAMID.SIZES = [48, 96]
    image = torch.zeros(3, 48, 64)
    inputs = {"image": image, "pyramid": [image, image], "proposals": make_windows([], (48, 64))}
    with torch.no_grad():
        (outputs,) = build_model(pyramid_cfg).eval()([inputs])
    assert len(outputs["instances"]) == 0


def test_a_pyramid_needs_precomputed_windows(pyramid_cfg):
    pyramid_cfg.TEST.PYRAMID.SIZES = [48]
    pyramid_cfg.MODEL.LOAD_PROPOSALS = False
    with pytest.raises(ValueError, match=r"PYRAMID\.SIZES: expected precomputed proposals"):
        MAPDatasetMapper(pyramid_cfg, is_train=False)
