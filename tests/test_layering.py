# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: layers <- modeling <- train_net; data and evaluation may use layers."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "projects/MAPLoss/maploss"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Part of the package: parts that it must not import.
FORBIDDEN = {
    "utils": {"config", "data", "engine", "evaluation", "layers", "modeling", "visualization"},
    "layers": {"config", "data", "engine", "evaluation", "modeling", "utils", "visualization"},
    "modeling": {"data", "engine", "evaluation", "visualization"},
    "data": {"config", "engine", "evaluation", "modeling", "visualization"},
    "evaluation": {"config", "engine", "modeling", "visualization"},
    "visualization": {"config", "engine", "modeling"},
    "search": {"evaluation", "modeling"},
}
# Of Detectron2: all that knows configs, registries, images with annotations, or a running training.
FORBIDDEN_IN_LAYERS = (
    "detectron2.config",
    "detectron2.data",
    "detectron2.engine",
    "detectron2.evaluation",
    "detectron2.modeling",
    "detectron2.structures",
    "detectron2.utils.events",
    "detectron2.utils.registry",
    "fvcore.common.registry",
)


def imported_by(path: Path) -> set[str]:
    """Full names of all that a module imports, wherever in it: "a.b.c" for "from a.b import c"."""
    package = ["maploss", *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, node.module] if node.module else base
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names


def begins_with(name: str, prefixes) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_the_package_is_found():
    assert {"config.py", "modeling/roi_heads.py"} <= {relative(path) for path in MODULES}


def test_relative_imports_are_resolved():
    names = imported_by(PACKAGE / "modeling/map_output_layers.py")
    assert {"maploss.layers.MAPLoss", "detectron2.layers.ShapeSpec"} <= names


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_module_imports_a_part_above_it(path):
    part = path.relative_to(PACKAGE).parts[0]
    forbidden = [f"maploss.{other}" for other in FORBIDDEN.get(part, ())]
    # A part of config.
    forbidden += ["maploss.deformable_detr_config"] if "maploss.config" in forbidden else []
    forbidden += ["train_net", "tools"]
    # Only a tool searches.
    forbidden += [] if part == "search" else ["maploss.search"]
    assert not [name for name in imported_by(path) if begins_with(name, forbidden)]


@pytest.mark.parametrize(
    "path", [x for x in MODULES if relative(x).startswith("layers/")], ids=relative
)
def test_layers_know_tensors_only(path):
    assert not [name for name in imported_by(path) if begins_with(name, FORBIDDEN_IN_LAYERS)]


def test_no_other_module_imports_train_net_or_a_tool():
    folders = ("tools", "benchmarks", "experiments")
    others = [path for name in folders for path in (REPOSITORY / name).glob("*.py")]
    for path in [*others, REPOSITORY / "train_net.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            assert not [name for name in modules if begins_with(name, ["train_net", "tools"])]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_file_is_shorter_than_400_lines(path):
    assert len(path.read_text().splitlines()) < 400


def test_train_net_is_at_most_120_lines():
    assert len((REPOSITORY / "train_net.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_library_code_raises_and_does_not_end_the_process(path):
    tree = ast.parse(path.read_text())
    names = {x.id for x in ast.walk(tree) if isinstance(x, ast.Name)}
    attributes = {x.attr for x in ast.walk(tree) if isinstance(x, ast.Attribute)}
    assert not (names | attributes) & {"exit", "_exit", "quit", "SystemExit"}
