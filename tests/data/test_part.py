# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from maploss.data.part import take_part


def make_records(names):
    return [{"file_name": f"/data/{name}"} for name in names]


@pytest.mark.parametrize("cuts", [(0, 0.8, 1), (0, 0.1, 0.33, 0.5, 1)])
def test_parts_have_all_images_once_in_their_order(cuts):
    records = make_records(f"{i}.jpg" for i in range(103))
    parts = [take_part(records, *x) for x in itertools.pairwise(cuts)]
    assert sorted((x for part in parts for x in part), key=records.index) == records
    for part in parts:
        assert part == sorted(part, key=records.index)
    assert len(parts[0]) == round(cuts[1] * 103)


def test_each_part_of_two_images_or_more_has_one():
    for count in (2, 3, 5):
        records = make_records(f"{i}.jpg" for i in range(count))
        assert take_part(records, 0, 0.99)
        assert take_part(records, 0.99, 1)


def test_a_new_image_hardly_moves_the_others():
    names = [f"{i}.jpg" for i in range(200)]
    before = {x["file_name"] for x in take_part(make_records(names), 0, 0.8)}
    after = {x["file_name"] for x in take_part(make_records([*names, "new.jpg"]), 0, 0.8)}
    assert len(before ^ after) <= 2


def test_changed_copies_of_an_image_stay_together():
    records = make_records(f"{i}_jpg.rf.{k}.jpg" for i in range(20) for k in "abc")
    train, val = take_part(records, 0, 0.8), take_part(records, 0.8, 1)
    assert (len(train), len(val)) == (48, 12)
    sources = [{x["file_name"].partition(".rf.")[0] for x in part} for part in (train, val)]
    assert not sources[0] & sources[1]
