# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch
from maploss.layers import ap_steps, nms_ap_steps, nms_record, pseudo_gradient
from maploss.layers.average_precision import AP_TYPES
from maploss.layers.steps.nms_ap_steps import TRANSITIVITIES

from tests.scenes import differing, oracle_steps, random_scene

NUM_SCENES = 210


@pytest.fixture(scope="module")
def oracles():
    """Scenes, AP types and what rerunning NMS and AP at every place gives."""
    scenes = [random_scene(seed) for seed in range(NUM_SCENES)]
    ap_types = [AP_TYPES[seed % 3] for seed in range(NUM_SCENES)]
    return [(s, t, oracle_steps(s, t)) for s, t in zip(scenes, ap_types, strict=True)]


def cosines(oracles, transitivity: str, estimator: str) -> torch.Tensor:
    """Of the pseudo-gradient with the exact one, scene by scene."""
    found = []
    for scene, ap_type, oracle in oracles:
        steps = nms_ap_steps(*scene, ap_type=ap_type, transitivity=transitivity)
        pair = [pseudo_gradient(s, scene.scores, estimator) for s in (steps, oracle)]
        if pair[1].any():
            found.append(torch.cosine_similarity(*pair, dim=0))
    return torch.stack(found)


@pytest.mark.slow
def test_exact_equals_the_oracle_on_every_window(oracles):
    for seed, (scene, ap_type, oracle) in enumerate(oracles):
        steps = nms_ap_steps(*scene, ap_type=ap_type, transitivity="exact")
        assert not differing(steps, oracle).any(), seed
        assert float(steps.value) == pytest.approx(float(oracle.value), abs=1e-12)


@pytest.mark.parametrize("seed", range(1000, 1003))
def test_exact_equals_the_oracle_where_many_windows_crowd(seed):
    # Long chains: a newcomer frees windows that displace others that free others.
    scene = random_scene(seed, num_images=1, num_windows=60)
    steps = nms_ap_steps(*scene, transitivity="exact")
    assert not differing(steps, oracle_steps(scene, "area")).any()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["sde", "mee"])
def test_the_levels_agree_with_the_exact_gradient_as_documented(oracles, estimator):
    mean = {level: float(cosines(oracles, level, estimator).mean()) for level in TRANSITIVITIES}
    assert mean["exact"] == pytest.approx(1.0, abs=1e-9)
    assert mean["label_aware"] > 0.95
    assert 0.65 < mean["paper"] < 0.9
    assert mean["none"] < mean["paper"]


def test_float32_scores_give_the_same_steps():
    for seed in range(1, 12):
        scene = random_scene(seed)
        single = scene._replace(scores=scene.scores.float())
        exact = nms_ap_steps(*single._replace(scores=single.scores.double()))
        steps = nms_ap_steps(*single)
        assert steps.up_at.dtype == torch.float32
        assert not differing(steps, exact).any()


@pytest.mark.parametrize("transitivity", TRANSITIVITIES)
def test_windows_that_nothing_overlaps_have_the_steps_of_their_list(transitivity):
    corner = torch.arange(12).double()[:, None] * 20
    boxes = torch.cat([corner, corner, corner + 10, corner + 10], 1)
    scores = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matched = torch.tensor([0, -1, 1, 1, -2, -1, -1, 2, -1, -1, 3, -1])
    ids = torch.zeros(12, dtype=torch.int64)
    steps = nms_ap_steps(scores, boxes, ids, matched, 5, transitivity=transitivity)
    assert not differing(steps, ap_steps(scores, matched, 5)).any()


def test_a_missed_object_is_gained_at_its_suppressors_score():
    # Two overlapping windows: the better one is on nothing, the other on the only object.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
    ids, matched = torch.zeros(2, dtype=torch.int64), torch.tensor([-1, 0])
    for transitivity in ("exact", "label_aware", "paper"):
        steps = nms_ap_steps(
            torch.tensor([2.0, 1.0]), boxes, ids, matched, 1, transitivity=transitivity
        )
        assert float(steps.value) == 0
        assert (float(steps.up_at[1]), float(steps.up_value[1])) == (2, 1)
        assert int(steps.up_partner[1]) == 0
        assert (float(steps.down_at[0]), float(steps.down_value[0])) == (1, 1)
        assert int(steps.down_partner[0]) == 1


@pytest.mark.parametrize("transitivity", TRANSITIVITIES)
def test_partners_are_the_windows_whose_scores_are_the_places(transitivity):
    for seed in range(10):
        scene = random_scene(seed)
        steps = nms_ap_steps(*scene, transitivity=transitivity)
        for at, partner in ((steps.up_at, steps.up_partner), (steps.down_at, steps.down_partner)):
            found = partner >= 0
            assert torch.equal(found, ~at.isnan())
            assert torch.equal(at[found], scene.scores[partner[found]])


@pytest.mark.parametrize("transitivity", TRANSITIVITIES)
@pytest.mark.parametrize("num_windows", [0, 1, 5])
@pytest.mark.parametrize("num_gt", [0, 1])
def test_identical_windows_and_none_at_all_are_no_special_case(transitivity, num_windows, num_gt):
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(num_windows, 1)
    scores, ids = torch.zeros(num_windows), torch.zeros(num_windows, dtype=torch.int64)
    matched = torch.full((num_windows,), num_gt - 1)
    steps = nms_ap_steps(scores, boxes, ids, matched, num_gt, transitivity=transitivity)
    gradient = pseudo_gradient(steps, scores)
    assert gradient.shape == (num_windows,)
    assert not gradient.any()


def test_a_kept_window_is_no_suppressed_one():
    scene = random_scene(2)
    is_kept = nms_record(scene.boxes, scene.scores, scene.image_ids, 0.3).is_kept
    steps = nms_ap_steps(*scene, transitivity="none")
    assert steps.up_at[~is_kept].isnan().all()
    assert (~steps.up_at[is_kept].isnan()).any()


def test_unknown_transitivity_is_named():
    with pytest.raises(ValueError, match=r"transitivity.*exact, label_aware, paper, none.*'full'"):
        nms_ap_steps(*random_scene(0), transitivity="full")


def test_the_work_may_be_done_in_parts(monkeypatch):
    whole = [nms_ap_steps(*random_scene(seed)) for seed in range(12)]
    for module in ("incremental_nms", "counterfactual_ap", "first_steps"):
        monkeypatch.setattr(sys.modules[f"maploss.layers.steps.{module}"], "_CHUNK", 3)
    for seed, steps in enumerate(whole):
        assert not differing(nms_ap_steps(*random_scene(seed)), steps).any()
