# SPDX-License-Identifier: Apache-2.0
"""The form in which the speed benchmarks tell what they have measured."""

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from tabulate import tabulate


class Row(NamedTuple):
    """
    One case of a benchmark. milliseconds: median wall time, None if it failed. ratio: of that time
    to the time of `ratio_to`. mebibytes: of what `mebibytes_of` says.
    """

    benchmark: str
    case: str
    milliseconds: float | None
    ratio: float | None = None
    ratio_to: str = ""
    mebibytes: float | None = None
    mebibytes_of: str = ""
    note: str = ""


def machine(device: str) -> str:
    """What the numbers depend on, in words."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{os.cpu_count()} cores"
    )


def table(rows: Iterable[Row]) -> str:
    """As GitHub's Markdown."""
    cells = [
        [
            row.benchmark,
            row.case,
            _number(row.milliseconds, 1),
            _number(row.ratio, 2),
            row.ratio_to,
            _number(row.mebibytes, 2 if (row.mebibytes or 0) < 10 else 0),
            row.mebibytes_of,
            row.note,
        ]
        for row in rows
    ]
    headers = ["benchmark", "case", "ms", "ratio", "to", "MiB", "of", "note"]
    align = ["left", "left", "right", "right", "left", "right", "left", "left"]
    return tabulate(cells, headers, tablefmt="github", colalign=align, disable_numparse=True)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
