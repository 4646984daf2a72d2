# SPDX-License-Identifier: Apache-2.0
"""
Writes docs/config.md, the reference of this project's config keys, from maploss/config.py and
maploss/deformable_detr_config.py.

    python tools/config_reference.py [--output docs/config.md]

Headings are the docstrings of the functions that add keys; texts are the comments above the keys,
in which the lines "Unit: .." and "Source: .." are set apart; defaults are those of the config.
"""

import argparse
import ast
import functools
import json
import operator
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from maploss import config, deformable_detr_config
from maploss.config import add_maploss_config

ROOT = Path(__file__).resolve().parent.parent
INTRODUCTION = """\
# Config keys

<!-- Made by tools/config_reference.py from config.py and deformable_detr_config.py. -->

These are the keys that `add_maploss_config` adds to
[Detectron2's own](https://detectron2.readthedocs.io/en/latest/modules/config.html). A key is set in
a yaml file or at the end of a command: `python train_net.py --config-file FILE KEY VALUE ..`.

- A boolean ends in `_ON` or is called `ENABLED`.
- Off is `0` for a number, `""` for a text, `[]` for a list and `"none"` for a choice.
- `None` means: as the rest of the config says.
- A group says first which choice it belongs to. With another choice its keys do nothing.

"Paper" is Henderson & Ferrari, ACCV 2016. "Score" is the unit of a detection's raw score.

Keys of Detectron2 that take part:

- `MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE` (0 or less: all windows), `POSITIVE_FRACTION` and
  `IOU_THRESHOLDS` choose the windows that train.
- `MODEL.ROI_HEADS.NMS_THRESH_TEST` is the NMS of the test and of the mAP loss.
- `MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT` above 0 switches box regression on.
- `OUTPUT_DIR` follows from the path of the config where neither the file nor the command names it:
  `configs/OHEM/L.yaml` writes to `output/OHEM/L`.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "config.md")
    files = [Path(module.__file__) for module in (config, deformable_detr_config)]
    text = reference([file.read_text() for file in files])
    parser.parse_args().output.write_text(text)


def reference(sources: Sequence[str]) -> str:
    """The page, of the texts of the files that add keys."""
    cfg = get_cfg()
    add_maploss_config(cfg)
    parts = [INTRODUCTION]
    for source in sources:
        for function in ast.parse(source).body:
            # All that add_maploss_config calls.
            if isinstance(function, ast.FunctionDef) and function.name != "add_maploss_config":
                parts += [f"## {ast.get_docstring(function)}\n", *_entries(function, source, cfg)]
    return "\n".join(parts)


def _entries(function: ast.FunctionDef, source: str, cfg: CfgNode) -> list[str]:
    """One text for each group and key that the function adds."""
    lines, aliases, found = source.splitlines(), {"cfg": ""}, []
    for statement in function.body:
        if not isinstance(statement, ast.Assign):
            continue
        *names, last = statement.targets
        is_key = isinstance(last, ast.Attribute)
        key = _key(last if is_key else statement.value, aliases)
        for name in names if is_key else [last]:
            aliases[name.id] = key  # loss = cfg.MODEL.MAP_LOSS = CfgNode()
        if is_key:
            found.append(_entry(key, _comment(lines, statement.lineno - 1), cfg))
    return found


def _key(node: ast.expr, aliases: dict[str, str]) -> str:
    """ "MODEL.X" of cfg.MODEL.X, or of loss.X where `loss` stands for MODEL."""
    if isinstance(node, ast.Name):
        return aliases[node.id]
    return f"{_key(node.value, aliases)}.{node.attr}".lstrip(".")


def _comment(lines: list[str], end: int) -> list[str]:
    """The comment that ends before line `end`: its text, and each line that is set apart."""
    start = end
    while lines[start - 1].lstrip().startswith("# "):
        start -= 1
    paragraphs: list[str] = []
    for line in (x.lstrip()[2:] for x in lines[start:end]):
        if not paragraphs or re.match(r"(Unit|Source): ", line):
            paragraphs.append(line)
        else:
            paragraphs[-1] += f" {line}"
    return paragraphs


def _entry(key: str, paragraphs: list[str], cfg: CfgNode) -> str:
    value = functools.reduce(operator.getitem, key.split("."), cfg)
    text, *facts = [x.replace("<", r"\<") for x in paragraphs]  # <n> is no HTML
    if isinstance(value, CfgNode):
        return f"### Group `{key}`\n\n{_wrap(text)}\n"
    default = json.dumps(value) if isinstance(value, str | list) else repr(value)
    facts = [_wrap(f"- {x}", "  ") for x in (f"Default: `{default}`", *facts)]
    return "\n".join([f"### `{key}`\n", _wrap(text), "", *facts, ""])


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


if __name__ == "__main__":
    main()
