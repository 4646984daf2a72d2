# SPDX-License-Identifier: Apache-2.0
"""Loads the packaging scripts, which are no packages, from their files."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root():
    return ROOT


@pytest.fixture
def fixups():
    return load(ROOT / "third_party/detectron2/fixups.py")


@pytest.fixture
def missing_ops():
    return load(ROOT / "third_party/detectron2/missing_ops.py")


@pytest.fixture
def repackage(fixups, monkeypatch):
    monkeypatch.setitem(sys.modules, "fixups", fixups)
    return load(ROOT / "third_party/detectron2/repackage.py")


@pytest.fixture
def setup_env():
    return load(ROOT / "tools/setup_env.py")
