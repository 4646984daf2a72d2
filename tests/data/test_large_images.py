# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from maploss.data.large_images import warn_of_large_images
from maploss.data.views import View
from maploss.utils import warn_once


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch, caplog):
    monkeypatch.setattr(warn_once, "_given", set())
    caplog.set_level(logging.WARNING)


def make_batch(*sides):
    return [
        {"image": torch.empty(3, x, 2 * x), "file_name": f"{i}.jpg"} for i, x in enumerate(sides)
    ]


def test_an_image_far_larger_than_the_median_is_told_once_with_its_size(caplog):
    warn_of_large_images(make_batch(10, 10, 30, 10))
    (record,) = caplog.records
    assert "2.jpg: 60 x 30 pixels, 9.0 times the median" in record.message
    assert "INPUT.MIN_SIZE_TRAIN" in record.message
    warn_of_large_images(make_batch(10, 10, 40, 10))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("sides", [(10, 10, 20), (30,), (5, 30, 30)])
def test_images_of_about_one_size_are_no_warning(caplog, sides):
    warn_of_large_images(make_batch(*sides))
    assert not caplog.records


def test_images_that_are_not_read_count_by_their_views(caplog):
    batch = [{"view": View(f"{i}.jpg", x, x)} for i, x in enumerate((10, 10, 50))]
    warn_of_large_images(batch)
    assert "50 x 50 pixels, 25.0 times" in caplog.text
