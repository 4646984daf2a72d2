# SPDX-License-Identifier: Apache-2.0
"""Which training steps are compared."""

import pytest

from benchmarks import bm_training_step


def test_a_method_and_its_unit_differ_in_their_losses_only():
    for name, method in bm_training_step.METHODS.items():
        own, unit = bm_training_step.config_of(name), bm_training_step.config_of(method.unit)
        assert bm_training_step.METHODS[method.unit].unit == method.unit
        for cfg in (own, unit):
            del cfg.MODEL["MAP_LOSS"], cfg.MODEL.ROI_HEADS["NAME"]
            del cfg.MODEL.ROI_BOX_HEAD["BBOX_REG_LOSS_TYPE"]
        for part in ("MODEL", "INPUT", "DATASETS"):
            assert own[part] == unit[part], name
        for key in ("IMS_PER_BATCH", "OPTIMIZER"):
            assert own.SOLVER[key] == unit.SOLVER[key], name


@pytest.mark.slow
def test_units_take_part_in_the_turns():
    rows = bm_training_step.measure(steps=1, methods=["map, one box"])
    assert [(row.case, row.ratio_to) for row in rows] == [
        (name, "softmax, one box") for name in ("softmax, one box", "map, one box")
    ]
    assert rows[0].ratio == 1
    assert 0.5 < rows[1].ratio < 2
