# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from maploss.layers import MAPLoss
from maploss.modeling import MAPOutputLayers, SoftmaxOutputLayers
from maploss.modeling.detections import detections, proposal_candidates
from maploss.modeling.map_loss_config import ap_type_from_config, iou_threshs_from_config
from maploss.modeling.output_layers import BoxPredictions

SIZE = (100, 100)
SETTINGS = {"score_thresh": float("-inf"), "nms_iou_thresh": 0.3, "detections_per_image": -1}
FAR = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])


def window_detections(scores, windows, image_size, *, score_thresh, **settings):
    return detections(proposal_candidates(scores, windows, image_size, score_thresh), **settings)


def test_windows_of_one_class_suppress_each_other_and_not_those_of_another():
    windows = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    scores = torch.tensor([[3.0, -1.0], [2.0, -2.0]])
    result = window_detections(scores, windows, SIZE, **SETTINGS)
    assert result.scores.tolist() == [3.0, -1.0]
    assert result.pred_classes.tolist() == [0, 1]
    assert result.pred_boxes.tensor.tolist() == [[0.0, 0, 10, 10]] * 2


def test_scores_keep_full_precision_and_negative_ones_are_detections():
    scores = torch.tensor([[-1.0], [-1.0000001]])
    result = window_detections(scores, FAR, SIZE, **SETTINGS)
    assert result.scores.tolist() == scores[:, 0].tolist()


def test_tied_detections_keep_the_order_of_their_windows():
    # More than torchvision handles with a stable sort: two groups of equal scores.
    corner = torch.arange(1500).float()[:, None] * 12
    windows = torch.cat([corner, corner, corner + 10, corner + 10], 1)
    scores = (torch.arange(1500) % 2).float()[:, None]
    result = window_detections(scores, windows, (20000, 20000), **SETTINGS)
    order = (result.pred_boxes.tensor[:, 0] / 12).long()
    assert torch.equal(order, torch.argsort(scores[:, 0], descending=True, stable=True))


def test_the_threshold_and_the_number_of_detections_limit_the_result():
    scores = torch.tensor([[0.1, 0.4], [0.2, 0.3]])
    result = window_detections(scores, FAR, SIZE, **SETTINGS | {"score_thresh": 0.1})
    assert len(result) == 3
    result = window_detections(scores, FAR, SIZE, **SETTINGS | {"detections_per_image": 2})
    assert torch.equal(result.scores, torch.tensor([0.4, 0.3]))


@pytest.mark.parametrize("limit", [0, -1])
def test_no_limit_means_all_detections(limit):
    scores = torch.zeros(2, 30)
    result = window_detections(scores, FAR, SIZE, **SETTINGS | {"detections_per_image": limit})
    assert len(result) == 60


def test_windows_are_clipped_to_the_image_and_the_input_is_left_alone():
    windows = torch.tensor([[-5.0, -5, 200, 50]])
    result = window_detections(torch.zeros(1, 1), windows, SIZE, **SETTINGS)
    assert result.pred_boxes.tensor.tolist() == [[0.0, 0, 100, 50]]
    assert windows.tolist() == [[-5.0, -5, 200, 50]]


def test_each_class_may_have_boxes_of_its_own():
    # Apart as class 0, on top of each other as class 1.
    boxes = torch.tensor(
        [[[0.0, 0, 10, 10], [40, 40, 60, 60]], [[20.0, 0, 30, 10], [40, 40, 60, 61]]]
    )
    scores = torch.tensor([[4.0, 2.0], [3.0, 1.0]])
    result = window_detections(scores, boxes, SIZE, **SETTINGS)
    assert result.scores.tolist() == [4.0, 3.0, 2.0]
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [20, 0, 30, 10], [40, 40, 60, 60]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error(value):
    with pytest.raises(FloatingPointError, match="1 of 4"):
        window_detections(torch.tensor([[0.0, value], [1.0, 2.0]]), FAR, SIZE, **SETTINGS)


def make_windows(labels):
    windows = Instances(SIZE)
    windows.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10]]).repeat(len(labels), 1))
    windows.gt_classes = torch.tensor(labels)
    return windows


def test_softmax_loss_is_the_mean_negative_log_likelihood_with_background_last():
    predictor = SoftmaxOutputLayers(ShapeSpec(channels=5), num_classes=2)
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    loss = predictor.losses(BoxPredictions(logits), [make_windows([0]), make_windows([2])], [])[
        "loss_cls"
    ]
    exp = torch.tensor([1.0, 2.0]).exp()
    assert torch.allclose(loss, -(exp / (exp + 2)).log().mean())


def test_softmax_detections_have_probabilities_and_no_background():
    predictor = SoftmaxOutputLayers(ShapeSpec(channels=5), num_classes=2)
    (result,) = predictor.inference(
        BoxPredictions(torch.tensor([[1.0, 2.0, 3.0]])), [make_windows([0])]
    )
    expected = torch.tensor([1.0, 2.0, 3.0]).softmax(0)
    assert torch.allclose(result.scores, expected[[1, 0]])
    assert result.pred_classes.tolist() == [1, 0]


