# SPDX-License-Identifier: Apache-2.0
"""The accuracy configs of quick_schedules, trained as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from maploss.engine import load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs/quick_schedules").glob("*_training_acc_test.yaml"))


def test_each_accuracy_config_has_a_seed_and_expects_ap_within_a_tolerance():
    assert [path.name.partition("_")[0] for path in CONFIGS] == ["map", "softmax"]
    for path in CONFIGS:
        cfg = load_config(str(path), [])
        assert cfg.SEED > 0
        names = [name for _, name, *_ in cfg.TEST.EXPECTED_RESULTS]
        assert names == ["AP", "AP50"]
        assert all(0 < tolerance < 10 < ap for *_, ap, tolerance in cfg.TEST.EXPECTED_RESULTS)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_training_reaches_its_expected_results(path, tmp_path):
    command = [sys.executable, "train_net.py", "--config-file", str(path)]
    done = subprocess.run(
        [*command, "OUTPUT_DIR", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Results verification passed." in done.stdout
