# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from tests.modeling.test_roi_heads import make_batch, make_model


def make_input(**changes):
    proposals = Instances((32, 48))
    proposals.proposal_boxes = Boxes(torch.tensor([[2.0, 2, 20, 20], [4.0, 4, 44, 30]]))
    instances = Instances((32, 48))
    instances.gt_boxes = Boxes(torch.tensor([[2.0, 2, 20, 22]]))
    instances.gt_classes = torch.tensor([1])
    inputs = {
        "image": torch.zeros(3, 32, 48),
        "file_name": "some/image.png",
        "height": 64,
        "width": 96,
        "proposals": proposals,
        "instances": instances,
    }
    return {key: value for key, value in (inputs | changes).items() if value is not None}


def test_detections_are_windows_in_the_size_of_the_original_image(tiny_cfg):
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():
        (output,) = model([make_input(instances=None)])
    detections = output["instances"]
    assert detections.image_size == (64, 96)
    found = {tuple(box) for box in detections.pred_boxes.tensor.tolist()}
    assert found == {(4.0, 4.0, 40.0, 40.0), (8.0, 8.0, 88.0, 60.0)}
    assert len(detections) == 8  # 2 windows, 4 classes, no threshold, little overlap
    assert (detections.scores[:-1] >= detections.scores[1:]).all()


@pytest.mark.parametrize("is_training", [True, False])
def test_missing_proposals_are_an_error_that_names_the_image(tiny_cfg, storage, is_training):
    model = build_model(tiny_cfg).train(is_training)
    with pytest.raises(ValueError, match=r"some/image\.png.*'proposals'"):
        model([make_input(file_name="other.png"), make_input(proposals=None)])


def test_missing_annotations_are_an_error_in_training(tiny_cfg, storage):
    with pytest.raises(ValueError, match=r"some/image\.png.*'instances'"):
        build_model(tiny_cfg)([make_input(instances=None)])


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_windows_that_are_not_finite_name_the_image(tiny_cfg, storage, is_training, value):
    inputs = make_input()
    inputs["proposals"].proposal_boxes.tensor[1, 2] = value
    model = build_model(tiny_cfg).train(is_training)
    with pytest.raises(ValueError, match=rf"some/image\.png: expected finite .*{value}"):
        model([make_input(file_name="other.png"), inputs])


@pytest.mark.parametrize("name", ["MAPROIHeads", "SoftmaxROIHeads"])
@pytest.mark.parametrize("class_id", [-1, 4])
def test_an_object_of_an_unknown_class_names_the_image(tiny_cfg, storage, name, class_id):
    tiny_cfg.MODEL.ROI_HEADS.NAME = name
    inputs = make_input()
    inputs["instances"].gt_classes[0] = class_id
    message = rf"some/image\.png: expected objects of classes 0 to 3, got \[{class_id}\]"
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg)([make_input(file_name="other.png"), inputs])


def test_objects_are_not_difficult_unless_the_mapper_says_so(tiny_cfg, storage):
    inputs = make_input()
    assert torch.isfinite(sum(build_model(tiny_cfg)([inputs]).values()))
    assert not inputs["instances"].has("gt_difficult")


def losses_of(cfg, name, inputs):
    cfg.MODEL.META_ARCHITECTURE = name
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.manual_seed(1)
    with EventStorage(), torch.no_grad():
        return model(inputs)


@pytest.mark.parametrize("proposals", ["PrecomputedProposals", "RPN"])
@pytest.mark.parametrize("heads", ["MAPROIHeads", "SoftmaxROIHeads"])
def test_the_losses_are_those_of_detectron2s_own_meta_architecture(
    fpn_cfg, make_inputs, proposals, heads
):
    fpn_cfg.MODEL.PROPOSAL_GENERATOR.NAME = proposals
    fpn_cfg.MODEL.ROI_HEADS.NAME = heads
    inputs = make_inputs()
    expected = losses_of(fpn_cfg, "GeneralizedRCNN", inputs)
    losses = losses_of(fpn_cfg, "MAPRCNN", inputs)
    torch.testing.assert_close(losses, expected)
    assert len(losses) >= (4 if proposals == "RPN" else 2)


def test_what_the_loss_ranks_is_what_it_ranks_in_the_pass_that_trains(tiny_cfg, storage):
    tiny_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 6
    tiny_cfg.MODEL.ROI_BOX_HEAD.NAME = "FullyConnectedHead"  # with dropout
    tiny_cfg.MODEL.ROI_BOX_HEAD.FULLY_CONNECTED.DIMS = [16]
    model, batch, seen = make_model(tiny_cfg, "MAPROIHeads"), make_batch(), []
    loss = model.roi_heads.box_predictor.map_loss
    loss.register_forward_pre_hook(lambda module, args: seen.append(args))
    torch.manual_seed(0)
    inputs = model.loss_inputs(batch)
    assert not seen
    torch.manual_seed(0)
    model(batch)
    for value, expected in zip(inputs, seen[0], strict=True):
        assert torch.equal(value, expected)
    torch.manual_seed(1)
    assert not torch.equal(model.loss_inputs(batch).scores, inputs.scores)


def test_scores_that_are_not_finite_name_the_image_before_they_are_ranked_too(tiny_cfg, storage):
    tiny_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    model = make_model(tiny_cfg, "MAPROIHeads")
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias, float("inf"))
    with pytest.raises(FloatingPointError, match=r"^image x\.png: window \[.* sum of scores, got"):
        model.loss_inputs(make_batch())


def test_training_is_pictured_where_the_config_asks_for_it(fpn_cfg, make_inputs):
    fpn_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    for period, expected in ((0, 0), (1, 1)):
        fpn_cfg.VIS_PERIOD = period
        model = build_model(fpn_cfg)
        with EventStorage() as storage:
            model(make_inputs())
        assert len(storage._vis_data) == expected
