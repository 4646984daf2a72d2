# SPDX-License-Identifier: Apache-2.0
"""What `make setup` decides, without installing anything."""

import socket
import subprocess
import sys

import pytest


@pytest.fixture
def calls(setup_env, tmp_path, monkeypatch):
    """Record what would be run, in an empty .venv; no Detectron2 is installed anywhere."""
    calls = []
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(setup_env, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup_env, "STAMP", tmp_path / ".venv" / "stamp")
    monkeypatch.setattr(setup_env, "run", calls.append)
    monkeypatch.setattr(setup_env, "official_version", lambda python: "")
    monkeypatch.setattr(setup_env, "opencv_version", lambda python: "")
    monkeypatch.delenv("DETECTRON2", raising=False)
    return calls


@pytest.fixture
def silent_server(monkeypatch):
    """Accept connections and never answer."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def installed_last_but_one(calls):
    return " ".join(calls[-2])


def test_second_setup_runs_nothing(setup_env, calls, monkeypatch):
    monkeypatch.setenv("DETECTRON2", "index")
    setup_env.main()
    assert calls
    calls.clear()
    setup_env.main()
    assert calls == []


def test_setup_that_failed_is_run_again(setup_env, calls, monkeypatch):
    def fail(command):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setenv("DETECTRON2", "index")
    with monkeypatch.context() as patch:
        patch.setattr(setup_env, "run", fail)
        with pytest.raises(subprocess.CalledProcessError):
            setup_env.main()
    setup_env.main()
    assert calls


def test_fingerprint_changes_with_a_requirement_and_with_the_origin(
    setup_env, tmp_path, monkeypatch
):
    before = setup_env.fingerprint("")
    assert setup_env.fingerprint("") == before
    assert setup_env.fingerprint("index") != before
    changed = tmp_path / "constraints.txt"
    changed.write_text("numpy==1.0\n")
    monkeypatch.setattr(setup_env, "CONSTRAINTS", changed)
    assert setup_env.fingerprint("") != before


def test_unknown_origin_of_detectron2_is_refused_by_name(setup_env, calls, monkeypatch):
    monkeypatch.setenv("DETECTRON2", "local")
    with pytest.raises(SystemExit, match="DETECTRON2: expected official or index, got 'local'"):
        setup_env.main()


def test_silent_github_is_given_up_and_the_repackaged_detectron2_taken(
    setup_env, calls, monkeypatch, silent_server, capsys
):
    monkeypatch.setattr(setup_env, "DETECTRON2_URL", silent_server)
    monkeypatch.setattr(setup_env, "GITHUB_TIMEOUT_S", 0.5)
    setup_env.main()
    assert "repackaged from the package index (GitHub did not answer" in capsys.readouterr().out
    assert str(setup_env.REPACKAGED) in installed_last_but_one(calls)


def test_github_that_refuses_is_given_up_and_named(setup_env, calls, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "DETECTRON2_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("DETECTRON2", "official")
    with pytest.raises(SystemExit, match="GitHub cannot be reached"):
        setup_env.main()


def test_official_detectron2_that_cannot_be_built_falls_back(setup_env, monkeypatch, capsys):
    def fail(command):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(setup_env, "ASK_GITHUB", "")
    monkeypatch.setattr(setup_env, "run", fail)
    assert "could not be built" in setup_env.install_official()


def test_official_detectron2_is_built_against_the_torch_that_is_installed(
    setup_env, calls, monkeypatch
):
    monkeypatch.setattr(setup_env, "ASK_GITHUB", "")
    setup_env.install_official()
    assert "--no-build-isolation" in calls[-1]
    assert calls[-1][-1] == setup_env.DETECTRON2_URL


def test_torch_and_detectron2_of_the_interpreter_are_not_installed_again(
    setup_env, calls, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(setup_env, "official_version", lambda python: "0.6")
    setup_env.main()
    assert "--system-site-packages" in calls[0]
    assert len(calls) == 2
    assert "Detectron2 0.6: the official one that is already installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "extras"),
    [("", "[dev,opencv]"), ("4.10.0", "[dev]"), ("4.10.0 without ximgproc", "[dev]")],
)
def test_an_environment_with_an_opencv_keeps_it(
    setup_env, calls, monkeypatch, capsys, version, extras
):
    monkeypatch.setenv("DETECTRON2", "index")
    monkeypatch.setattr(setup_env, "opencv_version", lambda python: version)
    setup_env.main()
    assert any(x.endswith(extras) for x in calls[-1])
    is_plain = version.endswith("ximgproc")
    said = "selective search needs opencv-contrib-python-headless" in capsys.readouterr().out
    assert said == is_plain


def test_the_package_asks_for_no_opencv_that_would_overwrite_another(root):
    dependencies = (root / "pyproject.toml").read_text().split("dependencies = [")[1].split("]")[0]
    assert "opencv" not in dependencies
    assert "numpy" in dependencies


def test_the_opencv_of_an_interpreter_is_found(setup_env):
    assert setup_env.opencv_version(sys.executable)[0].isdigit()
