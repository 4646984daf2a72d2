# SPDX-License-Identifier: Apache-2.0
"""Online hard example mining, with softmax and with the mAP loss."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from maploss.config import add_maploss_config
from maploss.modeling import MAPROIHeads
from maploss.modeling.hard_example_mining import (
    ProposalError,
    mine_hard_proposals,
    sparsify_gradient,
)

from tests.modeling.test_roi_heads import (
    EMPTY_BATCHES,
    make_batch,
    make_input,
    make_model,
    random_windows,
)
from tests.tiny import RESNET_FPN, SMALLER, as_list


def make_windows(*counts):
    windows = []
    for i, count in enumerate(counts):
        x = Instances((48, 64))
        x.proposal_boxes = Boxes(random_windows(count, seed=i))
        x.ids = torch.arange(count)
        windows.append(x)
    return windows


def ids(hard):
    return [x.ids.tolist() for x in hard]


def test_the_hardest_come_from_all_images_or_from_each():
    windows = make_windows(4, 3)
    losses = torch.tensor([9.0, 8, 7, 6, 1, 2, 3])
    inds, hard = mine_hard_proposals(losses, windows, 2, iou_thresh=1.0)
    assert inds.tolist() == [0, 1, 2, 3]
    assert ids(hard) == [[0, 1, 2, 3], []]
    inds, hard = mine_hard_proposals(losses, windows, 2, iou_thresh=1.0, per_image=True)
    assert inds.tolist() == [0, 1, 5, 6]
    assert ids(hard) == [[0, 1], [1, 2]]


def test_windows_at_one_place_are_as_hard_in_two_images_but_not_in_one():
    (windows,) = make_windows(3)
    windows.proposal_boxes.tensor[:] = windows.proposal_boxes.tensor[:1].clone()
    losses = torch.tensor([1.0, 3, 2, 4, 5, 6])
    for per_image in (False, True):
        inds, hard = mine_hard_proposals(losses, [windows, windows], 9, per_image=per_image)
        assert inds.tolist() == [1, 5]
        assert ids(hard) == [[1], [2]]


def test_an_image_may_have_no_windows():
    inds, hard = mine_hard_proposals(
        torch.tensor([1.0, 2.0]), make_windows(0, 2), 1, per_image=True
    )
    assert inds.tolist() == [1]
    assert ids(hard) == [[], [1]]


def test_a_loss_that_is_not_finite_names_window_and_image():
    windows = make_windows(3, 2)
    losses = torch.tensor([1.0, 2, 3, 4, float("inf")])
    box = [round(x, 1) for x in windows[1].proposal_boxes.tensor[1].tolist()]
    with pytest.raises(ProposalError) as error:
        mine_hard_proposals(losses, windows, 9)
    assert error.value.image_ind == 1
    expected = f"image 1 of the minibatch: window {box}: expected a finite loss, got inf"
    assert str(error.value) == expected


@pytest.fixture
def ohem_cfg(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.NAME = "OHEMROIHeads"
    tiny_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 6
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    return tiny_cfg


def gradients(model):
    return {name: param.grad.clone() for name, param in model.named_parameters()}


def train_step(cfg, batch):
    model = make_model(cfg, cfg.MODEL.ROI_HEADS.NAME)
    seen = []
    model.roi_heads.register_forward_hook(lambda *args: seen.append(args[2][0]))
    losses = model(batch)
    sum(losses.values()).backward()
    return model, losses, [x.proposal_boxes.tensor for x in seen[0]]


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("is_class_agnostic", [False, True])
def test_one_pass_and_two_choose_the_same_windows_and_give_the_same_gradient(
    ohem_cfg, storage, per_image, is_class_agnostic
):
    ohem_cfg.MODEL.OHEM.PER_IMAGE_ON = per_image
    ohem_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = is_class_agnostic
    model, losses, windows = train_step(ohem_cfg, make_batch())
    ohem_cfg.MODEL.OHEM.ONE_PASS_ON = True
    other, other_losses, other_windows = train_step(ohem_cfg, make_batch())
    assert sum(map(len, windows)) == 18
    num_fg, num_bg = (storage.latest()[f"roi_head/num_{x}_samples"][0] for x in ("fg", "bg"))
    assert num_fg + num_bg == 6  # those that train
    for x, y in zip(windows, other_windows, strict=True):
        assert torch.equal(x, y)
    torch.testing.assert_close(losses, other_losses)
    assert losses["loss_box_reg"] > 0
    expected = gradients(other)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_the_windows_are_those_of_the_largest_loss_of_class_and_box(ohem_cfg, storage):
    batch = make_batch()
    _, _, chosen = train_step(ohem_cfg, batch)
    model = make_model(ohem_cfg, "SoftmaxROIHeads")
    heads, predictor = model.roi_heads, model.roi_heads.box_predictor
    heads.trained_on = "all"
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    for x in batch:
        x["instances"].gt_difficult = torch.zeros_like(x["instances"].gt_classes)
    batch[2]["instances"].gt_difficult[1] = 1
    labelled = heads.label_and_sample_proposals(
        [x["proposals"] for x in batch], [x["instances"] for x in batch]
    )
    losses = []
    for x in labelled:  # each window alone, by the ordinary loss
        for i in range(len(x)):
            own = [y[i : i + 1] if y is x else y[:0] for y in labelled]
            outputs = heads.score_proposals(features, own)
            losses.append(sum(predictor.losses(outputs, own, []).values()).item())
    _, hard = mine_hard_proposals(torch.tensor(losses), labelled, 6)
    for x, y in zip(hard, chosen, strict=True):
        assert torch.equal(x.proposal_boxes.tensor, y)


def test_background_from_0_and_any_share_of_foreground_may_be_chosen(ohem_cfg, storage):
    ohem_cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.1, 0.5]
    ohem_cfg.MODEL.ROI_HEADS.IOU_LABELS = [-1, 0, 1]
    ohem_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 100
    nothing, over = [[30.0, 0, 40, 9], [0, 30, 9, 40]], [[2.0, 2, 20, 20], [2, 2, 20, 30]]
    _, _, (windows,) = train_step(ohem_cfg, [make_input(nothing + over, over[:1], [1])])
    assert len(windows) == 4


@pytest.mark.parametrize("name", ["OHEMROIHeads", "MAPROIHeads"])
def test_hard_windows_are_over_an_object_from_the_last_threshold_on(ohem_cfg, storage, name):
    ohem_cfg.MODEL.ROI_HEADS.NAME = name
    ohem_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    ohem_cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.1, 0.7]
    ohem_cfg.MODEL.ROI_HEADS.IOU_LABELS = [-1, 0, 1]
    heads = make_model(ohem_cfg, name).roi_heads
    # IoU 1, .6, .08 and 0
    windows = [[0.0, 0, 20, 20], [0, 0, 20, 12], [0, 0, 8, 4], [30, 30, 40, 40]]
    batch = make_input(windows, windows[:1], [1], [0])
    (labelled,) = heads.label_and_sample_proposals([batch["proposals"]], [batch["instances"]])
    assert labelled.gt_classes.tolist() == [1, 4, 4, 4]


def test_the_objects_themselves_are_windows_where_asked_for(ohem_cfg, storage):
    ohem_cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = True
    batch = make_input([[30.0, 0, 40, 9]], [[2.0, 2, 20, 20]], [1])
    for name in ("OHEMROIHeads", "SoftmaxROIHeads"):
        ohem_cfg.MODEL.ROI_HEADS.NAME = name
        ohem_cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.5
        _, _, (windows,) = train_step(ohem_cfg, [batch])
        assert windows.tolist() == [[30, 0, 40, 9], [2, 2, 20, 20]]


def test_the_read_only_pass_drops_nothing_and_leaves_the_head_in_training(ohem_cfg, storage):
    ohem_cfg.MODEL.ROI_BOX_HEAD.NAME = "FullyConnectedHead"
    ohem_cfg.MODEL.ROI_BOX_HEAD.FULLY_CONNECTED.DIMS = [16]
    model = make_model(ohem_cfg, "OHEMROIHeads")
    heads, batch = model.roi_heads, make_batch()
    heads.box_predictor.bbox_pred.training = False  # what was so stays so
    features = model.backbone(model.preprocess_image(batch).tensor)
    windows = [x["proposals"] for x in batch]
    one, other = (heads.score_read_only(features, windows).scores for _ in range(2))
    assert torch.equal(one, other)
    assert not one.requires_grad
    assert heads.box_head.training
    assert heads.box_predictor.cls_score.training
    assert not heads.box_predictor.bbox_pred.training
    assert not torch.equal(heads.score_proposals(features, windows).scores, one)  # with dropout


@pytest.mark.parametrize("case", EMPTY_BATCHES)
@pytest.mark.parametrize("name", ["OHEMROIHeads", "MAPROIHeads"])
def test_edges_give_finite_losses_and_touch_every_parameter(ohem_cfg, storage, name, case):
    ohem_cfg.MODEL.ROI_HEADS.NAME = name
    ohem_cfg.MODEL.MAP_LOSS.WINDOWS, ohem_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = "hard", "windows"
    model, losses, windows = train_step(ohem_cfg, EMPTY_BATCHES[case])
    assert all(torch.isfinite(x) for x in losses.values())
    assert sum(map(len, windows)) <= 6 * len(windows)
    assert all(param.grad is not None for param in model.parameters())
    if case == "identical windows":
        assert len(windows[0]) == 1


def test_a_loss_that_is_not_finite_stops_training_with_image_and_window(ohem_cfg, storage):
    model = make_model(ohem_cfg, "OHEMROIHeads")
    batch = make_batch()
    batch[1]["file_name"] = "other.png"
    losses = torch.zeros(sum(len(x["proposals"]) for x in batch) - 1)  # but a difficult one
    losses[32] = float("nan")
    model.roi_heads.box_predictor.proposal_losses = lambda *_: losses
    with pytest.raises(FloatingPointError, match=r"^image other\.png: window \[.* got nan"):
        model(batch)


def test_at_least_one_window_has_to_be_hard(ohem_cfg):
    ohem_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 0
    ohem_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    for name in ("OHEMROIHeads", "MAPROIHeads"):
        ohem_cfg.MODEL.ROI_HEADS.NAME = name
        with pytest.raises(ValueError, match="SIZE_PER_IMAGE: expected at least 1 hard window"):
            build_model(ohem_cfg)


def test_hard_windows_of_a_gradient_that_is_noise_are_refused(ohem_cfg):
    ohem_cfg.MODEL.ROI_HEADS.NAME = "MAPROIHeads"
    ohem_cfg.MODEL.MAP_LOSS.GRADIENT = "reinforce"
    build_model(ohem_cfg)
    ohem_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    with pytest.raises(ValueError, match="WINDOWS: expected all or sampled with GRADIENT 'reinf"):
        build_model(ohem_cfg)


def test_scores_that_are_not_finite_name_image_and_window_with_the_map_loss(map_cfg, storage):
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    model = make_model(map_cfg, "MAPROIHeads")
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias, float("inf"))
    with pytest.raises(FloatingPointError, match=r"^image x\.png: window \[.* sum of scores, got"):
        model(make_batch())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MASK_ON", True),
        ("ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "diou"),
        ("ROI_BOX_HEAD.NAME", ""),
    ],
)
def test_parts_that_these_heads_do_not_have_are_refused(ohem_cfg, key, value):
    ohem_cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=f"{key}: expected"):
        build_model(ohem_cfg)


def test_the_weights_learn_in_mixed_precision_too(ohem_cfg, storage):
    model = make_model(ohem_cfg, "OHEMROIHeads")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_batch())
    sum(losses.values()).backward()
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_head.fc1):
        assert layer.weight.grad.abs().max() > 0


@pytest.fixture
def map_cfg(tiny_cfg):
    tiny_cfg.MODEL.MAP_LOSS.SCORE_REG.WEIGHT = 1e-3
    return tiny_cfg


def test_all_windows_make_the_map_loss_or_only_a_sample(map_cfg, storage):
    map_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 6
    assert sum(map(len, train_step(map_cfg, make_batch())[2])) == 18
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "all"
    map_cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.3, 0.5]
    map_cfg.MODEL.ROI_HEADS.IOU_LABELS = [-1, 0, 1]
    assert sum(map(len, train_step(map_cfg, make_batch())[2])) >= 80  # but over a difficult one
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "most"
    with pytest.raises(ValueError, match=r"WINDOWS: expected one of all, sampled, hard, got"):
        build_model(map_cfg)


@pytest.mark.parametrize("box_reg", ["none", "windows", "regressed"])
def test_hard_windows_enough_give_the_loss_and_gradient_of_all(map_cfg, box_reg, storage):
    map_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = box_reg
    map_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "all"
    model, losses, windows = train_step(map_cfg, make_batch())
    assert ("loss_map_box" in losses) == (box_reg != "none")
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    map_cfg.MODEL.OHEM.NMS_THRESH = 1.0
    other, other_losses, other_windows = train_step(map_cfg, make_batch())
    assert sum(map(len, windows)) == sum(map(len, other_windows))
    torch.testing.assert_close(losses, other_losses)
    expected = gradients(other)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    assert any(x.abs().max() > 0 for x in expected.values())


def score_gradients(cfg, batch):
    """The losses, and the gradient by the scores of each pass that keeps a graph."""
    model, scores = make_model(cfg, "MAPROIHeads"), []

    def keep(module, inputs, outputs):
        if outputs.scores.requires_grad:
            outputs.scores.retain_grad()
            scores.append(outputs.scores)

    model.roi_heads.box_predictor.register_forward_hook(keep)
    losses = model(batch)
    sum(losses.values()).backward()
    return losses, [x.grad for x in scores]


def test_what_goes_up_in_one_class_and_down_in_another_counts_with_both(
    map_cfg, storage, monkeypatch
):
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "all"
    _, (of_all,) = score_gradients(map_cfg, make_batch())
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    seen = []

    def watch(heads, losses, windows):
        seen.append(losses)
        return mine_hard_proposals(losses, windows, 4)

    monkeypatch.setattr(MAPROIHeads, "mine_hard_proposals", watch)
    score_gradients(map_cfg, make_batch())
    torch.testing.assert_close(seen[0], of_all.abs().sum(dim=1))
    assert not torch.allclose(seen[0], of_all.sum(dim=1).abs())


def test_few_hard_windows_carry_their_part_of_the_gradient_of_all(map_cfg, storage):
    batch = make_batch()
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "all"
    expected, (of_all,) = score_gradients(map_cfg, batch)
    map_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    map_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 4
    map_cfg.MODEL.OHEM.NMS_THRESH = 1.0
    losses, (of_hard,) = score_gradients(map_cfg, batch)
    torch.testing.assert_close(losses, expected)
    largest = of_all.abs().sum(dim=1).topk(12)[1].sort()[0]
    torch.testing.assert_close(of_hard, sparsify_gradient(of_all, largest))
    assert (of_hard != 0).any()


def test_pushes_up_and_down_keep_their_sums_in_each_class():
    gradient = torch.tensor(
        [[3.0, 1, 0, 2], [1, -1, 0, 2], [-2, 0, 0, -1], [-1, 0, 0, -3], [-1, 0, 0, 0]]
    )
    carried = sparsify_gradient(gradient, torch.tensor([0, 2]))
    # Class 0: 4 up and 4 down; class 1: nobody of the chosen pushes down; class 2: nothing.
    expected = [[4.0, 0, 0, 4], [-4, 0, 0, -4]]
    torch.testing.assert_close(carried, torch.tensor(expected))
    one_sided = torch.tensor([[1.0], [2.0]])  # as the regulariser's may be
    assert sparsify_gradient(one_sided, torch.tensor([1])).tolist() == [[3.0]]
    torch.testing.assert_close(sparsify_gradient(gradient, torch.arange(5)), gradient)


def test_detectron2s_own_faster_rcnn_needs_one_line(storage):
    cfg = get_cfg()
    add_maploss_config(cfg)
    cfg.merge_from_list(as_list(SMALLER | RESNET_FPN))
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    plain = build_model(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "OHEMROIHeads"  # the line
    torch.manual_seed(0)
    model = build_model(cfg)
    assert type(model).__name__ == "GeneralizedRCNN"
    batch = make_batch()
    for x in batch:
        del x["proposals"]
        del x["instances"]._fields["gt_difficult"]
    losses = model(batch)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert losses["loss_box_reg"] > 0
    sum(losses.values()).backward()
    with torch.no_grad():
        assert len(model.eval()(batch)) == 3
    # A checkpoint of the plain detector goes on with it: all but the targets' statistics.
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    prefix = "roi_heads.box_predictor.bbox_pred.target_"
    assert set(missing.missing_keys) == {f"{prefix}mean", f"{prefix}std"}
