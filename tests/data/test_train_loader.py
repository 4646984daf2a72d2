# SPDX-License-Identifier: Apache-2.0
"""Minibatches against Detectron2's own samplers and groups, and from the middle on."""

import itertools
import random
import re
import time

import numpy as np
import pytest
import torch
from detectron2.data import samplers
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.utils import comm
from maploss.data.images import ImageError
from maploss.data.train_loader import TrainLoader

from tests.distributed import run_ranks

RECORDS = [
    {"file_name": f"{i}", "width": 64 - 8 * (i % 3), "height": 48 + 8 * (i % 2)} for i in range(11)
]
UNREADABLE = {"3", "4", "9"}


def draw(record):
    """What an augmentation may draw from."""
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    return {**record, "drawn": drawn}


def draw_or_fail(record):
    if record["file_name"] in UNREADABLE:
        raise ImageError(f"Cannot read {record['file_name']}")
    return draw(record)


def sampler(seed):
    return samplers.TrainingSampler(len(RECORDS), seed=seed)


def loader(mapper=draw, **settings):
    defaults = {"batch_size": 2, "group_by_aspect": True, "num_workers": 0, "seed": 5}
    return TrainLoader(RECORDS, mapper=mapper, make_sampler=sampler, **{**defaults, **settings})


def first(count, of, start=0):
    of.start = start
    return list(itertools.islice(of, count))


def names(batches):
    return [[x["file_name"] for x in batch] for batch in batches]


@pytest.mark.parametrize("group", [True, False])
def test_order_and_groups_are_those_of_detectron2(group):
    stream = (RECORDS[i] for i in sampler(5))
    batches = AspectRatioGroupedDataset(stream, 2) if group else zip(stream, stream, strict=False)
    expected = names(itertools.islice(batches, 40))
    assert names(first(40, loader(group_by_aspect=group))) == expected


def test_minibatches_from_the_middle_are_the_same_with_any_number_of_workers():
    batches = first(40, loader())
    for workers, start in ((0, 0), (0, 13), (1, 20), (2, 13)):
        assert first(20, loader(num_workers=workers), start) == batches[start : start + 20]
    assert first(40, loader(seed=6)) != batches
    drawn = [x["drawn"] for batch in batches for x in batch]
    assert len(set(drawn)) == 80


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_moves_no_generator_of_the_process(workers):
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = draw({})
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    first(3, loader(num_workers=workers))
    assert draw({}) == expected


def test_passing_over_minibatches_reads_nothing_and_is_fast():
    start = time.perf_counter()
    assert len(first(1, loader(batch_size=16), 10_000)) == 1
    assert time.perf_counter() - start < 5


def test_an_unreadable_image_stops_or_is_replaced_by_the_next():
    with pytest.raises(ImageError, match="Cannot read"):
        first(20, loader(draw_or_fail))
    skipping = loader(draw_or_fail, unreadable="skip", group_by_aspect=False)
    batches = names(first(11, skipping))
    after = {"3": "5", "4": "5", "9": "10"}
    read = names(first(11, loader(group_by_aspect=False)))
    assert batches == [[after.get(x, x) for x in batch] for batch in read]
    # "3" is replaced by "4", which is unreadable too; each comes twice in 22 samples.
    assert skipping.num_skipped == 8
    assert first(11, loader(draw_or_fail, unreadable="skip", num_workers=2)) == first(
        11, loader(draw_or_fail, unreadable="skip")
    )


def test_ten_unreadable_images_in_a_row_stop(monkeypatch):
    monkeypatch.setattr(f"{__name__}.UNREADABLE", {str(i) for i in range(11)})
    with pytest.raises(ImageError, match="Cannot read"):
        first(1, loader(draw_or_fail, unreadable="skip"))


def test_records_without_a_size_cannot_be_grouped(monkeypatch):
    monkeypatch.setitem(RECORDS[2], "width", None)
    with pytest.raises(ValueError, match="Image 2: expected width and height"):
        loader()
    assert loader(group_by_aspect=False)


def slice_of_rank():
    return comm.get_rank(), first(6, loader(group_by_aspect=False, batch_size=1))


def test_ranks_share_the_samples_of_one_process():
    slices = run_ranks(slice_of_rank, 2)
    merged = [x for pair in zip(slices[0][1], slices[1][1], strict=True) for x in pair]
    assert merged == first(12, loader(group_by_aspect=False, batch_size=1))
    assert [rank for rank, _ in slices] == [0, 1]


def test_the_batch_size_is_divided_by_the_ranks(monkeypatch, tiny_cfg):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 0)  # asks the other ranks
    tiny_cfg.SOLVER.IMS_PER_BATCH = 4
    with pytest.raises(ValueError, match=re.escape("IMS_PER_BATCH: expected a multiple of 3")):
        TrainLoader(tiny_cfg, RECORDS, draw)
    tiny_cfg.SOLVER.IMS_PER_BATCH = 6
    assert len(first(1, TrainLoader(tiny_cfg, RECORDS, draw))[0]) == 2


@pytest.mark.parametrize("name", ["RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler"])
def test_other_samplers_take_the_seed(tiny_cfg, name):
    if not hasattr(samplers, name):
        pytest.skip("not in Detectron2 0.5")
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = name
    tiny_cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    tiny_cfg.SOLVER.IMS_PER_BATCH = 1
    records = [{**x, "annotations": [{"category_id": i % 3}]} for i, x in enumerate(RECORDS)]
    orders = []
    for seed in (3, 4, 3):
        made = TrainLoader(tiny_cfg, records, draw)
        made.seed = seed
        orders.append(names(first(30, made)))
    assert orders[0] == orders[2] != orders[1]