def test_map_detections_have_raw_scores_for_every_class():
    predictor = MAPOutputLayers(ShapeSpec(channels=5), num_classes=3, map_loss=MAPLoss())
    (result,) = predictor.inference(
        BoxPredictions(torch.tensor([[-7.0, 2.0, 30.0]])), [make_windows([0])]
    )
    assert result.scores.tolist() == [30.0, 2.0, -7.0]


def test_half_precision_features_give_single_precision_scores():
    predictor = MAPOutputLayers(
        ShapeSpec(channels=5), num_classes=3, map_loss=MAPLoss(), box_reg_weight=1.0
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = predictor(torch.ones(2, 5))
    assert outputs.scores.dtype == outputs.deltas.dtype == torch.float32


def test_the_last_layer_starts_small():
    torch.manual_seed(0)
    predictor = MAPOutputLayers(ShapeSpec(channels=500), num_classes=20, map_loss=MAPLoss())
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not predictor.cls_score.bias.any()


def test_the_ap_type_is_that_of_the_first_training_set(tiny_cfg):
    MetadataCatalog.get("ap_type_test").set(ap_type="voc07")
    tiny_cfg.MODEL.MAP_LOSS.AP_TYPE = "auto"
    tiny_cfg.DATASETS.TRAIN = ("ap_type_test", "shapes_train")
    assert ap_type_from_config(tiny_cfg) == "voc07"
    tiny_cfg.MODEL.MAP_LOSS.AP_TYPE = "coco101"
    assert ap_type_from_config(tiny_cfg) == "coco101"


@pytest.mark.parametrize("names", [(), ("without_ap_type",)])
def test_an_ap_type_that_cannot_be_found_is_an_error(tiny_cfg, names):
    tiny_cfg.MODEL.MAP_LOSS.AP_TYPE = "auto"
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = names
    with pytest.raises(ValueError, match=r"AP_TYPE.*voc07"):
        ap_type_from_config(tiny_cfg)


TEN = tuple(round(0.05 * i, 2) for i in range(10, 20))


@pytest.mark.parametrize(
    ("metadata", "expected", "words"),
    [
        ({"ap_type": "voc07", "evaluator_type": "pascal_voc"}, (0.5,), "one overlap, .5,"),
        ({"ap_type": "area"}, (0.5,), "one overlap, .5,"),
        ({"ap_type": "coco101"}, TEN, "ten overlaps, .5 to .95,"),
        ({"ap_type": "area", "evaluator_type": "coco"}, TEN, "ten overlaps, .5 to .95,"),
    ],
)
def test_the_overlaps_are_those_of_the_evaluation_unless_they_are_given(
    tiny_cfg, caplog, metadata, expected, words
):
    MetadataCatalog.get("overlaps_test").set(**metadata)
    tiny_cfg.DATASETS.TRAIN = ("overlaps_test", "shapes_train")
    try:
        with caplog.at_level("INFO"):
            assert iou_threshs_from_config(tiny_cfg) == expected
        message = f"Overlaps of the loss: {words} as in the evaluation of 'overlaps_test'"
        assert [x.getMessage() for x in caplog.records] == [message]
        assert iou_threshs_from_config(tiny_cfg) == expected
        tiny_cfg.MODEL.MAP_LOSS.IOU_THRESHS = [0.7]
        assert iou_threshs_from_config(tiny_cfg) == (0.7,)
    finally:
        MetadataCatalog.remove("overlaps_test")


def test_without_a_data_set_there_is_one_overlap(tiny_cfg, caplog):
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ()
    with caplog.at_level("INFO"):
        assert iou_threshs_from_config(tiny_cfg) == (0.5,)
    assert not caplog.records


@pytest.mark.parametrize(
    ("threshs", "warnings"),
    [
        ([0.3, 0.5, 0.62, 0.95], ["the loss has 0.3, 0.62, the evaluation .5, .55, .., .95 only"]),
        ([0.5, 0.75], []),
        ("coco", []),
    ],
)
def test_overlaps_that_no_evaluation_has_are_one_line_and_no_error(
    tiny_cfg, caplog, threshs, warnings
):
    tiny_cfg.MODEL.MAP_LOSS.IOU_THRESHS = threshs
    predictor = MAPOutputLayers(tiny_cfg, ShapeSpec(channels=5))
    assert predictor.map_loss.settings.iou_threshs == (TEN if threshs == "coco" else (*threshs,))
    found = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
    assert found == [f"MODEL.MAP_LOSS.IOU_THRESHS: {x}" for x in warnings]


def make_regressed(**kwargs):
    return MAPOutputLayers(
        ShapeSpec(channels=5),
        num_classes=2,
        map_loss=MAPLoss(),
        box_reg_weight=1.0,
        box_reg_std=[1.0] * 4,
        **kwargs,
    )


# A window beside an object of class 0: no match, unless the regression of class 0 moves it there.
BESIDE = [[20.0, 0, 30, 10]]
MOVED = torch.tensor([[-2.0, 0, 0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(("nms_on_regressed", "expected"), [(False, 0.0), (True, 0.5)])
def test_the_map_loss_ranks_windows_or_what_the_regression_makes_of_them(
    storage, nms_on_regressed, expected
):
    predictor = make_regressed(nms_on_regressed=nms_on_regressed)
    windows, targets = make_windows([0]), Instances(SIZE)
    windows.proposal_boxes = Boxes(torch.tensor(BESIDE))
    windows.gt_boxes = targets.gt_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10]]))
    targets.gt_classes, targets.gt_difficult = torch.tensor([0]), torch.tensor([0])
    outputs = BoxPredictions(torch.zeros(1, 2), MOVED.clone().requires_grad_())
    losses = predictor.losses(outputs, [windows], [targets])
    assert storage.latest()["map/minibatch_map"][0] == expected
    assert set(losses) == {"loss_map", "loss_score_reg", "loss_box_reg"}
    assert losses["loss_box_reg"] == 0  # it is where it should be


