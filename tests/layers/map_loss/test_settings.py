# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools

import numpy as np
import pytest
from maploss.layers import MAPLossSettings

REINFORCE = {"gradient": "reinforce"}


@pytest.mark.parametrize(
    ("field", "error", "says"),
    [
        ({"nms_thresh": -0.1}, ValueError, r"nms_thresh.*\[0, 1\].*-0.1"),
        ({"ap_type": "ap50"}, ValueError, "ap_type.*'ap50'"),
        ({"eps": 0.0}, ValueError, "eps.*above 0.*got 0"),
        ({"gradient": "step"}, ValueError, "gradient.*error_driven, mee, sde, reinforce.*'step'"),
        ({"transitivity": "full"}, ValueError, "transitivity.*'full'"),
        (
            {"transitivity": "object_aware", "gradient": "mee"},
            ValueError,
            "transitivity of gradient 'mee'.*'object_aware'",
        ),
        ({"pairing": "yes", "gradient": "mee"}, ValueError, "pairing.*none, paired.*'yes'"),
        ({"grad_clip": -1.0}, ValueError, "grad_clip.*above 0.*-1"),
        ({"margin": None}, TypeError, "margin.*a number.*None"),
        ({"margin": 0.0}, ValueError, "margin.*1e-06 to 1e.06.*0"),
        ({"eps": None}, TypeError, "eps.*a number.*None"),
        ({"eps": True}, TypeError, "eps.*a number.*True"),
        ({"log_space": "no"}, TypeError, "log_space.*'no'"),
        ({"min_delta": float("nan"), "gradient": "mee"}, ValueError, "min_delta.*above 0.*nan"),
        ({"iou_threshs": []}, ValueError, "iou_threshs.*at least one overlap.*empty"),
        ({"iou_threshs": [0.5, 1.0]}, ValueError, r"iou_threshs.*\[0, 1\).*got 1"),
        ({"iou_threshs": [-0.1]}, ValueError, r"iou_threshs.*\[0, 1\).*got -0.1"),
        ({"iou_threshs": [float("nan")]}, ValueError, r"iou_threshs.*\[0, 1\).*got nan"),
        ({"iou_threshs": [0.5, 0.5]}, ValueError, "iou_threshs.*rising.*0.5 before 0.5"),
        ({"iou_threshs": [0.75, 0.5]}, ValueError, "iou_threshs.*rising.*0.75 before 0.5"),
        ({"iou_threshs": "voc"}, TypeError, "iou_threshs.*list of numbers or 'coco'.*'voc'"),
        ({"iou_threshs": np.array([0.5, 0.75])}, TypeError, "iou_threshs.*a list of numbers"),
        ({"iou_threshs": 0.5}, TypeError, "iou_threshs.*list of numbers or 'coco'.*0.5"),
        ({"iou_threshs": ["0.5"]}, TypeError, "iou_threshs.*a number.*'0.5'"),
        ({"num_samples": 1, **REINFORCE}, ValueError, "num_samples.*2 or more.*got 1"),
        ({"num_samples": 2.0, **REINFORCE}, TypeError, "num_samples.*whole number.*2.0"),
        ({"num_samples": True, **REINFORCE}, TypeError, "num_samples.*whole number.*True"),
        ({"noise": 0.0, **REINFORCE}, ValueError, "noise.*above 0.*got 0"),
        ({"noise": float("inf"), **REINFORCE}, ValueError, "noise.*above 0.*inf"),
        ({"noise": "much", **REINFORCE}, TypeError, "noise.*a number.*'much'"),
        ({"pooled": -0.1}, ValueError, r"pooled.*a number in \[0, 1\], got -0.1"),
        ({"pooled": 1.5}, ValueError, r"pooled.*a number in \[0, 1\], got 1.5"),
        ({"pooled": float("nan")}, ValueError, r"pooled.*a number in \[0, 1\], got nan"),
        ({"pooled": "half"}, TypeError, "pooled.*a number.*'half'"),
        ({"pooled": True}, TypeError, "pooled.*a number.*True"),
        ({"pooled": None}, TypeError, "pooled.*a number.*None"),
        (
            {"box_gradient": "giou"},
            ValueError,
            "box_gradient.*none, error_driven, mee, sde.*'giou'",
        ),
        ({"box_gradient": None}, ValueError, "box_gradient.*none, error_driven, mee, sde.*None"),
        ({"clip": 0.5}, TypeError, "unexpected.*'clip'"),
    ],
    ids=itertools.count(),  # mutmut cannot name a test with brackets
)
def test_a_field_out_of_its_range_is_named_with_what_it_may_be(field, error, says):
    with pytest.raises(error, match=says):
        MAPLossSettings(**field)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_delta": 0.1}, "min_delta.*0.5, its default, with gradient 'error_driven', got 0.1"),
        ({"pairing": "none"}, "pairing.*'paired', its default, with gradient 'error_driven'"),
        ({"margin": 0.5, "gradient": "sde"}, "margin.*1.0, its default, with gradient 'sde'"),
        ({"noise": 0.1}, "noise.*0.5, its default, with gradient 'error_driven', got 0.1"),
        ({"num_samples": 3, "gradient": "mee"}, "num_samples.*2, its default, with gradient 'mee'"),
        ({"margin": 0.5, **REINFORCE}, "margin.*1.0, its default, with gradient 'reinforce'"),
        ({"min_delta": 0.1, **REINFORCE}, "min_delta.*0.5, its default, with gradient 'reinforce'"),
        (
            {"transitivity": "none", **REINFORCE},
            "transitivity.*None, its default, with gradient 'reinforce', got 'none'",
        ),
        # Steps of boxes are in units of IoU.
        ({"min_delta": 0.1, "box_gradient": "mee"}, "min_delta.*0.5, its default, with gradient"),
        ({"margin": 0.5, "gradient": "mee", "box_gradient": "sde"}, "margin.*1.0, its default"),
        ({"eps": 0.5, "log_space": False}, "eps.*1.0, its default, with log_space False"),
    ],
    ids=itertools.count(),  # mutmut cannot name a test with brackets
)
def test_a_field_that_would_have_no_effect_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        MAPLossSettings(**fields)


@pytest.mark.parametrize("gradient", ["mee", "sde", "reinforce"])
def test_the_margin_is_that_of_error_driven_boxes_as_well(gradient):
    settings = MAPLossSettings(gradient=gradient, box_gradient="error_driven", margin=0.5)
    assert settings.margin == 0.5


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        ("error_driven", "object_aware"),
        ("mee", "label_aware"),
        ("sde", "label_aware"),
        ("reinforce", None),
    ],
)
def test_each_gradient_has_a_transitivity_of_its_own_unless_one_is_given(gradient, expected):
    settings = MAPLossSettings(gradient=gradient)
    assert settings.transitivity == expected
    assert settings == MAPLossSettings(gradient=gradient, transitivity=expected)


def test_coco_is_ten_overlaps():
    threshs = MAPLossSettings(iou_threshs="coco").iou_threshs
    assert threshs == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert MAPLossSettings(iou_threshs=list(threshs)) == MAPLossSettings(iou_threshs="coco")


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MAPLossSettings().eps = 0.1
