# SPDX-License-Identifier: Apache-2.0
"""Which training steps are compared."""

import pytest


def test_a_method_and_its_unit_differ_in_their_losses_only(load):
    benchmark = load("bm_training_step")
    for name, method in benchmark.METHODS.items():
        own, unit = benchmark.config_of(name), benchmark.config_of(method.unit)
        assert benchmark.METHODS[method.unit].unit == method.unit
        for cfg in (own, unit):
            del cfg.MODEL["MAP_LOSS"], cfg.MODEL.ROI_HEADS["NAME"]
            del cfg.MODEL.ROI_BOX_HEAD["BBOX_REG_LOSS_TYPE"]
        for part in ("MODEL", "INPUT", "DATASETS"):
            assert own[part] == unit[part], name
        for key in ("IMS_PER_BATCH", "OPTIMIZER"):
            assert own.SOLVER[key] == unit.SOLVER[key], name


@pytest.mark.slow
def test_units_take_part_in_the_turns(load):
    rows = load("bm_training_step").measure(steps=1, methods=["map, one box"])
    assert [(row.case, row.ratio_to) for row in rows] == [
        (name, "softmax, one box") for name in ("softmax, one box", "map, one box")
    ]
    assert rows[0].ratio == 1
    assert 0.5 < rows[1].ratio < 2
