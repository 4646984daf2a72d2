# SPDX-License-Identifier: Apache-2.0
"""Boxes that learn from the mAP loss: the predictor's loss_map_box against explicit loops."""

import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from maploss.layers import MAPLoss, MAPLossSettings
from maploss.layers.box_iou import paired_iou
from maploss.modeling import MAPOutputLayers
from maploss.modeling.gradient_cache import BoxTargets
from maploss.modeling.output_layers import BoxPredictions

from tests.modeling.test_box_regressor import giou
from tests.modeling.test_roi_heads import (
    EMPTY_BATCHES,
    OBJECT,
    WINDOW,
    make_batch,
    make_input,
    make_model,
)
from tests.reference import map_loss as slow

SIZE = (80, 100)  # height, width
NUM_CLASSES, NUM_WINDOWS = 3, 8
SETTINGS = {"iou_threshs": "coco", "nms_thresh": 0.5, "pooled": 0.3}
MEAN, STD = torch.tensor([0.02, -0.01, 0.03, 0.0]), torch.tensor([0.1, 0.1, 0.2, 0.2])


def make_predictor(is_class_agnostic: bool, nms_on_regressed: bool = True, **settings):
    """One whose loss of boxes weighs 2; deltas are in units of STD around MEAN."""
    predictor = MAPOutputLayers(
        ShapeSpec(channels=5),
        num_classes=NUM_CLASSES,
        map_loss=MAPLoss(MAPLossSettings(**SETTINGS | settings)),
        nms_on_regressed=nms_on_regressed,
        is_class_agnostic=is_class_agnostic,
        box_reg_weight=2.0,
    )
    num_boxes = predictor.bbox_pred.num_boxes
    predictor.bbox_pred.set_targets(MEAN.repeat(num_boxes, 1), STD.repeat(num_boxes, 1))
    return predictor


def make_images(seed: int = 0, num_images: int = 3):
    """Proposals near objects of two classes, of which the third one of each image is difficult."""
    generator = torch.Generator().manual_seed(seed)
    proposals, targets = [], []
    for i in range(num_images):
        corner = torch.rand(4, 2, generator=generator) * torch.tensor([50.0, 30.0])
        gt = torch.cat([corner, corner + 20 + 25 * torch.rand(4, 2, generator=generator)], 1)
        near = gt[torch.arange(NUM_WINDOWS) % 4]
        windows, objects = Instances(SIZE), Instances(SIZE)
        noise = 4 * torch.randn(near.shape, generator=generator)
        windows.proposal_boxes = Boxes(near + noise)
        objects.gt_boxes, objects.gt_classes = Boxes(gt), torch.tensor([0, 1, 0, i % 2])
        objects.gt_difficult = torch.tensor([False, False, True, False])
        proposals.append(windows)
        targets.append(objects)
    return proposals, targets


def make_outputs(predictor, num_windows: int, seed: int = 0) -> BoxPredictions:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_windows, NUM_CLASSES, generator=generator)
    deltas = torch.randn(num_windows, 4 * predictor.bbox_pred.num_boxes, generator=generator)
    return BoxPredictions(scores.requires_grad_(), deltas.requires_grad_())


def slow_box(window, delta):
    """The regressed box of one window, not clipped."""
    x, y, w, h = (d * s + m for d, s, m in zip(delta, STD.tolist(), MEAN.tolist(), strict=True))
    width, height = window[2] - window[0], window[3] - window[1]
    x, y = (window[0] + window[2]) / 2 + x * width, (window[1] + window[3]) / 2 + y * height
    w, h = width * math.exp(w) / 2, height * math.exp(h) / 2
    return x - w, y - h, x + w, y + h


def slow_boxes(deltas: np.ndarray, proposals) -> np.ndarray:
    """(R, K, 4) not clipped; without box regression by class all classes have one."""
    windows = torch.cat([x.proposal_boxes.tensor for x in proposals]).tolist()
    shaped = deltas.reshape(len(windows), -1, 4)
    shaped = np.broadcast_to(shaped, (len(windows), NUM_CLASSES, 4))
    return np.array(
        [[slow_box(w, d) for d in own.tolist()] for w, own in zip(windows, shaped, strict=True)]
    )


