# SPDX-License-Identifier: Apache-2.0
"""
How many tensor operations the mAP loss takes, and how often it waits for the device.

    python -m benchmarks.bm_operations

Forward and backward on a CPU. On a GPU each operation costs some microseconds to launch, and each
synchronisation waits until all those before it are done: with windows this few, that is the time.

Operations are the calls that reach PyTorch's dispatcher, each counted once: what a kernel calls
inside does not count. Views count, for they cost the host about as much as a launch.
Synchronisations are those calls of which the host must read a result, on a GPU: a number
(`.item()`, `int(x)`, `if x`), a list, or the length of an output (`nonzero`, `x[mask]`, `unique`,
`bincount`, `repeat_interleave` without `output_size`, NMS). `x[mask] = number` is none.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from maploss.layers import MAPLossSettings
from tabulate import tabulate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bm_map_loss import make_minibatch, run_loss, seconds
from benchmarks.report import Row, machine

_WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::unique_dim_consecutive",
    "aten::bincount",
    "aten::histc",
    "torchvision::nms",
}
# These copy from the device, and from a CPU they call no operation.
_COPYING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class Operations(NamedTuple):
    """By name: of all operations, and of those among them that wait."""

    all: Counter
    waiting: Counter


class _CountDispatched(TorchDispatchMode):
    def __init__(self, counts: Operations) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts.all[func.name()] += 1
        if _waits(func, args, kwargs or {}):
            self.counts.waiting[func.name()] += 1
        return func(*args, **(kwargs or {}))


class _CountCopies(TorchFunctionMode):
    def __init__(self, counts: Operations) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COPYING:
            self.counts.all[func.__name__] += 1
            self.counts.waiting[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: Any, kwargs: dict) -> bool:
    name = func._schema.name
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        has_mask = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        return has_mask and (name == "aten::index" or args[2].numel() != 1)
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    return name in _WAITING


@contextmanager
def counted_operations() -> Iterator[Operations]:
    """Counts what is called inside."""
    counts = Operations(Counter(), Counter())
    with _CountCopies(counts), _CountDispatched(counts):
        yield counts


def count_operations(work: Callable[[], None]) -> Operations:
    """Of one call of `work`."""
    with counted_operations() as counts:
        work()
    return counts


class Case(NamedTuple):
    """A minibatch of 16 images, settings of the loss, and the most that it may take."""

    name: str
    num_classes: int
    num_present: int
    settings: MAPLossSettings
    most_operations: int
    most_waiting: int


LARGE, SMALL = "error_driven, ten overlaps", "error_driven, one overlap"
# Class by class, as all cases that do not say "pooled" or "default".
ONE = MAPLossSettings(transitivity="label_aware", pooled=0.0)
TEN = replace(ONE, iou_threshs="coco")
CASES = (
    Case("default, ten overlaps", 80, 40, MAPLossSettings(iou_threshs="coco"), 900, 60),
    Case(LARGE, 80, 40, TEN, 600, 60),
    Case(SMALL, 20, 4, ONE, 600, 60),
    Case(
        "error_driven with boxes, pooled .5",
        80,
        40,
        replace(TEN, box_gradient="error_driven", pooled=0.5),
        985,
        21,
    ),
    *(
        Case(
            f"mee, {transitivity}, ten overlaps",
            80,
            40,
            replace(TEN, gradient="mee", transitivity=transitivity),
            most_operations,
            300,
        )
        for transitivity, most_operations in (("label_aware", 1500), ("exact", 6000))
    ),
)
# Neither classes nor overlaps are looped over: beside the large case the small one takes as many.
MOST_DIFFERENCE = 0.1


def make_work(case: Case, device: torch.device, num_windows: int = 256) -> Callable[[], None]:
    """Forward and backward of the case."""
    batch = make_minibatch(
        16,
        device,
        num_windows=num_windows,
        num_classes=case.num_classes,
        max_objects=8,
        num_present=case.num_present,
    )
    return partial(run_loss, batch, case.settings)


def measure(device: str = "cpu", *, num_windows: int = 256) -> list[Row]:
    """A row of each case; counts and limits are in its note."""
    where = torch.device(device)
    rows = []
    for case in CASES:
        work = make_work(case, where, num_windows)
        counts = count_operations(work)
        rows.append(
            Row(
                Path(__file__).stem,
                f"{case.name}, {case.num_present} of {case.num_classes} classes",
                1e3 * seconds(work, where, repeats=3),
                note=f"{counts.all.total():,} operations, {counts.waiting.total():,} "
                f"synchronisations; goals {case.most_operations:,}, {case.most_waiting:,}",
            )
        )
    return rows


def main() -> None:
    """Prints the counts beside their limits, and with --names which operations they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--names", action="store_true", help="the most frequent operations too")
    args = parser.parse_args()
    print(machine("cpu"))
    cells, names = [], []
    for case in CASES:
        counts = count_operations(make_work(case, torch.device("cpu")))
        cells.append(
            [
                case.name,
                f"{case.num_present} of {case.num_classes}",
                counts.all.total(),
                case.most_operations,
                counts.waiting.total(),
                case.most_waiting,
            ]
        )
        names += [f"{case.name}:", *(f"  {x}" for x in counts.all.most_common(30))]
        names += ["  that wait:", *(f"  {x}" for x in counts.waiting.most_common())]
    headers = ["case", "classes present", "operations", "at most", "synchronisations", "at most"]
    print(tabulate(cells, headers, tablefmt="github", intfmt=","))
    print(f"{SMALL!r} at most {MOST_DIFFERENCE:.0%} from {LARGE!r}")
    if args.names:
        print("\n".join(names))


if __name__ == "__main__":
    main()
