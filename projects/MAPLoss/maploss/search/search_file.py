# SPDX-License-Identifier: Apache-2.0
"""What a search file says, checked against the config that it searches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from ..engine import load_config
from .space import Choices, Range, SearchSpace, parse_entry

SAMPLERS = ("policy", "optuna")
_REQUIRED = {"PROXY": str, "REWARD": str, "ROUNDS": int, "SAMPLES": int, "SPACE": list}
_DEFAULTS: dict[str, Any] = {
    "TARGET": "",
    "OVERRIDES": [],
    "SEED": 0,
    "STD": 0.2,
    "STUCK_LOSS": "",
    "SAMPLER": "policy",
}


@dataclass(frozen=True)
class SearchSettings:
    """
    A search: which config values to change, what tells how good they are, and how often to try.

    proxy: config file of the run that evaluates a sample. target: that of the training which the
    search is for. overrides: KEY VALUE .. of all samples.
    reward: a number of the evaluation, see :class:`~maploss.evaluation.APEvaluator`. rounds,
    samples: how many rounds, of how many samples. std: of the policy's first round. stuck_loss: see
    :func:`~maploss.search.proxy.is_stuck`. sampler: "policy" or "optuna". start: (d,) theta.
    text: the whole file.
    """

    proxy: Path
    target: Path
    reward: str
    rounds: int
    samples: int
    space: SearchSpace
    start: torch.Tensor
    overrides: list[str] = field(default_factory=list)
    seed: int = 0
    std: float = 0.2
    stuck_loss: str = ""
    sampler: str = "policy"
    text: str = ""


def read_search_file(path: Path, overrides: Sequence[str]) -> SearchSettings:
    """
    Reads a search file.

    Its keys: PROXY (a config, relative to the file), REWARD, ROUNDS, SAMPLES, SPACE (a list, see
    :func:`~maploss.search.space.parse_entry`; START of an entry is a value of its key, else that of
    the proxy's config) and, if wanted, OVERRIDES, SEED, STD, STUCK_LOSS, SAMPLER, and TARGET, the
    config that best.yaml extends; without it that is the proxy, with its OVERRIDES.

    Args:
        path: of the file.
        overrides: KEY VALUE .., after those of the file.

    Raises:
        ValueError: what is no search file, an unknown or missing key, a number out of range, an
            entry that is wrong or does not fit the proxy's config.
        OSError: no such file.
    """
    text = path.read_text()
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    try:
        given = _check_keys(given)
        proxy = (path.parent / given["PROXY"]).resolve()
        overrides = [*map(str, given["OVERRIDES"]), *overrides]
        cfg = load_config(str(proxy), overrides)
        target = (path.parent / given["TARGET"]).resolve() if given["TARGET"] else proxy
        load_config(str(target), [])
        named = [(f"SPACE[{i}]", entry) for i, entry in enumerate(given["SPACE"])]
        space = SearchSpace([parse_entry(name, entry) for name, entry in named])
        start = {
            entry.key: _start(f"{name} ({entry.key})", entry, x, cfg)
            for (name, x), entry in zip(named, space.entries, strict=True)
        }
        for name, value in _extreme_values(space):
            _check_value(name, value, str(proxy), overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    names = ("REWARD", "ROUNDS", "SAMPLES", "SEED", "STD", "STUCK_LOSS", "SAMPLER")
    settings = {name.lower(): given[name] for name in names}
    return SearchSettings(
        proxy,
        target,
        space=space,
        start=space.theta(start),
        overrides=overrides,
        text=text,
        **settings,
    )


def _check_keys(given: Any) -> dict:
    if not isinstance(given, Mapping):
        raise ValueError(f"expected a dictionary, got {type(given).__name__}")
    known = {**_REQUIRED, **{key: type(value) for key, value in _DEFAULTS.items()}}
    unknown, missing = set(given) - set(known), set(_REQUIRED) - set(given)
    if unknown:
        raise ValueError(f"expected the keys {', '.join(known)}, got {min(map(str, unknown))}")
    if missing:
        raise ValueError(f"{min(missing)}: expected a value, got none")
    given = {**_DEFAULTS, **given}
    for key, kind in known.items():
        value, kinds = given[key], (int, float) if kind is float else kind
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{key}: expected {kind.__name__}, got {value!r}")
    for key, least in (("ROUNDS", 1), ("SAMPLES", 1), ("SEED", 0)):
        if given[key] < least:
            raise ValueError(f"{key}: expected at least {least}, got {given[key]}")
    if given["SAMPLER"] == "policy" and given["SAMPLES"] < 2:
        raise ValueError("SAMPLES: expected at least 2 for SAMPLER policy, which compares, got 1")
    if not 0 < given["STD"] <= 1:
        raise ValueError(f"STD: expected a number in (0, 1], got {given['STD']}")
    if given["SAMPLER"] not in SAMPLERS:
        raise ValueError(f"SAMPLER: expected one of {', '.join(SAMPLERS)}, got {given['SAMPLER']}")
    return given


def _start(name: str, entry: Any, given: Mapping, cfg: CfgNode) -> Any:
    """The value that the search starts from."""
    own: Any = cfg
    for part in entry.key.split("."):
        if not isinstance(own, CfgNode) or part not in own:
            raise ValueError(f"{name}: expected a key of the config, got none of this name")
        own = own[part]
    value = given.get("START", own)
    try:
        entry.theta(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: START (or the config's own value): {error}") from error
    if "START" in given and isinstance(entry, Range) and not entry.low <= value <= entry.high:
        raise ValueError(
            f"{name}: START: expected a number from LOW {entry.low} to HIGH {entry.high}, "
            f"got {value}"
        )
    return value


def _extreme_values(space: SearchSpace) -> list[tuple[str, list[str]]]:
    """Of each key the ends of its range, or all choices: name and KEY VALUE."""
    found = []
    for i, entry in enumerate(space.entries):
        if isinstance(entry, Choices):
            values = list(entry.choices)
        else:
            values = [entry.value(torch.full((entry.num,), end).double()) for end in (0.0, 1.0)]
        found += [(f"SPACE[{i}]", [entry.key, repr(value)]) for value in values]
    return found


def _check_value(name: str, override: list[str], proxy: str, overrides: Sequence[str]) -> None:
    try:
        load_config(proxy, [*overrides, *override])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
