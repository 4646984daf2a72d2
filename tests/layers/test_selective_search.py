# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
from maploss.layers.selective_search import selective_search


def make_image():
    image = np.full((80, 100, 3), 200, np.uint8)
    cv2.circle(image, (30, 40), 15, (0, 0, 200), -1)
    cv2.rectangle(image, (60, 20), (90, 60), (20, 120, 20), -1)
    return image


def test_selective_search_finds_objects_and_repeats_itself():
    windows = selective_search(make_image())
    assert windows.dtype == np.float32
    assert [60, 20, 91, 61] in windows.tolist()
    assert len(np.unique(windows, axis=0)) == len(windows)
    assert np.array_equal(windows, selective_search(make_image()))


def test_unknown_mode_of_selective_search_is_an_error():
    with pytest.raises(ValueError, match=r"'fast', 'quality'.*got 'slow'"):
        selective_search(make_image(), mode="slow")


def test_an_opencv_without_it_is_told_with_the_two_commands_that_help(monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(ValueError, match=r"OpenCV .* without it") as caught:
        selective_search(make_image())
    assert "pip uninstall -y opencv-python opencv-python-headless" in str(caught.value)
    assert "pip install opencv-contrib-python-headless" in str(caught.value)
    assert "\n" not in str(caught.value)
