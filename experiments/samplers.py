# SPDX-License-Identifier: Apache-2.0
"""
The samplers of tools/search_loss.py on functions whose optimum is known.

    python -m experiments.samplers [--seeds 3]

Prints a table: the value, without noise, of the sample with the best reward, the mean over seeds,
for 10 rounds of 4 samples and 40 of 8. 41 numbers in [0, 1]; the start has value 0, the optimum
100, a normal distribution of standard deviation .2 around the start, as the functions that are
worth a search may lie. "quadratic" counts all numbers, "noisy" adds noise of standard deviation 10
to the reward, "sparse" counts 4 of the numbers. "random" draws as the policy does in its first
round. TPE needs Optuna.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from maploss.search.optuna_sampler import OptunaSampler
from maploss.search.policy import Sampler, TruncatedNormalPolicy
from tabulate import tabulate

NUM, STD, NOISE = 41, 0.2, 10.0
OBJECTIVES = {"quadratic": (NUM, 0.0), "noisy": (NUM, NOISE), "sparse": (4, 0.0)}
BUDGETS = ((10, 4), (40, 8))


class RandomSampler:
    """The policy's first round again and again."""

    def __init__(self, start: torch.Tensor, num_rounds: int, seed: int) -> None:
        self._start, self._seed = start, seed

    def sample(self, num: int, round_index: int) -> torch.Tensor:
        """As :class:`maploss.search.policy.Sampler`."""
        return TruncatedNormalPolicy(self._start, 1, STD, 1000 * self._seed + round_index).sample(
            num, 0
        )

    def update(self, samples: torch.Tensor, rewards: torch.Tensor) -> None:
        """Learns nothing."""


SAMPLERS: dict[str, Callable[[torch.Tensor, int, int], Sampler]] = {
    "policy": lambda start, rounds, seed: TruncatedNormalPolicy(start, rounds, STD, seed),
    "TPE": lambda start, rounds, seed: OptunaSampler(start, seed),
    "random": RandomSampler,
}


def search(sampler: Sampler, rounds: int, num: int, objective: str, seed: int) -> float:
    """The value of the best sample."""
    generator = torch.Generator().manual_seed(seed)
    counted, noise = OBJECTIVES[objective]
    start = torch.full((NUM,), 0.5).double()
    optimum = (start + STD * torch.randn(NUM, generator=generator)).clamp(0, 1)
    unit = (start - optimum)[:counted].square().sum()
    best, best_value = -float("inf"), 0.0
    for i in range(rounds):
        samples = sampler.sample(num, i)
        distances = (samples - optimum)[:, :counted].square().sum(dim=1)
        values = 100 * (1 - distances / unit)
        rewards = values + noise * torch.randn(num, generator=generator)
        sampler.update(samples, rewards)
        if rewards.max() > best:
            best, best_value = float(rewards.max()), float(values[rewards.argmax()])
    return best_value


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for rounds, num in BUDGETS:
        for objective in OBJECTIVES:
            cells = []
            for make in SAMPLERS.values():
                values = [
                    search(make(torch.full((NUM,), 0.5), rounds, s), rounds, num, objective, s)
                    for s in range(args.seeds)
                ]
                cells.append(f"{statistics.mean(values):.1f}")
            rows.append([f"{rounds} x {num}", objective, *cells])
    print(tabulate(rows, ["rounds x samples", "objective", *SAMPLERS], tablefmt="github"))


if __name__ == "__main__":
    main()
