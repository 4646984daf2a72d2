# SPDX-License-Identifier: Apache-2.0
"""How many calls of this project lie between a training step and its loss."""

import sys
from pathlib import Path

import maploss
import pytest
from maploss.modeling.ranking_loss import RANKING_LOSSES

from tests.modeling.test_roi_heads import make_batch, make_model

PACKAGE = str(Path(maploss.__file__).parent)
TO_THE_LOSS = [
    "MAPRCNN.forward",
    "MAPROIHeads.forward",
    "MAPOutputLayers.losses",
    "MAPLoss.forward",
    "map_loss",
]


def journeys(call, *names):
    """Of functions of the package, by name: the calls of the package around the first call."""
    found = {}

    def look(frame, event, arg):
        name = frame.f_code.co_name
        if event == "call" and name in names and name not in found and is_own(frame):
            found[name] = [called(x) for x in stack(frame) if is_own(x)]

    def stack(frame):
        return [*(stack(frame.f_back) if frame.f_back else []), frame]

    def is_own(frame):
        return frame.f_code.co_filename.startswith(PACKAGE)

    def called(frame):
        owner = frame.f_locals.get("self")
        name = frame.f_code.co_name
        return name if owner is None else f"{type(owner).__name__}.{name}"

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize(
    ("gradient", "formula"),
    [("error_driven", "gradient_of_errors"), ("mee", "ranked_pseudo_gradient")],
)
def test_the_loss_is_five_calls_away_and_the_formula_of_its_gradient_eight(
    tiny_cfg, storage, gradient, formula
):
    tiny_cfg.MODEL.MAP_LOSS.GRADIENT = gradient
    model, batch = make_model(tiny_cfg, "MAPROIHeads"), make_batch()
    found = journeys(lambda: model(batch), "map_loss", formula)
    assert found["map_loss"] == TO_THE_LOSS
    assert found[formula][: len(TO_THE_LOSS)] == TO_THE_LOSS
    assert len(found[formula]) <= 8
    assert not [name for name in found[formula] if "<" in name]  # no lambda, no comprehension


def test_the_gradient_of_hard_proposals_is_no_farther(tiny_cfg, storage):
    tiny_cfg.MODEL.MAP_LOSS.WINDOWS = "hard"
    model, batch = make_model(tiny_cfg, "MAPROIHeads"), make_batch()
    found = journeys(lambda: model(batch), "map_loss", "gradient_of_errors")
    assert len(found["map_loss"]) == 5
    assert len(found["gradient_of_errors"]) == 8


@pytest.mark.parametrize("name", RANKING_LOSSES)
def test_a_ranking_loss_is_six_calls_away_and_its_gradient_seven(tiny_cfg, storage, name):
    tiny_cfg.MODEL.RANKING_LOSS.NAME = name
    model, batch = make_model(tiny_cfg, "RankingROIHeads"), make_batch()
    found = journeys(lambda: model(batch), "attach_gradient")["attach_gradient"]
    assert len(found) <= 7  # where the value is made, and one call to attach the gradient
    assert not [name for name in found if "<" in name]


def test_nothing_calls_back_from_the_predictor_into_the_heads(tiny_cfg):
    model, batch = make_model(tiny_cfg, "MAPROIHeads").eval(), make_batch()
    found = journeys(lambda: model(batch), "score_proposals", "detections")
    heads = ["MAPRCNN.forward", "MAPRCNN.inference", "MAPROIHeads.forward", "MAPROIHeads.inference"]
    assert found["score_proposals"] == [*heads, "MAPROIHeads.score_proposals"]
    assert found["detections"][:5] == [*heads, "MAPOutputLayers.inference"]