def as_minibatch(scores, boxes: np.ndarray, proposals, targets) -> dict:
    """What the loss takes, boxes clipped to their images."""
    height, width = SIZE
    ids = torch.arange(len(proposals))
    return {
        "scores": scores.detach(),
        "boxes": torch.from_numpy(boxes.clip(0, [width, height, width, height])).float(),
        "image_ids": ids.repeat_interleave(torch.tensor([len(x) for x in proposals])),
        "gt_boxes": torch.cat([x.gt_boxes.tensor for x in targets]),
        "gt_classes": torch.cat([x.gt_classes for x in targets]),
        "gt_image_ids": ids.repeat_interleave(torch.tensor([len(x) for x in targets])),
        "gt_difficult": torch.cat([x.gt_difficult for x in targets]),
    }


class SlowBoxLoss:
    """The sum over windows and classes by loops; weights and objects are those of the start."""

    def __init__(self, outputs, proposals, targets, box_gradient):
        self.proposals = proposals
        boxes = slow_boxes(outputs.deltas.detach().double().numpy(), proposals)
        batch = as_minibatch(outputs.scores, boxes, proposals, targets)
        arrays = {name: value.numpy() for name, value in batch.items()}
        coco = MAPLossSettings(iou_threshs="coco").iou_threshs
        settings = SETTINGS | {"iou_threshs": coco, "box_gradient": box_gradient}
        self.weights = slow.map_loss(batch, settings.pop("iou_threshs"), **settings).by_overlap
        best = [slow.best_objects(arrays["boxes"][:, c], c, arrays) for c in range(NUM_CLASSES)]
        self.objects = np.array([[i for i, _ in column] for column in best]).T
        self.gt_boxes = arrays["gt_boxes"].astype(float)

    def __call__(self, deltas: np.ndarray) -> float:
        boxes = slow_boxes(deltas, self.proposals)
        return 2.0 * sum(
            self.weights[r, c] * (1 - giou(boxes[r, c], self.gt_boxes[self.objects[r, c]]))
            for r, c in zip(*self.weights.nonzero(), strict=True)
        )

    def gradient(self, deltas: np.ndarray, step: float = 1e-5) -> np.ndarray:
        result = np.zeros_like(deltas)
        for i in range(deltas.size):
            up, down = deltas.copy(), deltas.copy()
            up.flat[i] += step
            down.flat[i] -= step
            result.flat[i] = (self(up) - self(down)) / (2 * step)
        return result


@pytest.mark.parametrize("box_gradient", ["error_driven", "mee", "sde"])
@pytest.mark.parametrize("is_class_agnostic", [False, True])
def test_value_and_gradient_are_those_of_a_loop_over_windows_and_classes(
    storage, is_class_agnostic, box_gradient
):
    predictor = make_predictor(is_class_agnostic, box_gradient=box_gradient)
    proposals, targets = make_images()
    outputs = make_outputs(predictor, 3 * NUM_WINDOWS)
    losses = predictor.losses(outputs, proposals, targets)
    assert set(losses) == {"loss_map", "loss_score_reg", "loss_map_box"}
    loss = SlowBoxLoss(outputs, proposals, targets, box_gradient)
    deltas = outputs.deltas.detach().double().numpy()
    assert losses["loss_map_box"].item() == pytest.approx(loss(deltas), rel=1e-4)
    assert losses["loss_map_box"].item() > 0.01
    losses["loss_map_box"].backward()
    expected = loss.gradient(deltas)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(outputs.deltas.grad.numpy(), expected, rtol=1e-3, atol=1e-5)
    assert outputs.scores.grad is None  # what boxes are worth is constant to their loss


@pytest.mark.parametrize("is_class_agnostic", [False, True])
def test_steps_against_the_gradient_raise_overlaps_and_map(storage, is_class_agnostic):
    predictor = make_predictor(is_class_agnostic, box_gradient="error_driven", pooled=0.0)
    for seed in range(4):
        proposals, targets = make_images(seed)
        scores, deltas = make_outputs(predictor, 3 * NUM_WINDOWS, seed)
        deltas = deltas.detach()
        ious, maps = [], []
        for step in range(31):
            outputs = BoxPredictions(scores.detach(), deltas.requires_grad_())
            inputs = predictor.loss_inputs(outputs, proposals, targets)
            cache = predictor.rank(inputs)
            maps.append(storage.latest()["map/minibatch_map"][0])
            is_pulled = cache.box_targets.weights > 0
            if step == 0:
                start = is_pulled, inputs.gt_boxes[cache.box_targets.objects[is_pulled]]
            boxes = predictor.boxes(outputs, proposals).detach()
            boxes = boxes if boxes.dim() == 3 else boxes[:, None].expand(-1, NUM_CLASSES, 4)
            ious.append(float(paired_iou(boxes[start[0]], start[1]).mean()))
            loss = predictor.map_box_loss(outputs, proposals, cache.box_targets)
            (gradient,) = torch.autograd.grad(loss, deltas)
            deltas = deltas.detach() - 0.1 / float(gradient.abs().max()) * gradient
        # One step, and many.
        assert ious[1] > ious[0] + 1e-4
        assert ious[-1] > ious[0] + 0.02
        assert maps[-1] > maps[0] + 0.02