@pytest.mark.parametrize(("at_test", "expected"), [(True, [0, 0, 10, 10]), (False, BESIDE[0])])
def test_the_test_takes_regressed_boxes_unless_told_not_to(at_test, expected):
    predictor = make_regressed(regress_at_test=at_test)
    windows = make_windows([0])
    windows.proposal_boxes = Boxes(torch.tensor(BESIDE))
    outputs = BoxPredictions(torch.tensor([[3.0, 2.0]]), MOVED)
    (result,) = predictor.inference(outputs, [windows])
    torch.testing.assert_close(result.pred_boxes.tensor[0], torch.tensor(expected).float())
    assert result.pred_boxes.tensor[1].tolist() == BESIDE[0]


def test_box_regression_with_the_map_loss_needs_a_weight(tiny_cfg):
    tiny_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = "regressed"
    with pytest.raises(ValueError, match="BBOX_REG_LOSS_WEIGHT: expected a number above 0"):
        MAPOutputLayers(tiny_cfg, ShapeSpec(channels=5))
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 2.0
    predictor = MAPOutputLayers(tiny_cfg, ShapeSpec(channels=5))
    assert predictor.nms_on_regressed
    assert predictor.bbox_pred.loss_weight == 2.0
    tiny_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = "none"
    assert MAPOutputLayers(tiny_cfg, ShapeSpec(channels=5)).bbox_pred is None
    tiny_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = "yes"
    with pytest.raises(
        ValueError, match=r"BOX_REG.BOXES: expected one of none, windows, regressed"
    ):
        MAPOutputLayers(tiny_cfg, ShapeSpec(channels=5))


def test_smooth_l1_is_that_of_the_config(tiny_cfg):
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    assert SoftmaxOutputLayers(tiny_cfg, ShapeSpec(channels=5)).bbox_pred.beta == 1.0
    tiny_cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = 0.0
    predictor = SoftmaxOutputLayers(tiny_cfg, ShapeSpec(channels=5))
    windows = make_windows([0])
    windows.gt_boxes = windows.proposal_boxes
    deltas = torch.tensor([[0.5, -0.25, 0, 0] + [9.0] * 12])
    loss = predictor.box_loss(BoxPredictions(torch.zeros(1, 5), deltas), [windows])
    assert float(loss) == pytest.approx(0.75)  # L1


def test_giou_is_that_of_the_config_by_the_number_of_all_windows(tiny_cfg):
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 2.0
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "giou"
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = [1.0] * 4
    predictor = SoftmaxOutputLayers(tiny_cfg, ShapeSpec(channels=5))
    windows = make_windows([0, 4, 4, 4])  # one over an object, three over nothing
    windows.gt_boxes = windows.proposal_boxes
    # Half a width to the right: IoU 1/3, and nothing of the hull is empty.
    deltas = torch.tensor([[0.5, 0, 0, 0] + [9.0] * 12] * 4)
    loss = predictor.box_loss(BoxPredictions(torch.zeros(4, 5), deltas), [windows])
    assert float(loss) == pytest.approx(2 * (1 - 1 / 3) / 4)


def test_regressed_boxes_are_clipped_to_their_images_in_training_as_at_test(storage):
    predictor = make_regressed(nms_on_regressed=True)
    windows, targets = make_windows([0]), Instances(SIZE)
    windows.proposal_boxes = Boxes(torch.tensor([[60.0, 10, 90, 50]]))
    windows.gt_boxes = targets.gt_boxes = Boxes(torch.tensor([[80.0, 10, 100, 50]]))
    targets.gt_classes, targets.gt_difficult = torch.tensor([0]), torch.tensor([0])
    # To [80, 10, 140, 50], of which 20 of 60 columns lie in the image.
    deltas = torch.tensor([[35 / 30, 0, torch.tensor(2.0).log(), 0, 0, 0, 0, 0]])
    predictor.losses(BoxPredictions(torch.zeros(1, 2), deltas), [windows], [targets])
    assert storage.latest()["map/minibatch_map"][0] == 0.5
    with pytest.raises(FloatingPointError, match="boxes: box regression gave some"):
        predictor.boxes(BoxPredictions(torch.zeros(1, 2), deltas * float("nan")), [windows])
