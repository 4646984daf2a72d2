# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of the layers are run, and each public layer has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
from maploss import layers

MODULES = [importlib.import_module("maploss.layers")] + [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(layers.__path__, prefix="maploss.layers.")
]


def documented(module):
    """
    A module, the functions and classes that it defines, and their methods, by name.

    `doctest.testmod` would leave out functions under `torch.no_grad`.
    """
    result = {module.__name__: module}
    for name, value in vars(module).items():
        is_definition = inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value))
        if is_definition and value.__module__ == module.__name__:
            result[f"{module.__name__}.{name}"] = value
            if inspect.isclass(value):
                methods = {k: x for k, x in vars(value).items() if inspect.isroutine(x)}
                result |= {f"{module.__name__}.{name}.{k}": x for k, x in methods.items()}
    return result


EXAMPLES = {
    name: doctest.DocTestParser().get_doctest(
        value.__doc__, vars(module).copy(), name, module.__file__, 0
    )
    for module in MODULES
    for name, value in documented(module).items()
    if ">>>" in (value.__doc__ or "")
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_its_docstring_says(name):
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    result = runner.run(EXAMPLES[name], out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


def test_functions_under_no_grad_are_among_those_run():
    assert {"maploss.layers.box_voting.box_voting", "maploss.layers.box_iou.paired_iou"} <= {
        *EXAMPLES
    }


def test_each_public_layer_has_an_example():
    without = {
        name for name in layers.__all__ if ">>>" not in (getattr(layers, name).__doc__ or "")
    }
    assert not without