def test_windows_over_difficult_objects_do_not_learn_the_boxes_of_these(storage):
    predictor = make_predictor(False, box_gradient="error_driven")
    proposals, targets = make_images()
    outputs = make_outputs(predictor, 3 * NUM_WINDOWS)
    is_difficult = torch.zeros(NUM_WINDOWS, dtype=torch.bool)
    is_difficult[2::4] = True  # over the third object, as class 0
    predictor.losses(outputs, proposals, targets)["loss_map_box"].backward()
    gradient = outputs.deltas.grad.view(3, NUM_WINDOWS, NUM_CLASSES, 4)[:, is_difficult, 0]
    for x in targets:
        x.gt_difficult[:] = False
    other = make_outputs(predictor, 3 * NUM_WINDOWS)
    predictor.losses(other, proposals, targets)["loss_map_box"].backward()
    pulled = other.deltas.grad.view(3, NUM_WINDOWS, NUM_CLASSES, 4)[:, is_difficult, 0]
    # Neighbours of the object may be nearer.
    assert (gradient == 0).all(-1).sum() > (pulled == 0).all(-1).sum()
    assert (gradient == 0).all(-1).float().mean() > 0.5


@pytest.fixture
def box_cfg(tiny_cfg):
    """The tiny detector, whose boxes learn from the mAP loss."""
    tiny_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = "regressed"
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    tiny_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 0
    return tiny_cfg


@pytest.mark.parametrize("field", ["gt_difficult", "gt_is_crowd"])
def test_boxes_are_not_pulled_to_a_difficult_object_or_a_crowd(box_cfg, field, storage):
    model = make_model(box_cfg, "MAPROIHeads")
    other = [35.0, 3.0, 60.0, 40.0]
    losses = []
    for flag in (0, 1):
        inputs = make_input([WINDOW], [OBJECT, other], [1, 1])
        inputs["instances"].set(field, torch.tensor([flag, 0]))
        losses.append(model([inputs])["loss_map_box"])
    assert losses[0] > 0.001
    assert losses[1] == 0


@pytest.mark.parametrize("box_gradient", ["error_driven", "mee", "sde"])
@pytest.mark.parametrize("is_class_agnostic", [False, True])
@pytest.mark.parametrize("case", EMPTY_BATCHES)
def test_empty_input_gives_finite_losses_that_touch_every_parameter(
    box_cfg, case, is_class_agnostic, box_gradient, storage
):
    box_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = is_class_agnostic
    box_cfg.MODEL.MAP_LOSS.BOX_REG.GRADIENT = box_gradient
    box_cfg.MODEL.MAP_LOSS.POOLED = 0.5
    model = make_model(box_cfg, "MAPROIHeads")
    losses = model(EMPTY_BATCHES[case])
    assert set(losses) == {"loss_map", "loss_score_reg", "loss_map_box"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert torch.isfinite(param.grad).all(), name
    learns = case in ("an image without windows", "an image without objects", "identical windows")
    assert (losses["loss_map_box"] > 0) == learns


@pytest.mark.parametrize("box_reg", ["windows", "regressed"])
def test_a_step_in_mixed_precision_teaches_boxes(box_cfg, box_reg, storage):
    box_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = box_reg
    model = make_model(box_cfg, "MAPROIHeads")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_batch())
    assert all(x.dtype == torch.float32 and torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(x.grad).all() for x in model.parameters())
    assert model.roi_heads.box_predictor.bbox_pred.weight.grad.abs().max() > 1e-5


def targets_for(objects: torch.Tensor) -> BoxTargets:
    """Each window's box of class 0 is to be that object."""
    weights = torch.zeros(len(objects), NUM_CLASSES, dtype=torch.float64)
    weights[:, 0] = 1.0
    inds = torch.arange(len(objects))[:, None].expand(-1, NUM_CLASSES)
    return BoxTargets(weights, inds, objects)


