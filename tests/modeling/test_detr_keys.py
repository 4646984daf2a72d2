# SPDX-License-Identifier: Apache-2.0
"""Each config key of Deformable DETR acts: what comes of the detector changes with it."""

import pytest
import torch
from maploss.layers import control_points

from tests.modeling.test_ranking_detr import DETR, FPN, MAP, build, make_inputs

pytest.importorskip("transformers", minversion="5.8")

PART = "MODEL.RANKING_LOSS.PARAMETERIZED_AP.DEFORMABLE_DETR."
PARAMETERIZED_AP = {"MODEL.RANKING_LOSS.NAME": "parameterized_ap"}
POINTS = control_points(torch.linspace(0.1, 0.9, 40, dtype=torch.float64).reshape(5, 8)).tolist()
# A value that changes what comes of the tiny detector, with these settings.
ACTING = {
    DETR + "LOSS": ("map", {key: value for key, value in MAP.items() if key != DETR + "LOSS"}),
    DETR + "IN_FEATURES": (["p5", "p4"], FPN),
    DETR + "NUM_FEATURE_LEVELS": (3, {}),
    DETR + "NUM_QUERIES": (8, {}),
    DETR + "D_MODEL": (64, {}),
    DETR + "FFN_DIM": (20, {}),
    DETR + "NUM_HEADS": (2, {}),
    DETR + "NUM_POINTS": (3, {}),
    DETR + "ENCODER_LAYERS": (2, {}),
    DETR + "DECODER_LAYERS": (3, {}),
    DETR + "DROPOUT": (0.5, {}),
    DETR + "CLASS_WEIGHT": (3.0, {}),
    DETR + "L1_WEIGHT": (3.0, {}),
    DETR + "GIOU_WEIGHT": (3.0, {}),
    PART + "POINTS": (POINTS, PARAMETERIZED_AP),
    PART + "GRADIENT_SCALE": (3.0, PARAMETERIZED_AP),
}


def outcome(settings):
    """Of a detector: shapes of its parameters, its losses, and the gradients of its parameters."""
    model = build(settings)
    inputs = make_inputs((64, 96))
    torch.manual_seed(0)
    losses = model(inputs)
    sum(losses.values()).backward()
    found = [f"{name} {tuple(x.shape)}" for name, x in model.state_dict().items()]
    found += [f"{name} {value:.5f}" for name, value in losses.items()]
    gradients = [x.grad for x in model.parameters() if x.grad is not None]
    return [*found, *(f"gradient {x.norm():.3g}" for x in gradients)]


@pytest.mark.parametrize("key", ACTING)
def test_a_key_changes_what_comes_of_the_detector(storage, key):
    value, before = ACTING[key]
    assert outcome(before) == outcome(before)
    assert outcome(before) != outcome(before | {key: value})
