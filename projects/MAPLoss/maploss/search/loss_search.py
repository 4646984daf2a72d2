# SPDX-License-Identifier: Apache-2.0
"""
The search for a loss: rounds of samples, each a short training (Tao et al., NeurIPS 2021).

Shape letters: d numbers in [0, 1], S samples of a round.
"""

import contextlib
import fcntl
import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from ..engine import load_config
from ..utils.atomic_files import new_file
from .optuna_sampler import OptunaSampler
from .policy import Sampler, TruncatedNormalPolicy
from .proxy import Proxy, Sample, TrainingProxy
from .record import START_ROUND, FinishedSample, Record
from .round_report import RoundReport, RoundResult
from .search_file import SearchSettings

logger = logging.getLogger(__name__)

# Of a sample without a result: no AP is less.
WORST_REWARD = 0.0


def search_loss(
    settings: SearchSettings, output: Path, command: Sequence[str], num_workers: int = 1
) -> FinishedSample:
    """
    A whole search, or the rest of one that was stopped, even by a kill.

    Args:
        settings: what the search file says.
        output: folder of the search; what is there already is gone on with.
        command: runs a config, see :class:`~maploss.search.proxy.TrainingProxy`.
        num_workers: samples at once.

    Returns:
        The best sample, the start among them.

    Raises:
        ValueError: the search in `output` began with other settings or with another config of the
            proxy; its start has no result; Optuna is not installed; num_workers below 1.
        BlockingIOError: another process is at it.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers: expected at least 1, got {num_workers}")
    proxy_config = load_config(str(settings.proxy), settings.overrides).dump()
    with _search_folder(output, {"search.yaml": settings.text, "proxy_config.yaml": proxy_config}):
        proxy = TrainingProxy(
            [*command, *settings.overrides],
            output,
            settings.reward,
            settings.stuck_loss,
            num_workers,
        )
        record = Record(output / "samples.jsonl")
        sampler = make_sampler(settings)
        report = RoundReport(settings, output)
        try:
            return LossSearch(settings, sampler, proxy, record, num_workers).run(report.add)
        finally:
            report.close()


def make_sampler(settings: SearchSettings) -> Sampler:
    """The sampler that a search file asks for."""
    if settings.sampler == "optuna":
        return OptunaSampler(settings.start, settings.seed)
    return TruncatedNormalPolicy(settings.start, settings.rounds, settings.std, settings.seed)


class LossSearch:
    """
    Evaluates the start, then round by round what the sampler draws, and lets it learn.

    The record is the only state: rounds in it are gone through again without an evaluation, which
    brings the sampler to where it was.
    """

    def __init__(
        self,
        settings: SearchSettings,
        sampler: Sampler,
        proxy: Proxy,
        record: Record,
        num_workers: int = 1,
    ) -> None:
        """
        Args:
            settings: what the search file says.
            sampler: new.
            proxy: evaluates a sample.
            record: of samples that are done; more are added.
            num_workers: how many samples are evaluated at once.
        """
        self._settings, self._sampler = settings, sampler
        self._proxy, self._record = proxy, record
        self._num_workers = num_workers
        self._free_workers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for worker in range(num_workers):
            self._free_workers.put(worker)

    def run(self, report: Callable[[RoundResult], None]) -> FinishedSample:
        """
        All rounds.

        Args:
            report: called after each round, with those of the record too, and after the start.

        Returns:
            The best sample, the start among them.

        Raises:
            ValueError: the record is that of another search; the start has no result (which is not
                recorded, so that the search can begin anew).
        """
        pool = ThreadPoolExecutor(self._num_workers)
        try:
            for round_index in range(START_ROUND, self._settings.rounds):
                samples = self._run_round(pool, self._draw(round_index))
                theta = torch.tensor([sample.theta for sample in samples], dtype=torch.float64)
                rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
                self._sampler.update(theta, rewards)
                best = self._record.best(until=round_index)
                report(RoundResult(round_index, samples, best, self._sampler.mean()))
                logger.info(
                    f"{_name(round_index)}: reward {float(rewards.mean()):.3f} in the mean, "
                    f"{float(rewards.max()):.3f} at best; best so far {best.reward:.3f}"
                )
        except BaseException:
            # Else the end of the pool would wait for all that runs.
            self._proxy.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return best

    def _draw(self, round_index: int) -> list[Sample]:
        if round_index == START_ROUND:
            drawn = self._settings.start[None]
        else:
            drawn = self._sampler.sample(self._settings.samples, round_index)
        overrides = self._settings.space.overrides
        return [Sample(round_index, i, theta, overrides(theta)) for i, theta in enumerate(drawn)]

    def _run_round(self, pool: ThreadPoolExecutor, samples: list[Sample]) -> list[FinishedSample]:
        done, keys = self._record.samples, [(sample.round, sample.index) for sample in samples]
        for sample, key in zip(samples, keys, strict=True):
            if key in done and not self._is_of(done[key], sample):
                raise ValueError(
                    f"{_name(sample.round)}, sample {sample.index}: the record has other numbers "
                    "or overrides than this search draws; it began with other settings or another "
                    "version"
                )
        to_do = [x for x, key in zip(samples, keys, strict=True) if key not in done]
        running = {pool.submit(self._evaluate, sample) for sample in to_do}
        while running:
            # Not for ever: a signal may come to another thread, and this one has to see it.
            finished, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            # Only this thread writes: what runs when it is interrupted is not recorded.
            for future in finished:
                evaluated = future.result()
                if evaluated.round == START_ROUND and evaluated.error:
                    raise ValueError(f"The start has no result, as others will: {evaluated.error}")
                self._record.append(evaluated)
        return [done[key] for key in keys]

    def _is_of(self, finished: FinishedSample, sample: Sample) -> bool:
        return finished.theta == sample.theta.tolist() and finished.overrides == [
            *self._settings.overrides,
            *sample.overrides,
        ]

    def _evaluate(self, sample: Sample) -> FinishedSample:
        worker, begin = self._free_workers.get(), time.monotonic()
        reward, error = WORST_REWARD, None
        try:
            reward = self._proxy(sample, worker)
        except Exception as failure:  # whatever it is, the search goes on
            error = str(failure) or type(failure).__name__
            logger.warning(f"{_name(sample.round)}, sample {sample.index} failed: {error}")
        finally:
            self._free_workers.put(worker)
        return FinishedSample(
            round=sample.round,
            index=sample.index,
            theta=sample.theta.tolist(),
            overrides=[*self._settings.overrides, *sample.overrides],
            reward=reward,
            seconds=time.monotonic() - begin,
            error=error,
        )


@contextlib.contextmanager
def _search_folder(output: Path, files: dict[str, str]) -> Iterator[None]:
    """
    The folder of a search, locked: the lock ends with the process, however it ends. `files`, by
    name, are what a search must not begin with one and go on with another.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{output}: another process is searching here") from None
        for name, text in files.items():
            copy = output / name
            if not copy.exists():
                with new_file(str(copy)) as path:
                    Path(path).write_text(text)
            elif copy.read_text() != text:
                raise ValueError(f"{copy}: the search here began with another; take another folder")
        yield


def _name(round_index: int) -> str:
    return "Start" if round_index == START_ROUND else f"Round {round_index}"
