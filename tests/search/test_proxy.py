# SPDX-License-Identifier: Apache-2.0
import json
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from maploss.search import ProxyError, Sample, TrainingProxy
from maploss.search.proxy import is_stuck

SAMPLE = Sample(3, 1, torch.tensor([0.5]), ["KEY", "7"])


def command(tmp_path, text):
    """A run that has its folder as `folder` and does as the text says."""
    path = tmp_path / "run.py"
    path.write_text(f"import json, os, sys, time\nfolder = sys.argv[-1]\n{text}")
    return [sys.executable, "-S", "-E", str(path)]


def result(ap50):
    content = json.dumps({"bbox": {"AP50": ap50}})
    path = "folder + '/inference/ap.json'"
    return f"os.makedirs(folder + '/inference')\nopen({path}, 'w').write('{content}')\n"


def test_a_sample_runs_in_its_own_clean_folder_and_leaves_no_checkpoint(tmp_path):
    text = "print(*sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.listdir(folder))\n"
    text += "open(folder + '/model_0000009.pth', 'w').write('x')\n"
    folder = tmp_path / "out/round_003/sample_1"
    folder.mkdir(parents=True)
    (folder / "left_by_a_run_that_was_killed").touch()
    proxy = TrainingProxy(command(tmp_path, text + result(12.5)), tmp_path / "out", "AP50")
    assert proxy(SAMPLE, 0) == 12.5
    said = (folder / "console.txt").read_text()
    assert said.startswith(f"KEY 7 OUTPUT_DIR {folder} ")
    assert said.endswith("['console.txt']\n")
    assert sorted(x.name for x in folder.iterdir()) == ["console.txt", "inference"]
    assert proxy(replace(SAMPLE, round=-1, index=0), 0) == 12.5
    assert (tmp_path / "out/start/console.txt").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("print('first')\nsys.exit('error: no such thing')", "status 1: first\nerror: no such"),
        ("raise FloatingPointError('loss')", "status 1: .*FloatingPointError: loss"),
        ("os.abort()", "exit status -6"),
        ("print('done')", "ap.json: no result .*done"),
        (result(None), "expected a finite number for AP50, got None; there are AP50"),
        (result(float("nan")), "expected a finite number for AP50, got nan"),
        ("open(folder + '/model_final.pth', 'w')\nsys.exit(3)", "exit status 3"),
    ],
)
def test_a_run_that_fails_says_why(tmp_path, text, says):
    proxy = TrainingProxy(command(tmp_path, text), tmp_path, "AP50")
    with pytest.raises(ProxyError, match=f"(?s){says}"):
        proxy(SAMPLE, 0)
    assert not list(tmp_path.rglob("*.pth"))


def test_the_gpu_is_that_of_the_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    text = "print(os.environ['CUDA_VISIBLE_DEVICES'])\n" + result(1)
    proxy = TrainingProxy(command(tmp_path, text), tmp_path, "AP50", num_workers=2)
    console = tmp_path / "round_003/sample_1/console.txt"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for worker, expected in ((0, "0"), (1, "1"), (2, "0")):
        proxy(SAMPLE, worker)
        assert console.read_text().strip() == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    proxy(SAMPLE, 1)
    assert console.read_text().strip() == "3"


def test_a_run_that_is_stuck_is_stopped(tmp_path):
    text = """
with open(folder + '/metrics.json', 'w') as f:
    for i in range(19, 100, 20):
        f.write(json.dumps({'iteration': i, 'loss': float('nan') if i > 50 else 1.0}) + '\\n')
time.sleep(60)
"""
    proxy = TrainingProxy(command(tmp_path, text), tmp_path, "AP50", stuck_loss="loss")
    begin = time.monotonic()
    with pytest.raises(ProxyError, match=r"stopped: loss nan or at least 0\.999 for 50 iterations"):
        proxy(SAMPLE, 0)
    assert time.monotonic() - begin < 10


def test_stopping_ends_a_run_at_once(tmp_path):
    proxy = TrainingProxy(command(tmp_path, "time.sleep(60)"), tmp_path, "AP50")
    threading.Timer(0.3, proxy.stop).start()
    begin = time.monotonic()
    with pytest.raises(ProxyError, match="the search was stopped"):
        proxy(SAMPLE, 0)
    assert time.monotonic() - begin < 10


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0] * 49, False),
        ([1.0] * 50, True),
        ([NAN] * 25 + [0.9995] * 25, True),
        ([1.0] * 60 + [0.5], False),
        ([0.5] + [NAN] * 50, True),
        ([1.0] * 30 + [0.99] + [1.0] * 30, False),
        ([], False),
    ],
)
def test_a_loss_is_stuck_after_50_iterations_at_1_or_nan(tmp_path, values, expected):
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i, "loss": x}) for i, x in enumerate(values)]
    lines.insert(0, json.dumps({"iteration": 0, "data_time": 1.0}))
    path.write_text("\n".join(lines) + '\n{"iteration": 99, "lo')
    assert is_stuck(path, "loss") == expected


def test_a_run_without_metrics_is_not_stuck(tmp_path):
    assert not is_stuck(tmp_path / "metrics.json", "loss")
