# SPDX-License-Identifier: Apache-2.0
"""The commands of the documentation, as a shell reads them, before the real parsers and configs."""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys

import pytest
from maploss.engine import load_config

PAGES = [
    "docs/results.md",
    "docs/reproduce.md",
    "docs/evaluation.md",
    "docs/metrics.md",
    "docs/feature_cache.md",
    "docs/coco_ap.md",
    "docs/own_data.md",
    "docs/deformable_detr.md",
]
# Instead of running them: writes the arguments of `python`, and what `make` would run.
STUBS = r"""
set -eu
python() { "$PYTHON" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >&3; }
make() { eval "$(command make -n "$@" | sed -n 's/^.venv.bin.python /python /p')"; }
"""


class ParsedError(Exception):
    """A parser has taken all arguments; carries what it gives, and ends the script."""


def shell_commands(page, root):
    """Of all blocks of code, in order, and of inline code: the arguments of each Python command."""
    text = (root / page).read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in blocks if language not in ("python", "yaml")]
    outside = re.sub(r"(?s)```.*?```", "", text)
    inline = re.findall(r"`(python [^`\n]*(?:\.py|-m \w+\.)[^`\n]*)`", outside)
    script = STUBS + "\n".join([*blocks, *inline])
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&1 >/dev/null\n{script}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def parse(root, arguments, monkeypatch):
    """What the script's own parser makes of its arguments; the script does not go on."""
    busy = []

    def stopping(method):
        def call(parser, *args, **kwargs):
            if busy:  # one of these calls another
                return method(parser, *args, **kwargs)
            busy.append(True)
            raise ParsedError(method(parser, *args, **kwargs))

        return call

    if arguments[0] == "-m":
        arguments = [arguments[1].replace(".", "/") + ".py", *arguments[2:]]
    monkeypatch.setattr(sys, "argv", [str(root / arguments[0]), *arguments[1:]])
    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(
            argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name))
        )
    with pytest.raises(ParsedError) as parsed:
        runpy.run_path(str(root / arguments[0]), run_name="__main__")
    found = parsed.value.args[0]
    namespace, rest = found if isinstance(found, tuple) else (found, [])
    return namespace, [*rest, *getattr(namespace, "overrides", []), *getattr(namespace, "opts", [])]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_they_are_written(page, root, monkeypatch):
    commands = shell_commands(page, root)
    assert commands
    for arguments in commands:
        line = " ".join(arguments)
        # What a shell leaves of braces with blanks, and what is left to the reader.
        assert not [x for x in arguments if x.startswith("{") or "..." in x], line
        for path in re.findall(r"(?:configs|tools)/[\w/.+-]+", line):
            assert (root / path).exists(), line
        with monkeypatch.context() as patch:
            try:
                namespace, overrides = parse(root, arguments, patch)
            except SystemExit as error:
                raise AssertionError(f"{line}: its parser ends with {error}") from error
        config_files = getattr(namespace, "config_file", None) or ""
        for path in [config_files] if isinstance(config_files, str) else config_files:
            # What an earlier command writes is not there.
            is_here = path and not path.startswith(("output/", "data.yaml"))
            load_config(str(root / path) if is_here else "", overrides)


# Of the papers that docs/reproduce.md reproduces.
PAPERS = ["Fast-RCNN", "OHEM", "Henderson-Ferrari"]


def test_each_config_of_a_paper_has_its_command(root):
    commands = [" ".join(x) for x in shell_commands("docs/reproduce.md", root)]
    paths = [path for paper in PAPERS for path in sorted((root / "configs" / paper).iterdir())]
    leaves = [str(x.relative_to(root)) for x in paths if not x.name.startswith("Base-")]
    assert len(leaves) > 50
    trained = [x for x in commands if x.startswith("train_net.py --config-file ")]
    assert [x for x in leaves if not any(f" {x} " in f"{y} " for y in trained)] == []


def test_each_row_of_a_papers_table_names_configs_that_are_there(root):
    folder, rows = None, 0
    for line in (root / "docs/reproduce.md").read_text().splitlines():
        if heading := re.match(r"\| table \| config \(`(configs/[\w-]+)/`\)", line):
            folder = root / heading[1]
        elif line.startswith("| ") and folder:
            names = re.findall(r"`([^`]+)`", line.split("|")[2])
            # "`S_`, `M_`, `L_stage_wise`" has the ending of the last for all.
            ending = names[-1].partition("_")[2] if names[0].endswith("_") else ""
            for name in names:
                name += ending if name.endswith("_") else ""
                assert (folder / f"{name}.yaml").is_file(), line
            rows += 1
    assert rows > 40
