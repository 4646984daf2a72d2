# SPDX-License-Identifier: Apache-2.0
"""A search of a few numbers of the mAP loss, with a quick stand-in for train_net.py."""

import sys

import pytest
import yaml

from tests.tiny import config_file

MARGIN = "MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN"
SPACE = [
    {"KEY": MARGIN, "LOW": 0, "HIGH": 1, "SCALE": "linear", "START": 0.2},
    {"KEY": "MODEL.MAP_LOSS.LOG_SPACE.EPS", "LOW": 0.001, "HIGH": 1, "SCALE": "log", "START": 0.5},
    {"KEY": "MODEL.MAP_LOSS.AP_TYPE", "CHOICES": ["area", "voc07"], "START": "voc07"},
]
# Best at MARGIN .7, EPS .01; every third or so fails.
STAND_IN = """
import json, math, os, sys, time
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
margin = float(given["MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN"])
eps = float(given["MODEL.MAP_LOSS.LOG_SPACE.EPS"])
print("margin", margin)
time.sleep(0.02)
folder = given["OUTPUT_DIR"]
open(folder + "/model_final.pth", "w").close()
if int(1e6 * margin) % 3 == 0:
    sys.exit("error: this margin is not to my taste")
reward = 50 - 40 * (margin - 0.7) ** 2 - (math.log10(eps) + 2) ** 2
reward += 5 * (given["MODEL.MAP_LOSS.AP_TYPE"] == "'area'")
os.makedirs(folder + "/inference")
with open(folder + "/inference/ap.json", "w") as f:
    json.dump({"bbox": {"AP50": reward, "AP": None}}, f)
"""


@pytest.fixture
def search_file(tmp_path):
    """Writes a search file, with some keys changed, beside the config of its proxy."""
    proxy = tmp_path / "proxy.yaml"
    proxy.write_text(f'_BASE_: "{config_file("map")}"\n')

    def write(**changes):
        content = {"PROXY": "proxy.yaml", "REWARD": "AP50", "ROUNDS": 4, "SAMPLES": 3}
        content |= {"SPACE": SPACE} | changes
        path = tmp_path / "search.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in content.items() if value is not None})
        )
        return path

    return write


@pytest.fixture
def stand_in(tmp_path):
    """The command that stands for train_net.py."""
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return [sys.executable, "-S", "-E", str(path)]
