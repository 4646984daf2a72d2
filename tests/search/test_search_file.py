# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from maploss.search import SearchSpace, read_search_file

from tests.search.conftest import SPACE

REPOSITORY = Path(__file__).resolve().parents[2]


def entry(**changes):
    return {"SPACE": [{**SPACE[0], **changes}]}


def test_a_search_file_is_read_with_its_defaults(search_file, tmp_path):
    settings = read_search_file(search_file(), ["MODEL.DEVICE", "cpu"])
    assert settings.proxy == tmp_path / "proxy.yaml"
    assert (settings.rounds, settings.samples, settings.reward) == (4, 3, "AP50")
    assert (settings.seed, settings.std, settings.stuck_loss) == (0, 0.2, "")
    assert settings.overrides == ["MODEL.DEVICE", "cpu"]
    assert isinstance(settings.space, SearchSpace)
    start = settings.space.values(settings.start)
    assert start["MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN"] == pytest.approx(0.2)
    assert start["MODEL.MAP_LOSS.LOG_SPACE.EPS"] == pytest.approx(0.5)
    assert start["MODEL.MAP_LOSS.AP_TYPE"] == "voc07"


def test_without_start_it_is_the_value_of_the_config_after_the_overrides(search_file):
    key = "MODEL.MAP_LOSS.NEAREST_STEPS.MIN_DELTA"
    entry = {"KEY": key, "LOW": 0, "HIGH": 1, "SCALE": "linear"}
    path = search_file(SPACE=[entry], OVERRIDES=[key, 0.25])
    assert read_search_file(path, []).start.tolist() == [0.25]
    later = read_search_file(path, [key, "0.125"])
    assert later.start.tolist() == [0.125]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"PROXY": None}, "PROXY: expected a value, got none"),
        ({"ROUND": 3}, "expected the keys PROXY, .* got ROUND"),
        ({"PROXY": "nowhere.yaml"}, "nowhere.yaml"),
        ({"TARGET": "nowhere.yaml"}, "nowhere.yaml"),
        ({"ROUNDS": 0}, "ROUNDS: expected at least 1, got 0"),
        ({"SAMPLES": 0}, "SAMPLES: expected at least 1, got 0"),
        ({"SAMPLES": 1}, "SAMPLES: expected at least 2 for SAMPLER policy, which compares, got 1"),
        ({"SAMPLES": 2.5}, "SAMPLES: expected int, got 2.5"),
        ({"ROUNDS": True}, "ROUNDS: expected int, got True"),
        ({"SEED": -1}, "SEED: expected at least 0, got -1"),
        ({"STD": 0}, r"STD: expected a number in \(0, 1\], got 0"),
        ({"SAMPLER": "grid"}, "SAMPLER: expected one of policy, optuna, got grid"),
        ({"OVERRIDES": ["MODEL.DEVICES", "cpu"]}, "MODEL.DEVICES"),
        ({"SPACE": []}, "SPACE: expected entries, got none"),
        (entry(KEY="MODEL.MAP_LOSS.WIDTH"), r"SPACE\[0\] \(MODEL.MAP_LOSS.WIDTH\): expected a key"),
        (entry(KEY="MODEL.DEVICE.NAME"), r"SPACE\[0\] \(MODEL.DEVICE.NAME\): expected a key"),
        (
            entry(LOW=2),
            r"SPACE\[0\] \(MODEL.*ERROR_DRIVEN.MARGIN\): expected LOW < HIGH.* LOW 2, HIGH 1",
        ),
        (entry(START=3), r"SPACE\[0\] .*START: expected a number from LOW 0.0 to HIGH 1.0, got 3"),
        (entry(START="x"), r"SPACE\[0\] \(MODEL.MAP_LOSS.ERROR_DRIVEN.MARGIN\): START"),
        (entry(KEY="SOLVER.MAX_ITER", START=1), r"SPACE\[0\]: Config: .*MAX_ITER"),
        (
            {"SPACE": [{"KEY": "MODEL.MAP_LOSS.AP_TYPE", "CHOICES": ["area", "voc07"]}]},
            r"\(MODEL.MAP_LOSS.AP_TYPE\): START .*one of \['area', 'voc07'\], got 'auto'",
        ),
        (
            {"SPACE": [{"KEY": "MODEL.MAP_LOSS.LOG_SPACE.ENABLED", "CHOICES": [True, "no"]}]},
            r"SPACE\[0\]: Config: .*LOG_SPACE.ENABLED",
        ),
        (
            {"SPACE": [{"KEY": "MODEL.PIXEL_MEAN", "FUNCTIONS": 5}]},
            r"SPACE\[0\] \(MODEL.PIXEL_MEAN\): START .*expected shape \(5, 4, 2\)",
        ),
    ],
)
def test_what_is_wrong_in_a_search_file_is_named(search_file, changes, says):
    with pytest.raises((ValueError, OSError), match=says):
        read_search_file(search_file(**changes), [])


@pytest.mark.parametrize("text", ["- a list", "", "a: b: c"])
def test_a_file_of_another_kind_is_named(tmp_path, text):
    path = tmp_path / "search.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"search\.yaml: "):
        read_search_file(path, [])


def test_the_tool_ends_with_one_line(search_file, call_tool, tmp_path):
    path = search_file(**entry(LOW=2))
    with pytest.raises(SystemExit, match=r"^error: .*SPACE\[0\].*LOW 2, HIGH 1[^\n]*$"):
        call_tool("search_loss", str(path), "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "num"), [("shapes_parameterized_ap", 41), ("shapes_map_loss", 6)], ids=str
)
def test_the_search_files_of_this_project_are_read(name, num):
    settings = read_search_file(REPOSITORY / f"configs/search/{name}.yaml", [])
    assert settings.space.num == len(settings.start) == num
