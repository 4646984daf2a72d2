# SPDX-License-Identifier: Apache-2.0
"""The changes that let Detectron2 0.5 run without C++ ops beside present NumPy and Pillow."""

import re
from typing import NamedTuple

NOTICE = (
    "# Modified when repackaged: see third_party/detectron2/fixups.py of the MAPLoss project.\n"
)


class Fixup(NamedTuple):
    """Replace every match of `pattern` by `replacement` in the files that `path` matches."""

    path: str
    pattern: str
    replacement: str


FIXUPS = (
    # Pillow 10 removed the old name.
    Fixup(r"data/transforms/transform\.py", r"\bImage\.LINEAR\b", "Image.BILINEAR"),
    # NumPy 1.24 removed its aliases of the builtins.
    Fixup(r".*\.py", r"\bnp\.(bool|int|float|str|object)\b", r"\1"),
    # setuptools 81 removed pkg_resources; the yaml files lie beside the module.
    Fixup(r"model_zoo/model_zoo\.py", r"(?m)^import pkg_resources\n", ""),
    Fixup(
        r"model_zoo/model_zoo\.py",
        r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", ',
        "os.path.join(\n        os.path.dirname(os.path.abspath(__file__)), ",
    ),
)


def apply_fixups(files, fixups=FIXUPS):
    """Return a copy of `files` (path from `detectron2/` to bytes) with all fix-ups applied.

    A fix-up that changes nothing raises ValueError: the source is not the one it was written for.
    """
    fixed = dict(files)
    for fixup in fixups:
        path = re.compile("detectron2/" + fixup.path)
        total = 0
        for name in filter(path.fullmatch, files):
            text, count = re.subn(fixup.pattern, fixup.replacement, fixed[name].decode())
            if count and not text.startswith(NOTICE):
                text = NOTICE + text
            fixed[name] = text.encode()
            total += count
        if not total:
            raise ValueError(f"fix-up of {fixup.path}: expected to find {fixup.pattern}, got none")
    return fixed
