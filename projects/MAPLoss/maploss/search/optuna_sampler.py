# SPDX-License-Identifier: Apache-2.0
"""
Optuna's tree-structured Parzen estimator as a sampler.

Shape letters: d numbers in [0, 1], S samples of a round.
"""

import torch


class OptunaSampler:
    """A :class:`~maploss.search.policy.Sampler`; its mean is the best sample so far."""

    def __init__(self, start: torch.Tensor, seed: int = 0) -> None:
        """
        Args:
            start: (d,), the mean before anything is known.
            seed: at least 0.

        Raises:
            ValueError: Optuna is not installed.
        """
        try:
            import optuna
        except ImportError as error:
            raise ValueError("SAMPLER optuna: expected Optuna, try: pip install optuna") from error
        self._optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space = {
            f"x{i:03}": optuna.distributions.FloatDistribution(0, 1) for i in range(len(start))
        }
        self._asked: list = []
        self._best, self._best_reward = start.double(), -float("inf")

    def mean(self) -> torch.Tensor:
        return self._best

    def sample(self, num: int, round_index: int) -> torch.Tensor:
        self._asked = [self._study.ask(self._space) for _ in range(num)]
        rows = [[trial.params[name] for name in self._space] for trial in self._asked]
        return torch.tensor(rows, dtype=torch.float64)

    def update(self, samples: torch.Tensor, rewards: torch.Tensor) -> None:
        """The last samples that were asked for, or others."""
        if self._asked:
            for trial, reward in zip(self._asked, rewards.tolist(), strict=True):
                self._study.tell(trial, reward)
        else:
            for sample, reward in zip(samples.tolist(), rewards.tolist(), strict=True):
                self._study.add_trial(
                    self._optuna.trial.create_trial(
                        params=dict(zip(self._space, sample, strict=True)),
                        distributions=self._space,
                        value=reward,
                    )
                )
        self._asked = []
        place = int(rewards.argmax())
        if float(rewards[place]) > self._best_reward:
            self._best, self._best_reward = samples[place], float(rewards[place])
