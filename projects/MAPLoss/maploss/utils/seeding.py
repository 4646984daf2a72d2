# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are a function of where training is, not of what came before."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_generators(*key: int, with_devices: bool = True) -> None:
    """
    Seeds the generators of Python, NumPy and torch, each with another number, from `key`.

    Args:
        key: numbers of at least 0; keys of other numbers, in another order, give other seeds, but
            zeros at the end count for nothing.
        with_devices: torch's generators of GPUs as well.
    """
    seeds = np.random.SeedSequence(key).generate_state(6)
    np.random.seed(seeds[:2])
    random.seed(seeds[2:4].tobytes())
    seed_torch = torch.manual_seed if with_devices else torch.default_generator.manual_seed
    seed_torch(int.from_bytes(seeds[4:].tobytes(), "little") >> 1)


@contextlib.contextmanager
def seeded_generators(*key: int) -> Iterator[None]:
    """As seed_generators on the CPU; afterwards the generators are where they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_generators(*key, with_devices=False)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
