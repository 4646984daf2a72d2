# SPDX-License-Identifier: Apache-2.0
"""From a folder to a config: recognise, check, count, choose, write."""

import dataclasses
import os
from collections.abc import Callable

from detectron2.data import DatasetCatalog

from ...utils.atomic_files import new_file
from ..check_dataset import check_dataset
from ..declared import register_declared_datasets
from .declare import Declared, declare, name_of
from .find_data import find_data
from .render_config import check_output, render_config
from .settings import choose_settings
from .summary import describe, merge, summarize, warnings_of

# Of each part; tools/check_dataset.py lists all.
_SHOWN_PROBLEMS = 10


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """
    output: path of the config. base: path of the config that it stands on, as it is written into
    it. model_keys: keys for the weights.
    """

    output: str
    base: str
    model_keys: dict[str, object] = dataclasses.field(default_factory=dict)


def prepare_data(path: str, options: PrepareOptions, say: Callable[[str], None]) -> None:
    """
    Recognises a data set, tells what it holds and what is wrong with it, and writes its config.

    Args:
        path: folder or file, see :func:`find_data`.
        options: what to write where.
        say: takes each line as it comes.

    Raises:
        FileNotFoundError, ValueError: none is recognised, or it cannot be trained on.
        FileExistsError: `output` is another's file.
        ImageError: an image is missing or none.
    """
    check_output(options.output)
    found = find_data(path)
    name = name_of(path)
    declared = declare(found, name)
    say(f"{path}: {found.form}")
    for note in (*declared.notes, *found.notes):
        say(f"- {note}")
    shown = ", ".join(found.classes)
    say(f"{len(found.classes)} classes: {shown[:300]}{' ..' if len(shown) > 300 else ''}")
    register_declared_datasets(declared.entries)
    _say_problems(declared, options.output, say)
    summaries = {x["NAME"]: summarize(DatasetCatalog.get(x["NAME"])) for x in declared.entries}
    for line in describe(summaries, found.classes):
        say(line)
    used = {x: summaries[x] for x in (*declared.train, *declared.test)}
    for line in warnings_of(used, found.classes, declared.train):
        say(f"warning: {line}")
    train = merge([summaries[x] for x in declared.train])
    if not train.counts:
        raise ValueError(f"{path}: none of the {train.num_images} images to train on has an object")
    settings = choose_settings(train)
    text = render_config(options.base, declared, found.classes, settings, name, options.model_keys)
    with new_file(options.output) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.write(text)
    say(
        f"{options.output}: images at {settings.min_size} pixels, {settings.minibatch} in a "
        f"minibatch, {settings.iterations} iterations, an evaluation every {settings.eval_period}"
    )


def _say_problems(declared: Declared, output: str, say: Callable[[str], None]) -> None:
    """Checks each part; the two parts of a split are one."""
    total = 0
    seen: set[str] = set()
    for entry in declared.entries:
        source = repr({x: y for x, y in entry.items() if x not in ("NAME", "PART")})
        if source in seen:
            continue
        seen.add(source)
        count = 0
        for problem in check_dataset(entry["NAME"]):
            count += 1
            if count <= _SHOWN_PROBLEMS:
                say(f"problem: {problem}")
        if count > _SHOWN_PROBLEMS:
            command = f"python tools/check_dataset.py {entry['NAME']} --config-file {output}"
            say(f"problem: .. and {count - _SHOWN_PROBLEMS} more; {command} lists all")
        total += count
    say(f"checked all images and boxes: {total or 'nothing'} wrong")


def base_path(base: str, output: str) -> str:
    """
    How a config names the one that it stands on: relative where both lie in one repository.

    Args:
        base: path of the other one, <repository>/configs/<folder>/<name>.yaml.
        output: path of the config.
    """
    base, folder = os.path.abspath(base), os.path.dirname(os.path.abspath(output))
    repository = os.path.dirname(os.path.dirname(os.path.dirname(base)))
    is_inside = os.path.commonpath([repository, folder]) == repository
    return os.path.relpath(base, folder) if is_inside else base