@pytest.mark.parametrize("is_class_agnostic", [False, True])
def test_boxes_and_objects_of_no_area_have_a_finite_loss_and_gradient(is_class_agnostic):
    predictor = make_predictor(is_class_agnostic)
    square = [10.0, 10, 30, 30]
    # A line, a point, the same line and point as the object, and one far away.
    windows = [[10.0, 10, 10, 30], [10, 10, 10, 10], [10, 10, 10, 30], [10, 10, 10, 10], square]
    objects = [square, square, [10, 10, 10, 30], [10, 10, 10, 10], [90, 70, 90, 70]]
    proposals = Instances(SIZE)
    proposals.proposal_boxes = Boxes(torch.tensor(windows))
    outputs = make_outputs(predictor, len(windows))
    outputs = outputs._replace(deltas=outputs.deltas.detach().zero_().requires_grad_())
    loss = predictor.map_box_loss(outputs, [proposals], targets_for(torch.tensor(objects)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(outputs.deltas.grad).all()
    assert outputs.deltas.grad[4].abs().max() > 0
    # From 1 where nothing is empty between them to 2.
    assert 2 * len(windows) <= loss <= 4 * len(windows)


def test_windows_and_objects_of_no_area_train_nothing(box_cfg, storage):
    model = make_model(box_cfg, "MAPROIHeads")
    line = [10.0, 10.0, 10.0, 30.0]
    inputs = make_input([line, WINDOW, line], [line, OBJECT, line], [1, 1, 2])
    losses = model([inputs])
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    assert all(torch.isfinite(x.grad).all() for x in model.parameters())
    assert losses["loss_map_box"] > 0


def test_a_box_that_is_not_finite_makes_the_loss_nan_and_no_assertion():
    predictor = make_predictor(False)
    (proposals, *_), _ = make_images()
    outputs = make_outputs(predictor, NUM_WINDOWS)
    deltas = outputs.deltas.detach()
    deltas[3, 0] = float("nan")
    outputs = outputs._replace(deltas=deltas.requires_grad_())
    targets = targets_for(proposals.proposal_boxes.tensor)
    loss = predictor.map_box_loss(outputs, [proposals], targets)
    assert loss.isnan()
    # What is not asked for may be anything.
    targets.weights[3] = 0
    assert torch.isfinite(predictor.map_box_loss(outputs, [proposals], targets))


@pytest.mark.parametrize("box_gradient", ["mee", "sde"])
def test_steps_in_the_overlap_of_windows_that_no_regression_moves_are_refused(
    box_cfg, box_gradient
):
    keys = box_cfg.MODEL.MAP_LOSS
    keys.BOX_REG.BOXES, keys.BOX_REG.GRADIENT = "windows", box_gradient
    message = (
        "MODEL.MAP_LOSS.BOX_REG.GRADIENT: expected error_driven or none with BOXES 'windows' .*, "
        f"got '{box_gradient}'"
    )
    with pytest.raises(ValueError, match=message):
        make_model(box_cfg, "MAPROIHeads")
    keys.BOX_REG.GRADIENT = "error_driven"
    make_model(box_cfg, "MAPROIHeads")
    # It is not chosen where boxes are not regressed.
    keys.BOX_REG.BOXES, keys.BOX_REG.GRADIENT = "none", box_gradient
    make_model(box_cfg, "MAPROIHeads")


@pytest.mark.parametrize("box_reg", ["windows", "regressed"])
def test_few_hard_windows_carry_what_the_boxes_of_all_are_worth(box_cfg, box_reg, storage):
    box_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = box_reg
    box_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    box_cfg.MODEL.OHEM.NMS_THRESH = 1.0
    batch, weights = make_batch(), {}
    for windows, num in (("all", 128), ("hard", 4)):
        box_cfg.MODEL.MAP_LOSS.WINDOWS = windows
        box_cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = num
        model = make_model(box_cfg, "MAPROIHeads")
        predictor, box_loss = model.roi_heads.box_predictor, MAPOutputLayers.map_box_loss

        def watch(outputs, own, targets, key=windows, of=predictor, box_loss=box_loss):
            weights[key] = targets.weights
            return box_loss(of, outputs, own, targets)

        predictor.map_box_loss = watch
        losses = model(batch)
        assert losses["loss_map_box"] > 0
    assert len(weights["hard"]) == 12
    assert len(weights["all"]) > 80
    assert float(weights["hard"].sum()) == pytest.approx(float(weights["all"].sum()))
