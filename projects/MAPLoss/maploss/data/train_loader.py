# SPDX-License-Identifier: Apache-2.0
"""Minibatches for training that begin anywhere: at the first, or where a run was killed."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetFromList, samplers
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.utils import comm
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from ..utils.seeding import seeded_generators
from ..utils.warn_once import warn_once
from .images import ImageError
from .large_images import warn_of_large_images

logger = logging.getLogger(__name__)

# Of the random numbers of a sample, apart from those of other uses of the same seed.
_SAMPLE = 1
# So many unreadable images in a row are no accident.
_MAX_SKIPPED = 10


class TrainLoader:
    """
    Detectron2's training loader whose n-th minibatch is a function of seed, n and rank alone.

    Order, groups of landscape and portrait images, and slices of the ranks are those of Detectron2,
    but made of indices, so that minibatches are passed over without reading an image. Each sample
    has random numbers of its own, whatever the number of workers.

    An iteration reads `seed` and `start`, the number of minibatches to pass over, at its first
    minibatch. `num_skipped` counts the unreadable images of this process that others have replaced.
    """

    @configurable
    def __init__(
        self,
        records: Sequence[dict],
        *,
        mapper: Callable[[dict], dict],
        make_sampler: Callable[[int], Iterable[int]],
        batch_size: int,
        group_by_aspect: bool,
        num_workers: int,
        seed: int,
        unreadable: str = "stop",
    ) -> None:
        """
        Args:
            records: Detectron2's dataset dicts.
            mapper: what makes a sample of one.
            make_sampler: from a seed to endless indices of records, those of this rank.
            batch_size: images of this rank.
            group_by_aspect: landscapes, or all others, in a minibatch.
            num_workers: 0 = in this process.
            seed: of the order of the images and of what the mapper draws.
            unreadable: what an ImageError of the mapper does, "stop", or "skip": the next image
                that can be read takes its place.

        Raises:
            ValueError: another `unreadable`, or records without width and height to group by.
        """
        if unreadable not in ("stop", "skip"):
            raise ValueError(
                f'DATALOADER.UNREADABLE_IMAGES: expected "stop" or "skip", got {unreadable!r}'
            )
        self._samples = _Samples(records, mapper, max_skipped=_MAX_SKIPPED * (unreadable == "skip"))
        self._is_landscape = [group_by_aspect and _is_landscape(x) for x in records]
        self._make_sampler = make_sampler
        self._batch_size = batch_size
        self._num_workers = num_workers
        self.seed = seed
        self.start = 0
        self.num_skipped = 0

    @classmethod
    def from_config(
        cls, cfg: CfgNode, records: Sequence[dict], mapper: Callable[[dict], dict]
    ) -> dict:
        """
        Arguments of the constructor, from DATALOADER, SOLVER.IMS_PER_BATCH and SEED.

        All ranks have to call it: they share a random seed where SEED is negative.
        """
        # Samplers by data set read these anew, and windows are of no use to them.
        without_windows = cfg.clone()
        without_windows.defrost()
        without_windows.MODEL.LOAD_PROPOSALS = False
        # And nothing but the sampler is kept, so that the records can be let go once serialised.
        sampler = _train_loader_from_config(without_windows, mapper, dataset=records)["sampler"]
        num_records, world_size = len(records), comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH <= 0 or cfg.SOLVER.IMS_PER_BATCH % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH: expected a multiple of {world_size}, the number of "
                f"processes, got {cfg.SOLVER.IMS_PER_BATCH}"
            )

        def make_sampler(seed: int) -> Iterable[int]:
            if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
                ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
                return samplers.RandomSubsetTrainingSampler(
                    num_records, ratio, seed_shuffle=seed, seed_subset=seed
                )
            sampler._seed = seed  # all others read it when they begin
            return sampler

        return {
            "records": records,
            "mapper": mapper,
            "make_sampler": make_sampler,
            "batch_size": cfg.SOLVER.IMS_PER_BATCH // world_size,
            "group_by_aspect": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            "num_workers": cfg.DATALOADER.NUM_WORKERS,
            "seed": cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
            "unreadable": cfg.DATALOADER.UNREADABLE_IMAGES,
        }

    def __iter__(self) -> Iterator[list[dict]]:
        self._samples.seed = self.seed
        loader = DataLoader(
            self._samples,
            batch_sampler=itertools.islice(self._batches(), self.start, None),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            # Its own: what it draws to start workers must not move the numbers of training.
            generator=Generator(),
        )
        for batch in loader:
            self._count_skipped(batch)
            warn_of_large_images(batch)
            yield batch

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Endless lists of (position in the order of all ranks, index of a record)."""
        buckets: tuple[list, list] = ([], [])
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        for sample in zip(positions, self._make_sampler(self.seed), strict=False):
            bucket = buckets[self._is_landscape[sample[1]]]
            bucket.append(sample)
            if len(bucket) == self._batch_size:
                yield bucket[:]
                bucket.clear()

    def _count_skipped(self, batch: list[dict]) -> None:
        # Here and not where it is read: workers do not know of each other.
        for sample in batch:
            for reason in sample.pop("skipped", ()):
                self.num_skipped += 1
                warn_once(logger, f"{reason}; another image is trained on in its place")


class _Samples(Dataset):
    """From (position, index of a record) to what the mapper makes of it."""

    def __init__(
        self, records: Sequence[dict], mapper: Callable[[dict], dict], max_skipped: int
    ) -> None:
        # Serialised, as in Detectron2, so that workers share its memory.
        self._records = DatasetFromList(records, copy=False)
        self._mapper = mapper
        self._max_skipped = max_skipped
        self.seed = 0

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: tuple[int, int]) -> dict:
        position, index = place
        skipped: list[str] = []
        with seeded_generators(self.seed, _SAMPLE, position):
            while True:
                record = self._records[(index + len(skipped)) % len(self._records)]
                try:
                    sample = self._mapper(record)
                except ImageError as error:
                    if len(skipped) == self._max_skipped:
                        raise
                    skipped.append(error.reason())
                    continue
                return {**sample, "skipped": skipped} if skipped else sample


def _is_landscape(record: dict) -> bool:
    if None in (record.get("width"), record.get("height")):
        raise ValueError(
            f"Image {record['file_name']}: expected width and height in its record, by which "
            "DATALOADER.ASPECT_RATIO_GROUPING groups, got none"
        )
    return record["width"] > record["height"]
