# SPDX-License-Identifier: Apache-2.0
"""
Samplers of a search: where it looks next, and what it learns from the rewards.

Shape letters: d numbers in [0, 1], S samples of a round.
"""

import math
from typing import Protocol

import numpy as np
import torch

# Published: 100 steps of Adam a round, lr .01, importance ratios clipped at .1.
_NUM_STEPS = 100
_LR = 0.01
_RATIO_CLIP = 0.1
# The published warm-up's length is not told.
_WARMUP_STEPS = 10


class Sampler(Protocol):
    """
    Draws samples and learns from their rewards.

    The same calls in the same order give the same samples: a search that was stopped is gone
    through again.
    """

    def sample(self, num: int, round_index: int) -> torch.Tensor:
        """(num, d) float64 in [0, 1], the samples of a round, counted from 0."""

    def update(self, samples: torch.Tensor, rewards: torch.Tensor) -> None:
        """Learns from samples (S, d) and their rewards (S,), higher is better."""

    def mean(self) -> torch.Tensor:
        """(d,) float64: where the sampler looks now."""


class TruncatedNormalPolicy:
    """
    Independent normal distributions cut to [0, 1], their means moved by PPO.

    A round's standard deviation falls linearly: std (1 - round / rounds). Means are held as logits.
    With ratios q = p_new / p_old of each number and advantages A = reward - mean reward of the
    round, each round maximises the mean of min(q A, clip(q, .9, 1.1) A) by Adam
    (Tao et al., "Searching Parameterized AP Loss for Object Detection", NeurIPS 2021).
    """

    def __init__(
        self, start: torch.Tensor, num_rounds: int, std: float = 0.2, seed: int = 0
    ) -> None:
        """
        Args:
            start: (d,) the first means, inside (0, 1).
            num_rounds: at least 1.
            std: of the first round, above 0.
            seed: at least 0.

        Raises:
            ValueError: a start at 0 or 1 or beyond, another number out of its range.
        """
        if start.dim() != 1 or not bool(((start > 0) & (start < 1)).all()):
            raise ValueError(f"start: expected shape (d,) inside (0, 1), got {start}")
        if num_rounds < 1:
            raise ValueError(f"num_rounds: expected at least 1, got {num_rounds}")
        if not 0 < std < math.inf:
            raise ValueError(f"std: expected a finite number above 0, got {std}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self._logits = torch.logit(start.double())
        self._num_rounds, self._first_std, self._seed = num_rounds, std, seed
        self._std = std

    def mean(self) -> torch.Tensor:
        return torch.sigmoid(self._logits)

    def sample(self, num: int, round_index: int) -> torch.Tensor:
        """
        The samples of a round, the same for the same seed, round and mean.

        Raises:
            ValueError: no such round.
        """
        if not 0 <= round_index < self._num_rounds:
            raise ValueError(
                f"round_index: expected 0 to {self._num_rounds - 1}, got {round_index}"
            )
        self._std = self._first_std * (1 - round_index / self._num_rounds)
        rng = np.random.default_rng([self._seed, round_index])
        share = torch.from_numpy(rng.random((num, len(self._logits))))
        mean = self.mean()
        below, above = (torch.special.ndtr((end - mean) / self._std) for end in (0, 1))
        z = torch.special.ndtri(below + share * (above - below))
        return (mean + self._std * z).clamp(0, 1)

    def update(self, samples: torch.Tensor, rewards: torch.Tensor) -> None:
        """Moves the means; `samples` are of the last round drawn, or one that cannot say more."""
        advantage = (rewards - rewards.mean())[:, None]
        logits = self._logits.clone().requires_grad_()
        old = log_density(samples, self.mean(), self._std)
        optimizer = torch.optim.Adam([logits], lr=_LR)
        for step in range(_NUM_STEPS):
            optimizer.param_groups[0]["lr"] = _LR * min(1.0, (step + 1) / _WARMUP_STEPS)
            ratio = (log_density(samples, logits.sigmoid(), self._std) - old).exp()
            clipped = ratio.clamp(1 - _RATIO_CLIP, 1 + _RATIO_CLIP)
            loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self._logits = logits.detach()


def log_density(x: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    """
    Log density of a normal distribution cut to [0, 1].

    With the mean inside, [0, 1] holds so much of the whole that nothing cancels.

    Args:
        x: (..., d) in [0, 1].
        mean: (d,) in [0, 1], of the distribution before the cut.
        std: above 0, of the same distribution.

    Returns:
        (..., d).
    """
    z = (x - mean) / std
    mass = torch.special.ndtr((1 - mean) / std) - torch.special.ndtr(-mean / std)
    return -0.5 * z**2 - math.log(std * math.sqrt(2 * math.pi)) - mass.log()
