# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

HEADS = ("MAPROIHeads", "SoftmaxROIHeads")
SIZE = (48, 64)


def make_input(windows, objects=(), classes=(), difficult=None, seed=0):
    """Input of one image; objects None means an image without annotations."""
    generator = torch.Generator().manual_seed(seed)
    proposals = Instances(SIZE)
    proposals.proposal_boxes = Boxes(torch.tensor(windows, dtype=torch.float32).reshape(-1, 4))
    proposals.objectness_logits = torch.zeros(len(windows))
    instances = Instances(SIZE)
    instances.gt_boxes = Boxes(torch.tensor(objects, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if difficult is not None:
        instances.gt_difficult = torch.tensor(difficult, dtype=torch.int64)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
    return {"image": image, "proposals": proposals, "instances": instances, "file_name": "x.png"}


def random_windows(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num, 2, generator=generator) * torch.tensor([40.0, 24.0])
    return torch.cat([corners, corners + 8 + 16 * torch.rand(num, 2, generator=generator)], dim=1)


def make_batch(num_windows=30):
    batch = []
    for i in range(3):
        windows = random_windows(num_windows, seed=i).tolist()
        batch.append(make_input(windows, windows[:2], [i, 3], [0, i == 2], seed=i))
    return batch


def make_model(cfg, name):
    cfg.MODEL.ROI_HEADS.NAME = name
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize("name", HEADS)
def test_a_step_gives_finite_losses_and_a_gradient_for_every_parameter(tiny_cfg, name, storage):
    model = make_model(tiny_cfg, name)
    sum(model(make_batch()).values()).backward()
    for param_name, param in model.named_parameters():
        assert param.grad is not None, param_name
        assert torch.isfinite(param.grad).all(), param_name
    assert any(param.grad.abs().max() > 0 for param in model.backbone.parameters())


@pytest.mark.parametrize("is_class_agnostic", [False, True])
@pytest.mark.parametrize("name", [*HEADS, "OHEMROIHeads"])
def test_the_loss_of_boxes_is_that_of_the_config(tiny_cfg, name, is_class_agnostic, storage):
    tiny_cfg.MODEL.MAP_LOSS.BOX_REG.GRADIENT = "none"
    tiny_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = "regressed"
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    tiny_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = is_class_agnostic
    found = {}
    for loss_type in ("smooth_l1", "giou"):
        tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = loss_type
        model = make_model(tiny_cfg, name)
        loss = model(make_batch())["loss_box_reg"]
        loss.backward()
        assert model.roi_heads.box_predictor.bbox_pred.weight.grad.abs().max() > 0
        found[loss_type] = loss.item()
    # Windows over objects have an IoU of .5 at least, and few windows are over objects.
    assert 0 < found["giou"] < 0.5
    assert found["smooth_l1"] != pytest.approx(found["giou"], rel=0.01)
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "diou"
    with pytest.raises(ValueError, match="BBOX_REG_LOSS_TYPE: expected one of smooth_l1, giou, go"):
        make_model(tiny_cfg, name)


WINDOW, OBJECT = [2.0, 2.0, 30.0, 30.0], [3.0, 3.0, 30.0, 30.0]
EMPTY_BATCHES = {
    "an image without windows": [
        make_input([WINDOW], [OBJECT], [1]),
        make_input([], [OBJECT], [2]),
    ],
    "an image without objects": [make_input([WINDOW], [OBJECT], [1]), make_input([WINDOW])],
    "no object": [make_input([WINDOW]), make_input([WINDOW])],
    "no window": [make_input([], [OBJECT], [1]), make_input([], [OBJECT], [2])],
    "nothing": [make_input([]), make_input([])],
    "only a window on a difficult object": [make_input([WINDOW], [OBJECT], [1], [1])],
    "identical windows": [make_input([WINDOW] * 9, [OBJECT], [1])],
}


@pytest.mark.parametrize("case", EMPTY_BATCHES)
@pytest.mark.parametrize("name", HEADS)
def test_empty_input_gives_finite_losses_that_touch_every_parameter(tiny_cfg, name, case, storage):
    model = make_model(tiny_cfg, name)
    loss = sum(model(EMPTY_BATCHES[case]).values())
    assert torch.isfinite(loss)
    loss.backward()
    for param_name, param in model.named_parameters():
        assert param.grad is not None, param_name
        assert torch.isfinite(param.grad).all(), param_name


@pytest.mark.parametrize("name", HEADS)
def test_evaluation_without_windows_gives_no_detections(tiny_cfg, name):
    model = make_model(tiny_cfg, name).eval()
    with torch.no_grad():
        (output,) = model([make_input([])])
    assert len(output["instances"]) == 0


@pytest.mark.parametrize("batch_size", [8, 0])
def test_both_heads_train_on_the_same_windows_under_one_seed(tiny_cfg, batch_size, storage):
    tiny_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = batch_size
    sampled = []
    for name in HEADS:
        model = make_model(tiny_cfg, name)
        torch.manual_seed(7)
        batch = make_batch()
        features = {"conv4": torch.zeros(3, 4, 12, 16)}
        windows, _ = model.roi_heads(
            None, features, [x["proposals"] for x in batch], [x["instances"] for x in batch]
        )
        sampled.append(windows)
    for first, second in zip(*sampled, strict=True):
        assert torch.equal(first.proposal_boxes.tensor, second.proposal_boxes.tensor)
        assert torch.equal(first.gt_classes, second.gt_classes)
        assert len(first) == 8 if batch_size else len(first) > 20


def label_and_sample(cfg, inputs):
    heads = make_model(cfg, "MAPROIHeads").roi_heads
    with EventStorage():
        (windows,) = heads.label_and_sample_proposals([inputs["proposals"]], [inputs["instances"]])
    return windows


def test_at_most_five_percent_of_the_windows_are_foreground(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 40
    far = [[40.0, 20.0, 41.0 + i, 30.0] for i in range(20)]
    inputs = make_input([OBJECT] * 30 + far * 3, [OBJECT], [1], [0])
    windows = label_and_sample(tiny_cfg, inputs)
    assert len(windows) == 40
    assert (windows.gt_classes == 1).sum() == 2
    assert (windows.gt_classes == 4).sum() == 38


def test_all_windows_keep_their_order_without_a_limit(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = -1
    inputs = make_input(random_windows(50).tolist(), [OBJECT], [1], [0])
    windows = label_and_sample(tiny_cfg, inputs)
    assert torch.equal(windows.proposal_boxes.tensor, inputs["proposals"].proposal_boxes.tensor)


def test_sampled_windows_keep_their_order(tiny_cfg):
    # Otherwise foreground would come first, and win all ties in score.
    tiny_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 20
    far = [[40.0, 20.0, 41.0 + i, 30.0] for i in range(20)]
    windows = label_and_sample(tiny_cfg, make_input([*far, OBJECT], [OBJECT], [1], [0]))
    assert windows.gt_classes.tolist() == [4] * 19 + [1]
    rights = windows.proposal_boxes.tensor[:-1, 2]
    assert (rights[1:] > rights[:-1]).all()


def test_background_reaches_down_to_iou_0_and_up_to_the_threshold(tiny_cfg):
    square = [0.0, 0.0, 10.0, 10.0]
    # IoU with the square: .5 and .49.
    inputs = make_input([[0, 0, 10, 5], [0, 0, 10, 4.9], [20, 20, 30, 30]], [square], [2], [0])
    assert label_and_sample(tiny_cfg, inputs).gt_classes.tolist() == [2, 4, 4]


def test_windows_on_a_difficult_object_do_not_train(tiny_cfg):
    other = [30.0, 5.0, 50.0, 25.0]
    inputs = make_input([OBJECT, other, [50, 30, 60, 40]], [OBJECT, other], [1, 2], [1, 0])
    windows = label_and_sample(tiny_cfg, inputs)
    assert windows.gt_classes.tolist() == [2, 4]


def test_a_window_that_only_touches_a_difficult_object_is_background(tiny_cfg):
    inputs = make_input([[3, 3, 30, 12]], [OBJECT], [1], [1])
    assert label_and_sample(tiny_cfg, inputs).gt_classes.tolist() == [4]


def test_the_map_loss_gets_the_objects_that_no_window_matches(tiny_cfg, storage):
    model = make_model(tiny_cfg, "MAPROIHeads")
    seen = {}

    def watch(module, args):
        seen["args"] = args

    model.roi_heads.box_predictor.map_loss.register_forward_pre_hook(watch)
    far = [40.0, 30.0, 60.0, 40.0]
    model(
        [
            make_input([WINDOW, WINDOW], [OBJECT, far], [1, 2], [0, 1]),
            make_input([]),
            make_input([WINDOW], [far], [3], [0]),
        ]
    )
    scores, boxes, image_inds, gt_boxes, gt_classes, gt_image_inds, gt_difficult = seen["args"]
    assert scores.shape == (3, 4)
    assert boxes.tolist() == [WINDOW] * 3
    assert image_inds.tolist() == [0, 0, 2]
    assert gt_boxes.tolist() == [OBJECT, far, far]
    assert gt_classes.tolist() == [1, 2, 3]
    assert gt_image_inds.tolist() == [0, 0, 2]
    assert gt_difficult.tolist() == [0, 1, 0]


def test_watched_values_go_to_the_event_storage(tiny_cfg, storage):
    losses = make_model(tiny_cfg, "MAPROIHeads")(make_batch())
    assert set(losses) == {"loss_map", "loss_score_reg"}
    names = ("minibatch_map", "nonzero_share", "clipped_share", "largest_score")
    assert {f"map/{name}" for name in names} <= set(storage.latest())
    num_fg, _ = storage.latest()["roi_head/num_fg_samples"]
    num_bg, _ = storage.latest()["roi_head/num_bg_samples"]
    assert 0 < num_fg + num_bg <= 30


def test_appended_ground_truth_is_refused(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = True
    with pytest.raises(ValueError, match="PROPOSAL_APPEND_GT"):
        build_model(tiny_cfg)


def test_an_unknown_feature_is_named(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p9"]
    with pytest.raises(ValueError, match=r"IN_FEATURES.*conv4.*'p9'"):
        build_model(tiny_cfg)


@pytest.mark.parametrize("key", ["GRADIENT", "AP_TYPE", "TRANSITIVITY", "NEAREST_STEPS.PAIRING"])
def test_an_unknown_setting_fails_when_the_model_is_built(tiny_cfg, key):
    tiny_cfg.merge_from_list([f"MODEL.MAP_LOSS.{key}", "nonsense"])
    with pytest.raises(ValueError, match="nonsense"):
        build_model(tiny_cfg)


def test_a_window_over_no_object_in_a_crowd_does_not_train(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 0
    crowd, item = [0.0, 0.0, 60.0, 24.0], [5.0, 5.0, 15.0, 15.0]
    windows = [[20.0, 2, 30, 12], [5.0, 5, 15, 15], [20.0, 20, 30, 29], [20.0, 19, 30, 29]]
    inputs = make_input(windows, [crowd, item], [1, 2], [1, 0])
    inputs["instances"].gt_is_crowd = torch.tensor([1, 0])
    sampled = label_and_sample(tiny_cfg, inputs)
    # Left out: the first, wholly in the crowd, and the last, in it by half.
    assert sampled.proposal_boxes.tensor.tolist() == [windows[1], windows[2]]
    assert sampled.gt_classes.tolist() == [2, 4]
