# SPDX-License-Identifier: Apache-2.0
"""The record of a search: all that it has to know to go on, a line for each finished sample."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

# The start is evaluated before round 0.
START_ROUND = -1


@dataclass(frozen=True)
class FinishedSample:
    """
    A sample and what came of it.

    round: from 0, -1 for the start. index: in its round, from 0. theta: its numbers in [0, 1].
    overrides: KEY VALUE .., beside the proxy's config file. seconds: of the evaluation. error: why
    there is no reward (which then is the worst), None if there is one.
    """

    round: int
    index: int
    theta: list[float]
    overrides: list[str]
    reward: float
    seconds: float
    error: str | None


class Record:
    """
    samples.jsonl: read at the start, then only appended to, on disk after each sample.

    A process that is killed while it writes leaves half a line at the end, which is dropped.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: need not exist.

        Raises:
            ValueError: a whole line that is no sample.
        """
        self._path = path
        self.samples: dict[tuple[int, int], FinishedSample] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode().splitlines(), start=1):
            try:
                sample = FinishedSample(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a sample, got {line[:80]!r}"
                ) from error
            self.samples[sample.round, sample.index] = sample
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def append(self, sample: FinishedSample) -> None:
        """Adds a sample; returns when it is on disk."""
        with open(self._path, "a") as f:
            f.write(json.dumps(asdict(sample)) + "\n")
            f.flush()
            os.fsync(f.fileno())
        self.samples[sample.round, sample.index] = sample

    def best(self, until: int) -> FinishedSample:
        """The sample of the highest reward up to a round, the first of equals."""
        known = [self.samples[key] for key in sorted(self.samples) if key[0] <= until]
        return max(known, key=lambda sample: sample.reward)
