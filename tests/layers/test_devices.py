# SPDX-License-Identifier: Apache-2.0
"""
Nothing is made on another device than the inputs', shown without a GPU.

The default device is "meta", whose tensors hold no numbers: one that is made without saying where
cannot be computed with. torchvision's batched_nms makes such a one, so `hard_examples` is left out.
"""

from collections.abc import Callable

import pytest
import torch
from maploss import layers
from maploss.layers import DetectionMemory, MAPLossSettings, map_loss
from maploss.layers.average_precision import AP_TYPES
from maploss.layers.map_loss.settings import BOX_GRADIENTS, GRADIENTS
from maploss.layers.ranking_losses.parameterized_ap_loss import FUNCTIONS
from maploss.layers.steps.nms_ap_steps import TRANSITIVITIES
from maploss.layers.steps.pseudo_gradient import ESTIMATORS

from tests.scenes import random_scene

SCENE = random_scene(0)
SCORES, BOXES, IMAGE_IDS, MATCHED, NUM_GT = SCENE
LABELS = (MATCHED >= 0).long() - (MATCHED == -2).long()
QUALITY = SCORES[MATCHED >= 0].sigmoid()
POINTS = layers.control_points(torch.full((len(FUNCTIONS), 8), 0.3))
GT_BOXES, GT_IMAGE_IDS = BOXES[::5], IMAGE_IDS[::5]
GT_CLASSES = torch.arange(len(GT_BOXES)) % 3
IS_DIFFICULT = GT_CLASSES.bool() & (torch.arange(len(GT_BOXES)) % 4 == 0)


def map_loss_and_gradient(settings: MAPLossSettings, boxes: torch.Tensor, memory_size: int):
    """Of the last of two turns, the mAP loss of three classes."""
    memory = DetectionMemory(memory_size) if memory_size else None
    torch.manual_seed(0)  # of gradient "reinforce"
    for _ in range(2):
        scores = torch.stack([SCORES, -SCORES, SCORES.square()], 1).requires_grad_()
        loss, stats = map_loss(
            scores,
            boxes,
            IMAGE_IDS,
            GT_BOXES,
            GT_CLASSES,
            GT_IMAGE_IDS,
            IS_DIFFICULT,
            settings=settings,
            memory=memory,
        )
    (gradient,) = torch.autograd.grad(loss, scores)
    listed = stats.class_detections(0)
    return (loss.detach(), *stats[:-1], gradient, listed.scores, listed.matched_gt)


def gradient_of(loss: Callable, *args, **kwargs) -> tuple:
    scores = SCORES.clone().requires_grad_()
    value = loss(scores, *args, **kwargs)
    return value.detach(), *torch.autograd.grad(value, scores)


def steps_and_gradients(steps: layers.Steps) -> tuple:
    return (*steps, *(layers.pseudo_gradient(steps, SCORES, x) for x in ESTIMATORS))


CALLS: dict[str, Callable] = {
    "match_detections": lambda: layers.match_detections(
        BOXES, IMAGE_IDS, GT_BOXES, GT_IMAGE_IDS, IS_DIFFICULT
    ),
    "nms_record": lambda: layers.nms_record(BOXES, SCORES, IMAGE_IDS, 0.3),
    "precision_recall": lambda: layers.precision_recall(SCORES, MATCHED, NUM_GT),
    "box_voting": lambda: layers.box_voting(BOXES, BOXES.flip(0), SCORES),
    "truncated_svd": lambda: layers.truncated_svd(BOXES, 2),
    "dcg_steps": lambda: layers.dcg_steps(SCORES, SCORES.exp(), 5),
    "exact_steps": lambda: layers.exact_steps(lambda x: layers.dcg(x, QUALITY[:6]), SCORES[:6]),
    "error_driven_gradient": lambda: layers.error_driven_gradient(SCORES, MATCHED, NUM_GT),
    "ap_loss": lambda: gradient_of(layers.ap_loss, LABELS),
    "alrp_loss": lambda: gradient_of(layers.alrp_loss, LABELS, QUALITY),
    "rank_sort_loss": lambda: gradient_of(layers.rank_sort_loss, LABELS, QUALITY),
    "rank_sort_loss in buckets": lambda: gradient_of(
        layers.rank_sort_loss, LABELS, QUALITY, bucketed=True
    ),
    "smooth_ap_loss": lambda: gradient_of(layers.smooth_ap_loss, LABELS),
    "direct_ap_loss": lambda: gradient_of(layers.direct_ap_loss, LABELS, epsilon=0.1),
}
for name in AP_TYPES:
    CALLS[f"average_precision {name}"] = lambda ap_type=name: layers.average_precision(
        SCORES, MATCHED, NUM_GT, ap_type
    )
    CALLS[f"ap_steps {name}"] = lambda ap_type=name: steps_and_gradients(
        layers.ap_steps(SCORES, MATCHED, NUM_GT, ap_type)
    )
    CALLS[f"map_loss {name}"] = lambda ap_type=name: map_loss_and_gradient(
        MAPLossSettings(iou_threshs="coco", ap_type=ap_type), BOXES, 2
    )
for name in TRANSITIVITIES:
    CALLS[f"nms_ap_steps {name}"] = lambda transitivity=name: steps_and_gradients(
        layers.nms_ap_steps(SCORES, BOXES, IMAGE_IDS, MATCHED, NUM_GT, transitivity=transitivity)
    )
    CALLS[f"map_loss {name}"] = lambda transitivity=name: map_loss_and_gradient(
        MAPLossSettings(gradient="mee", transitivity=transitivity), BOXES, 0
    )
for name in GRADIENTS:
    CALLS[f"map_loss {name}, a box for each class"] = lambda gradient=name: map_loss_and_gradient(
        MAPLossSettings(gradient=gradient, grad_clip=0.1), BOXES[:, None].repeat(1, 3, 1), 0
    )
for name in BOX_GRADIENTS:
    CALLS[f"map_loss, pooled, boxes by {name}"] = lambda box_gradient=name: map_loss_and_gradient(
        MAPLossSettings(iou_threshs="coco", box_gradient=box_gradient, pooled=0.5), BOXES, 2
    )
    CALLS[f"map_loss by steps, pooled, boxes by {name}"] = lambda box_gradient=name: (
        map_loss_and_gradient(
            MAPLossSettings(gradient="mee", box_gradient=box_gradient, pooled=0.5),
            BOXES[:, None].repeat(1, 3, 1),
            0,
        )
    )
for name in ("searched", "sigmoid", "square"):
    CALLS[f"parameterized_ap_loss {name}"] = lambda form=name: gradient_of(
        layers.parameterized_ap_loss, LABELS, QUALITY, points=POINTS, form=form
    )


@pytest.mark.parametrize("name", CALLS)
def test_a_layer_makes_its_tensors_where_its_inputs_are(name):
    expected = CALLS[name]()
    with torch.device("meta"):
        found = CALLS[name]()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
