# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch
from maploss.layers import match_detections

WINDOW = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
ZERO = torch.zeros(1, dtype=torch.int64)


def test_an_overlap_of_exactly_the_threshold_is_no_match():
    half = torch.tensor([[0.0, 0.0, 10.0, 5.0]])
    more = torch.tensor([[0.0, 0.0, 10.0, 5.01]])
    assert match_detections(WINDOW, ZERO, half, ZERO).tolist() == [-1]
    assert match_detections(WINDOW, ZERO, more, ZERO).tolist() == [0]


def test_the_object_overlapped_most_wins_even_if_it_is_difficult():
    objects = torch.tensor([[0.0, 0.0, 10.0, 7.0], [0.0, 0.0, 10.0, 9.0]])
    images = torch.zeros(2, dtype=torch.int64)
    assert match_detections(WINDOW, ZERO, objects, images).tolist() == [1]
    difficult = torch.tensor([0, 1])
    assert match_detections(WINDOW, ZERO, objects, images, difficult).tolist() == [-2]
    assert match_detections(WINDOW, ZERO, objects, images, difficult.flip(0)).tolist() == [1]


def test_objects_of_other_images_do_not_match():
    assert match_detections(WINDOW, ZERO, WINDOW, ZERO + 1).tolist() == [-1]


def test_without_windows_or_objects_nothing_matches():
    none, no_ids = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert match_detections(none, no_ids, WINDOW, ZERO).shape == (0,)
    assert match_detections(WINDOW, ZERO, none, no_ids).tolist() == [-1]


def test_an_empty_box_matches_nothing():
    empty = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert match_detections(empty, ZERO, empty, ZERO).tolist() == [-1]
    both = torch.cat([empty, WINDOW])
    assert match_detections(WINDOW, ZERO, both, torch.zeros(2).long()).tolist() == [1]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"boxes": torch.zeros(1, 5)}, ValueError, r"^boxes.*\(R, 4\).*\(1, 5\)"),
        ({"image_ids": torch.zeros(2).long()}, ValueError, r"^image_ids.*\(1,\).*\(2,\)"),
        ({"gt_boxes": torch.zeros(1, 5)}, ValueError, r"^gt_boxes.*\(G, 4\).*\(1, 5\)"),
        ({"image_ids": torch.zeros(1)}, TypeError, "^image_ids.*int64"),
        ({"gt_image_ids": torch.zeros(1)}, TypeError, "^gt_image_ids.*int64"),
        ({"gt_image_ids": torch.zeros(2).long()}, ValueError, r"^gt_image_ids.*\(1,\).*\(2,\)"),
        ({"iou_thresh": 1.5}, ValueError, r"^iou_thresh.*\[0, 1\].*1.5"),
        ({"gt_difficult": torch.zeros(3)}, ValueError, r"^gt_difficult.*\(1,\).*\(3,\)"),
    ],
)
def test_bad_input_is_named(change, error, says):
    arguments = {"boxes": WINDOW, "image_ids": ZERO, "gt_boxes": WINDOW, "gt_image_ids": ZERO}
    with pytest.raises(error, match=says):
        match_detections(**{**arguments, **change})


def test_windows_are_matched_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(90, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 15], 1)
    ids = torch.arange(90) % 3
    objects = boxes[:30] + torch.randn(30, 4, generator=generator)
    whole = match_detections(boxes, ids, objects, ids[:30])
    monkeypatch.setattr(sys.modules["maploss.layers.match_detections"], "_PAIRS", 25)
    assert torch.equal(match_detections(boxes, ids, objects, ids[:30]), whole)
    assert len(whole.unique()) > 10
