# SPDX-License-Identifier: Apache-2.0
"""
Mutates the layers with mutmut and prints, of each file, how many mutants the tests kill.

    python tools/mutants.py [FILE ...] [--per-file N] [--seed SEED]

FILE is a path below layers/, or its beginning ("nms.py", "steps/"); none stands for all of them.
mutmut wants the package beside the tests, so both are copied to output/mutants. A mutant that was
killed there is not run again, unless its file changed.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "projects" / "MAPLoss"
STAGE = ROOT / "output" / "mutants"
LAYERS = Path("maploss") / "layers"
# Its tests start processes, which do not know which mutant is on.
LEFT_OUT = {LAYERS / "map_loss" / "distributed.py"}
NO_GRAD = re.compile(r"^@torch\.no_grad\(\)\n(?=def (\w+))", re.MULTILINE)
STATUSES = ["killed", "timeout", "survived", "no tests"]


def main() -> int:
    """Run the mutants that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="path below layers/ or its beginning (default: all)",
    )
    parser.add_argument("--per-file", type=int, metavar="N", help="a random sample (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    args = parser.parse_args()
    paths = stage(args.files or [""])
    if not paths:
        parser.error(f"FILE: expected beginnings of paths below {LAYERS}, got {args.files}")
    mutants = {path: sample(path, args.per_file, args.seed) for path in paths}
    names = sorted(name for some in mutants.values() for name in some)
    results = read_results()
    left = [name for name in names if results.get(name) != "killed"]
    status = mutmut("run", "--max-children", "1", *left).returncode if left else 0
    report(mutants, read_results())
    return status


def stage(beginnings: list[str]) -> list[Path]:
    """Copy what changed; return the paths of the files of `layers` that begin with one of these."""
    (STAGE / LAYERS).mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", STAGE)
    for folder in (STAGE / "tests", STAGE / "mutants" / "tests"):
        shutil.rmtree(folder, ignore_errors=True)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests", STAGE / "tests", ignore=no_caches)
    for source in sorted((PACKAGE / "maploss").rglob("*.py")):
        path = source.relative_to(PACKAGE)
        text = source.read_text()
        if LAYERS in path.parents:
            text = without_decorators(text)
        target = STAGE / path
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            (STAGE / "mutants" / f"{path}.meta").unlink(missing_ok=True)
    layers = {path.relative_to(STAGE) for path in (STAGE / LAYERS).rglob("*.py")} - LEFT_OUT
    names = {path: path.relative_to(LAYERS).as_posix() for path in sorted(layers)}
    return [path for path, name in names.items() if name.startswith(tuple(beginnings))]


def without_decorators(text: str) -> str:
    """Wrap in no_grad below what is wrapped above: mutmut leaves decorated functions alone."""
    wrapped = NO_GRAD.findall(text)
    return NO_GRAD.sub("\n", text) + "".join(f"\n{f} = torch.no_grad()({f})\n" for f in wrapped)


def sample(path: Path, size: int | None, seed: int) -> list[str]:
    """Names of `size` mutants of a file, of all if it has fewer."""
    module = ".".join(path.with_suffix("").parts)
    code = (STAGE / path).read_text()
    names = [f"{module}.{x}" for x in mutate_file_contents(str(path), code).mutant_names]
    if size is None or size >= len(names):
        return names
    return random.Random(f"{seed} {path}").sample(names, size)


def read_results() -> dict[str, str]:
    """Map each mutant that was made before to its result."""
    if not (STAGE / "mutants").exists():
        return {}
    lines = mutmut("results", "--all", "true", capture_output=True, text=True).stdout.splitlines()
    return dict(line.strip().split(": ", 1) for line in lines if ": " in line)


def mutmut(*arguments: str, **kwargs: bool) -> subprocess.CompletedProcess:
    """Run mutmut where the copies are."""
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    return subprocess.run(command, cwd=STAGE, check=False, **kwargs)


def report(mutants: dict[Path, list[str]], results: dict[str, str]) -> None:
    """Print the survivors, and a table with one row a file."""
    counts = defaultdict(Counter)
    for path, names in mutants.items():
        for name in names:
            result = results.get(name, "not checked")
            counts[path][result] += 1
            if result not in ("killed", "timeout"):
                print(f"{result}: {name}")
    others = sorted({x for count in counts.values() for x in count} - set(STATUSES))
    rows = [
        [str(path.relative_to(LAYERS)), *(count[x] for x in [*STATUSES, *others])]
        for path, count in counts.items()
    ]
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    print(tabulate(rows, headers=["file", *STATUSES, *others]))


if __name__ == "__main__":
    sys.exit(main())
