# SPDX-License-Identifier: Apache-2.0
"""docs/config.md and the tool that makes it from config.py."""

import re

import pytest
from detectron2.config import get_cfg
from maploss.config import add_maploss_config

from tests.tiny import keys_of


@pytest.fixture
def made(call_tool, tmp_path):
    """What the tool writes."""
    call_tool("config_reference", "--output", str(tmp_path / "config.md"))
    return (tmp_path / "config.md").read_text()


def test_the_page_is_that_of_the_config(made, root):
    assert (root / "docs/config.md").read_text() == made, "run: python tools/config_reference.py"


def test_the_page_has_each_key_with_a_text_and_its_default(made):
    cfg = get_cfg()
    detectron2s = {*keys_of(cfg)}
    add_maploss_config(cfg)
    pattern = r"^### `([\w.]+)`\n\n\S.*?\n- Default: `(.+?)`$"
    entries = re.findall(pattern, made, re.MULTILINE | re.DOTALL)
    assert [key for key, _ in entries] == [*dict(entries)]
    assert {*dict(entries)} == {*keys_of(cfg)} - detectron2s
    for key, default in entries:
        value = cfg
        for part in key.split("."):
            value = value[part]
        assert default.strip('"') == str(value).replace("'", '"'), key
