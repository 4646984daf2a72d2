# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from maploss.layers import MAPLossSettings
from maploss.modeling.gradient_cache import LossInputs

from experiments import minibatch_bias


def make_images(num_images, num_classes, num_windows=12):
    """Each image has one object of one of the classes, and windows around it."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for i in range(num_images):
        corner = 100 * torch.rand(2, generator=generator)
        gt_box = torch.cat([corner, corner + 40])[None]
        boxes = gt_box + 12 * torch.rand(num_windows, 4, generator=generator)
        images.append(
            LossInputs(
                scores=torch.rand(num_windows, num_classes, generator=generator),
                boxes=boxes,
                image_ids=torch.zeros(num_windows, dtype=torch.int64),
                gt_boxes=gt_box,
                gt_classes=torch.tensor([i % num_classes]),
                gt_image_ids=torch.zeros(1, dtype=torch.int64),
                gt_difficult=torch.zeros(1, dtype=torch.bool),
            )
        )
    return images


def test_a_minibatch_of_all_images_has_no_bias_and_one_of_one_image_lacks_classes():
    images, settings = make_images(6, 3), MAPLossSettings(iou_threshs="coco")
    whole = minibatch_bias.measure(images, settings, None)
    assert list(whole) == [
        "AP50:95",
        "AP50:95 of classes present",
        "AP50",
        "AP50 of classes present",
        "AP-pool",
        "classes present",
    ]
    assert 0 < whole["AP50:95"] < whole["AP50"]
    by_class = minibatch_bias.measure(images, MAPLossSettings(iou_threshs="coco", pooled=0.0), None)
    assert "AP-pool" not in by_class
    assert by_class["AP50:95"] == whole["AP50:95"]
    for said in minibatch_bias.minibatches(images, settings, 6, 0, 3):
        assert said == pytest.approx(whole)
    for said in minibatch_bias.minibatches(images, settings, 1, 0, 6):
        assert said["classes present"] == pytest.approx(100 / 3)
        assert said["AP50"] == pytest.approx(said["AP50 of classes present"] / 3)


def test_a_full_memory_ranks_the_images_before_too():
    images, settings = make_images(6, 3), MAPLossSettings()
    whole = minibatch_bias.measure(images, settings, None)
    # With the two minibatches before, one of two images is all six: at the end of each round.
    said = minibatch_bias.minibatches(images, settings, 2, 2, 4)
    assert said[0] == said[3] == pytest.approx(whole)


def test_difficult_objects_alone_leave_no_class_present():
    (image,) = make_images(1, 3)
    said = minibatch_bias.measure(
        [image._replace(gt_difficult=torch.tensor([True]))], MAPLossSettings(), None
    )
    assert said["AP50"] == said["classes present"] == 0
    assert math.isnan(said["AP50 of classes present"])
