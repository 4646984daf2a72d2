# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for every file of the repository."""

import os
import re
import shutil
import subprocess

import pytest

# Written so that this file does not break its own rule.
REGISTRY_HOSTS = [
    ".".join(h) for h in (("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org"))
]
MACHINE_PATH = re.compile(r"(?<![\w.:/~}>$-])/(home|root|Users|work|tmp|mnt)/\w")


@pytest.fixture
def texts(root):
    """Map each text file that git knows, or would add, to its content."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    paths = [root / name for name in listed.split("\0") if name]
    raw = {path: path.read_bytes() for path in paths if path.is_file()}
    return {
        path: data.decode("utf-8", "replace") for path, data in raw.items() if b"\0" not in data
    }


def test_no_file_names_the_host_of_a_package_registry(texts):
    named = [(str(p), host) for p, text in texts.items() for host in REGISTRY_HOSTS if host in text]
    assert named == []


def test_no_file_names_a_path_of_one_machine(texts):
    assert [str(path) for path, text in texts.items() if MACHINE_PATH.search(text)] == []


def test_every_python_file_begins_with_its_licence(texts):
    line = "# SPDX-License-Identifier: Apache-2.0\n"
    python = {path: text for path, text in texts.items() if path.suffix == ".py" and text}
    assert [str(path) for path, text in python.items() if not text.startswith(line)] == []


def test_ci_script_is_there_and_executable(root):
    assert os.access(root / ".ci" / "run", os.X_OK)


def test_make_targets_of_the_readme_go_through_setup(root):
    makefile = (root / "Makefile").read_text()
    targets = ["demo", "test", "test-slow", "fuzz", "mutants", "compare", "bench", "lint", "types"]
    for target in targets:
        assert f"\n{target}: setup\n" in makefile
