# SPDX-License-Identifier: Apache-2.0
"""What the mAP predictor puts into the event storage."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from maploss.layers import MAPLossStats
from maploss.modeling.gradient_cache import LossInputs
from torch.utils._python_dispatch import TorchDispatchMode

from tests.modeling.test_roi_heads import OBJECT, WINDOW, make_batch, make_input, make_model


def latest(storage):
    return {name: value for name, (value, _) in storage.latest().items()}


def test_a_class_that_is_not_in_the_minibatch_keeps_its_last_ap_and_a_new_one_has_none(tiny_cfg):
    model = make_model(tiny_cfg, "MAPROIHeads")
    model.roi_heads.box_predictor.class_names = ["a", "b", "c", "d"]
    batches = [[make_input([WINDOW], [OBJECT], [1])], [make_input([WINDOW], [OBJECT], [3])]]
    found = []
    with EventStorage() as storage:
        for batch in batches:
            model(batch)
            storage.step()
            found.append({k: v for k, v in storage.latest().items() if "per_class" in k})
    assert found[0] == {"map_per_class/b": (1.0, 0)}
    assert found[1] == {"map_per_class/b": (1.0, 1), "map_per_class/d": (1.0, 1)}


def test_the_scalars_are_those_of_the_loss(tiny_cfg, storage):
    tiny_cfg.MODEL.MAP_LOSS.GRAD_CLIP = 0.01
    model = make_model(tiny_cfg, "MAPROIHeads")
    seen = []
    loss = model.roi_heads.box_predictor.map_loss
    loss.register_forward_hook(lambda module, args, output: seen.append((args, output[1])))
    model(make_batch())
    ((args, stats),) = seen
    scores, gradient = LossInputs(*args).scores.detach(), stats.gradient.double()
    expected = {
        "map/minibatch_map": stats.ap_per_class.nansum() / 4,
        "map/gradient_up": -gradient.clamp(max=0).sum(),
        "map/gradient_down": gradient.clamp(min=0).sum(),
        "map/nonzero_share": (gradient != 0).double().mean(),
        "map/clipped_share": (gradient.abs() >= 0.01 - 1e-8).double().mean(),
        "map/largest_score": scores.abs().max(),
    }
    found = latest(storage)
    assert 0 < found["map/clipped_share"] < found["map/nonzero_share"] < 1
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5), name


class Scalars(TorchDispatchMode):
    """Counts the numbers that leave the device alone."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_watching_takes_no_number_alone_from_the_device(tiny_cfg, storage):
    predictor = make_model(tiny_cfg, "MAPROIHeads").roi_heads.box_predictor
    scores, ids = torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    boxes = torch.tensor([WINDOW, OBJECT, [40.0, 4, 60, 30]])
    _, stats = predictor.map_loss(scores, boxes, ids, boxes[:1], ids[:1], ids[:1])
    with Scalars() as counted:
        predictor._watch(scores, stats)
    assert counted.count == 0
    assert "map/largest_score" in storage.latest()
    with Scalars() as counted:
        float(scores.sum())
    assert counted.count == 1


@pytest.mark.skipif(not hasattr(MAPLossStats, "ap"), reason="the loss has one overlap")
def test_of_several_overlaps_the_map_of_each_is_watched(tiny_cfg):
    found = []
    for overlaps in ([0.5], [0.75], [0.5, 0.75]):
        tiny_cfg.MODEL.MAP_LOSS.IOU_THRESHS = overlaps
        with EventStorage() as storage:
            make_model(tiny_cfg, "MAPROIHeads")(make_batch())
            found.append(latest(storage))
    one, other, both = found
    assert not [name for name in one if name.startswith("map_per_overlap")]
    assert both["map_per_overlap/0.5"] == pytest.approx(one["map/minibatch_map"])
    assert both["map_per_overlap/0.75"] == pytest.approx(other["map/minibatch_map"])
    mean = (one["map/minibatch_map"] + other["map/minibatch_map"]) / 2
    assert both["map/minibatch_map"] == pytest.approx(mean)
