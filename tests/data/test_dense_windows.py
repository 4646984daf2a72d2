# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from maploss.data.dense_windows import dense_windows


def test_an_image_of_voc_has_about_45000_windows_and_all_lie_in_it():
    windows = dense_windows(500, 375)
    assert 36_000 < len(windows) < 54_000
    assert windows.dtype == np.float32
    assert windows.min() >= 0
    assert (windows[:, 2:] <= [500, 375]).all()
    assert (windows[:, 2:] > windows[:, :2]).all()


@pytest.mark.parametrize("side", [20, 28, 57, 113, 160, 320])
def test_a_square_anywhere_overlaps_a_window_by_more_than_a_half(side):
    rng = np.random.default_rng(side)
    corner = rng.uniform(0, [500 - side, 375 - side], (50, 2))
    boxes = torch.tensor(np.concatenate([corner, corner + side], 1), dtype=torch.float32)
    iou = pairwise_iou(Boxes(boxes), Boxes(torch.from_numpy(dense_windows(500, 375))))
    assert iou.amax(1).min() > 0.5


def test_the_first_ones_are_a_sample_of_all_sizes_and_the_same_at_every_call():
    windows = dense_windows(500, 375)
    widths = windows[:, 2] - windows[:, 0]
    assert abs(widths[:5000].mean() / widths.mean() - 1) < 0.05
    assert np.array_equal(windows, dense_windows(500, 375))


@pytest.mark.parametrize("limit", [1, 10, 500, 2000, 10_000])
def test_a_limit_holds_and_the_image_itself_stays(limit):
    windows = dense_windows(500, 375, limit)
    assert 0.8 * limit < len(windows) <= limit
    if limit > 100:
        assert [0, 0, 500, 375] in windows.tolist()
    assert windows.min() >= 0
    assert (windows[:, 2:] <= [500, 375]).all()
    assert np.array_equal(windows, dense_windows(500, 375, limit))


def test_a_limit_above_all_windows_changes_nothing():
    assert np.array_equal(dense_windows(500, 375, 10**6), dense_windows(500, 375))


@pytest.mark.parametrize("side", [57, 113, 160, 320])
def test_thinned_windows_cover_objects_that_a_random_sample_misses(side):
    rng = np.random.default_rng(side)
    corner = rng.uniform(0, [500 - side, 375 - side], (200, 2))
    boxes = torch.tensor(np.concatenate([corner, corner + side], 1), dtype=torch.float32)

    def recall(windows):
        iou = pairwise_iou(Boxes(boxes), Boxes(torch.from_numpy(windows)))
        return (iou.amax(1) >= 0.5).float().mean()

    thinned, sample = dense_windows(500, 375, 2000), dense_windows(500, 375)[:2000]
    assert recall(thinned) > recall(sample) + 0.2
    assert recall(thinned) > 0.75


def test_an_image_smaller_than_every_window_is_a_window_itself():
    assert dense_windows(10, 8).tolist() == [[0, 0, 10, 8]]
