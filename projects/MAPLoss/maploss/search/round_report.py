# SPDX-License-Identifier: Apache-2.0
"""
What a search writes after each round: configs, TensorBoard, pictures.

All of it follows from the record of the samples; a search that goes on writes it anew.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ..engine import load_config
from ..utils.atomic_files import new_file, remove_leftovers
from ..visualization.search_pictures import draw_functions, draw_rewards
from .record import START_ROUND, FinishedSample
from .search_file import SearchSettings


class RoundResult(NamedTuple):
    """
    A round that is finished: its samples in order, the best of all so far, and the sampler's mean
    (d,) after it.
    """

    round: int
    samples: list[FinishedSample]
    best: FinishedSample
    mean: torch.Tensor


class RoundReport:
    """Writes best.yaml, mean.yaml, tensorboard/, functions_round_*.png and rewards.png."""

    def __init__(self, settings: SearchSettings, output: Path) -> None:
        """
        Args:
            settings: what the search file says.
            output: folder of the search; what an older process has left there may go.
        """
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._settings, self._output = settings, output
        shutil.rmtree(output / "tensorboard", ignore_errors=True)
        for name in ("best.yaml", "mean.yaml", "rewards.png", "functions_round_.png"):
            remove_leftovers(str(output / name))
        self._writer = SummaryWriter(str(output / "tensorboard"))
        self._rewards: list[list[float]] = []

    def add(self, result: RoundResult) -> None:
        """Writes what there is to say after a round."""
        settings = self._settings
        self._rewards.append([sample.reward for sample in result.samples])
        self._add_scalars(result)
        best = torch.tensor(result.best.theta, dtype=torch.float64)
        for name, theta in (("best", best), ("mean", result.mean)):
            folder = str(self._output.resolve() / name)
            own = [*settings.space.overrides(theta), "OUTPUT_DIR", folder]
            with new_file(str(self._output / f"{name}.yaml")) as path:
                Path(path).write_text(config_text(settings, own, self._output))
        if result.round != START_ROUND:
            self._draw_functions(result)

    def close(self) -> None:
        """Draws the rewards of all rounds."""
        self._writer.close()
        if len(self._rewards) > 1:
            with new_file(str(self._output / "rewards.png")) as path:
                draw_rewards(path, self._rewards[0][0], self._rewards[1:], self._settings.reward)

    def _add_scalars(self, result: RoundResult) -> None:
        rewards = self._rewards[-1]
        for sample in result.samples:
            # The start is 0.
            place = sample.round * self._settings.samples + sample.index + 1
            step = 0 if sample.round == START_ROUND else place
            self._writer.add_scalar("search/reward", sample.reward, step)
        scalars = {"reward_mean": sum(rewards) / len(rewards), "reward_best": max(rewards)}
        scalars["reward_best_so_far"] = result.best.reward
        if len(rewards) > 1:
            theta = torch.tensor([sample.theta for sample in result.samples])
            scalars["std_of_samples"] = float(theta.std(dim=0).mean())
        for name, value in scalars.items():
            self._writer.add_scalar(f"search/{name}", value, result.round + 1)
        self._writer.flush()

    def _draw_functions(self, result: RoundResult) -> None:
        path = self._output / f"functions_round_{result.round:03}.png"
        if path.exists():
            return
        space = self._settings.space
        best = max(result.samples, key=lambda sample: sample.reward)
        functions = {
            "mean": space.functions(result.mean),
            f"best of the round, {self._settings.reward} {best.reward:.2f}": space.functions(
                torch.tensor(best.theta, dtype=torch.float64)
            ),
        }
        if functions["mean"]:
            with new_file(str(path)) as temporary:
                draw_functions(temporary, functions, f"after round {result.round}")


def config_text(settings: SearchSettings, overrides: Sequence[str], folder: Path) -> str:
    """
    A config for train_net.py, as yaml: the target's, with a sample's overrides. Where the proxy is
    the target, with those of the search too, so that it repeats the sample.

    Args:
        settings: what the search file says.
        overrides: KEY VALUE .. of the sample.
        folder: where the file will lie, to which the path of the target's config is relative.
    """
    is_proxy = settings.target == settings.proxy
    all_overrides = [*(settings.overrides if is_proxy else []), *overrides]
    cfg = load_config(str(settings.target), all_overrides)
    content: dict[str, Any] = {"_BASE_": os.path.relpath(settings.target, folder.resolve())}
    for key in dict.fromkeys(all_overrides[::2]):
        *parents, name = key.split(".")
        value: Any = cfg
        for part in (*parents, name):
            value = value[part]
        node = content
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = value
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
