# SPDX-License-Identifier: Apache-2.0
import importlib
import json
from pathlib import Path

import pytest

from benchmarks import report, run_all

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_all_speed_benchmarks_are_run():
    names = {path.stem for path in BENCHMARKS.glob("bm_*.py")}
    assert set(run_all.BENCHMARKS) == names


def test_the_table_has_all_and_a_failure_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    names = list(run_all.BENCHMARKS)

    def run_one(name, device, options):
        if name == names[1]:
            return [report.Row(name, "failed", None, note="RuntimeError: why")]
        return [report.Row(name, f"on {device}", 1234.56, 2.0, "other", 0.5, "peak")]

    monkeypatch.setattr(run_all, "run_one", run_one)
    assert not run_all.run_all("cpu", is_quick=False, output=tmp_path / "output")
    text = (tmp_path / "output" / "bench.md").read_text()
    assert capsys.readouterr().out == text
    machine, _, *lines = text.splitlines()
    assert machine.startswith("cpu, 1 threads, torch ")
    assert machine.endswith(" cores")
    assert [line.split("|")[1].strip() for line in lines[2:]] == names
    assert "| failed" in lines[3]
    assert "RuntimeError: why" in lines[3]
    assert "1,234.6" in lines[2]
    content = json.loads((tmp_path / "output" / "bench.json").read_text())
    assert content["machine"] == machine
    assert [row["benchmark"] for row in content["rows"]] == names
    assert content["rows"][1]["milliseconds"] is None


def test_what_a_benchmark_raises_is_its_row(monkeypatch):
    # In the process that is started there is no module of this name.
    (row,) = run_all.run_one("bm_missing", "cpu", {})
    assert (row.benchmark, row.case, row.milliseconds) == ("bm_missing", "failed", None)
    assert row.note == "ModuleNotFoundError: No module named 'benchmarks.bm_missing'"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bm_map_loss", {"num_images": 4, "num_windows": 50, "repeats": 1}),
        ("bm_operations", {"num_windows": 10}),
        ("bm_ranking_losses", {"num_negatives": 500, "num_images": 1}),
    ],
)
def test_a_benchmark_gives_rows_of_one_form(monkeypatch, name, options):
    benchmark, row_type = importlib.import_module(f"benchmarks.{name}"), report.Row
    monkeypatch.setattr(benchmark, "peak_mebibytes", lambda work, device: 1.0, raising=False)
    rows = benchmark.measure(**options)
    assert all(isinstance(row, row_type) and row.benchmark == name for row in rows)
    assert all(row.milliseconds > 0 for row in rows)
    assert len({row.case for row in rows}) == len(rows) > 1
