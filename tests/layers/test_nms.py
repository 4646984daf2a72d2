# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.layers import batched_nms
from maploss.layers import nms_record
from maploss.layers.box_iou import iou_of_sides, paired_iou
from maploss.layers.nms import (
    _groups_by_size,
    find_overlaps,
    keep_by_batched_nms,
    keep_by_rounds,
)

from tests.reference import ap_after_nms as reference
from tests.scenes import random_scene


def kept_by_detectron2(boxes, scores, image_ids, thresh) -> torch.Tensor:
    is_kept = torch.zeros(len(scores), dtype=torch.bool)
    is_kept[batched_nms(boxes, scores, image_ids, thresh)] = True
    return is_kept


@pytest.mark.parametrize("thresh", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("size", [30, 3000])
def test_keeps_what_batched_nms_keeps(thresh, size):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(size, 2, generator=generator) * 100
        boxes = torch.cat([corner, corner + 5 + torch.rand(size, 2, generator=generator) * 40], 1)
        boxes = boxes.round()
        scores = torch.randn(size, generator=generator)
        if seed % 2:
            scores = scores.round()
        image_ids = torch.randint(0, 4, (size,), generator=generator)
        record = nms_record(boxes, scores, image_ids, thresh)
        assert torch.equal(record.is_kept, kept_by_detectron2(boxes, scores, image_ids, thresh))


def test_an_overlap_of_exactly_the_threshold_is_judged_as_batched_nms_does():
    # IoU 30 / 100, where float32(.3) > .3, and IoU 1 / 2, which is exact.
    for inner, thresh in ((3.0, 0.3), (5.0, 0.5)):
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, inner]])
        scores, image_ids = torch.tensor([2.0, 1.0]), torch.zeros(2, dtype=torch.int64)
        record = nms_record(boxes, scores, image_ids, thresh)
        assert torch.equal(record.is_kept, kept_by_detectron2(boxes, scores, image_ids, thresh))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_suppressors_are_the_best_kept_windows_that_overlap(dtype):
    for seed in range(10):
        scene = random_scene(seed)
        scores, boxes = scene.scores.to(dtype), scene.boxes.to(dtype)
        record = nms_record(boxes, scores, scene.image_ids, 0.3)
        overlaps = reference.overlap_masks(boxes.float().numpy(), scene.image_ids.numpy(), 0.3)
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        kept = reference.greedy_nms(order, overlaps)
        for i in range(len(scores)):
            above = [k for k in kept if overlaps[i] >> k & 1]
            assert int(record.suppressor[i]) == (-1 if i in kept else above[0])


def test_classes_can_share_the_overlaps():
    scene = random_scene(3)
    overlaps = find_overlaps(scene.boxes, scene.image_ids, 0.3)
    alone = nms_record(scene.boxes, -scene.scores, scene.image_ids, 0.3)
    shared = nms_record(scene.boxes, -scene.scores, scene.image_ids, 0.3, overlaps)
    assert torch.equal(alone.suppressor, shared.suppressor)


def test_no_window_one_window_and_identical_windows():
    none = nms_record(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), 0.3)
    assert none.is_kept.shape == none.suppressor.shape == (0,)
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    one = nms_record(box, torch.ones(1), torch.zeros(1).long(), 0.3)
    assert one.is_kept.tolist() == [True]
    same = nms_record(box.repeat(3, 1), torch.ones(3), torch.tensor([0, 0, 1]), 0.3)
    assert same.is_kept.tolist() == [True, False, True]
    assert same.suppressor.tolist() == [-1, 0, -1]


def test_empty_boxes_suppress_nothing():
    boxes = torch.zeros(2, 4)
    record = nms_record(boxes, torch.ones(2), torch.zeros(2).long(), 0.3)
    assert record.is_kept.all()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"boxes": torch.zeros(2, 3)}, ValueError, r"^boxes.*\(R, 4\).*\(2, 3\)"),
        ({"scores": torch.zeros(3)}, ValueError, r"^scores.*\(2,\).*\(3,\)"),
        ({"image_ids": torch.zeros(2)}, TypeError, "^image_ids.*int64.*float32"),
        ({"iou_thresh": 1.5}, ValueError, r"^iou_thresh.*\[0, 1\].*1.5"),
        ({"scores": torch.tensor([0.0, float("inf")])}, FloatingPointError, "1 of 2"),
    ],
)
def test_bad_input_is_named(change, error, says):
    good = {
        "boxes": torch.zeros(2, 4),
        "scores": torch.zeros(2),
        "image_ids": torch.zeros(2).long(),
        "iou_thresh": 0.3,
    }
    with pytest.raises(error, match=says):
        nms_record(**{**good, **change})


def random_groups(num_groups: int, size: int, seed: int = 0):
    """Whole-pixel boxes of images in shuffled order, with a class's scores, many of them tied."""
    generator = torch.Generator().manual_seed(seed)
    count = num_groups * size
    corner = torch.randint(0, 60, (count, 2), generator=generator).float()
    sides = torch.randint(10, 40, (count, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + sides], 1)
    groups = torch.arange(num_groups).repeat(size)[torch.randperm(count, generator=generator)]
    scores = torch.randn(count, generator=generator).mul_(8).round_()
    return boxes, scores, groups


@pytest.mark.parametrize(("num_groups", "size"), [(1, 1), (3, 40), (400, 12), (2, 1500), (0, 0)])
def test_both_ways_to_nms_keep_the_same(num_groups, size):
    boxes, scores, groups = random_groups(num_groups, size)
    by_rounds = keep_by_rounds(find_overlaps(boxes, groups, 0.45), scores[:, None]).squeeze(1)
    assert torch.equal(keep_by_batched_nms(boxes, scores, groups, 0.45), by_rounds)
    if size > 1:
        assert 0 < by_rounds.sum() < len(boxes)


def test_negative_coordinates_do_not_mix_groups():
    boxes, scores, groups = random_groups(4, 50)
    kept = keep_by_batched_nms(boxes, scores, groups, 0.45)
    assert torch.equal(keep_by_batched_nms(boxes - 5000, scores, groups, 0.45), kept)


def test_batched_nms_is_never_given_so_much_that_it_loops_over_groups(monkeypatch):
    calls = []

    def look(boxes, scores, groups, thresh):
        calls.append((boxes.numel(), len(groups.unique())))
        return batched_nms(boxes, scores, groups, thresh)

    monkeypatch.setattr("maploss.layers.nms.batched_nms", look)
    keep_by_batched_nms(*random_groups(400, 12), 0.45)
    assert len(calls) < 10
    assert all(numbers <= 4000 for numbers, _ in calls)
    calls.clear()
    # A group that is too large by itself is alone.
    keep_by_batched_nms(*random_groups(2, 1500), 0.45)
    assert calls == [(6000, 1), (6000, 1)]


def test_classes_are_decided_in_parts_where_many_windows_overlap(monkeypatch):
    boxes, _, groups = random_groups(3, 40)
    overlaps = find_overlaps(boxes, groups, 0.3)
    scores = torch.randn(120, 7, generator=torch.Generator().manual_seed(1))
    whole = keep_by_rounds(overlaps, scores)
    monkeypatch.setattr("maploss.layers.nms._PAIRS", 2 * len(overlaps.first))
    assert torch.equal(keep_by_rounds(overlaps, scores), whole)
    each = [keep_by_rounds(overlaps, scores[:, c : c + 1]) for c in range(7)]
    assert torch.equal(torch.cat(each, 1), whole)


def test_overlaps_are_found_in_parts(monkeypatch):
    boxes, _, groups = random_groups(3, 40)
    whole = find_overlaps(boxes, groups, 0.3)
    monkeypatch.setattr("maploss.layers.nms._BLOCK", 300)
    parts = find_overlaps(boxes, groups, 0.3)
    pairs = [sorted(zip(x.first.tolist(), x.second.tolist(), strict=True)) for x in (whole, parts)]
    assert pairs[0] == pairs[1]
    assert all(first < second for first, second in pairs[0])


def test_overlaps_of_groups_of_any_size_are_those_of_all_pairs():
    boxes, _, _ = random_groups(3, 40)
    groups = torch.arange(120).sqrt().long()
    masks = reference.overlap_masks(boxes.float().numpy(), groups.numpy(), 0.3)
    overlaps = find_overlaps(boxes, groups, 0.3)
    found = set(zip(overlaps.first.tolist(), overlaps.second.tolist(), strict=True))
    assert len(found) == len(overlaps.first)
    assert found == {(i, j) for i in range(120) for j in range(i + 1, 120) if masks[i] >> j & 1}


def test_sides_of_boxes_are_in_one_piece_where_all_pairs_are_compared(monkeypatch):
    strides = []

    def record(sides1, sides2):
        strides.extend(x.stride(-1) for x in sides2)
        return iou_of_sides(sides1, sides2)

    monkeypatch.setattr("maploss.layers.nms.iou_of_sides", record)
    boxes, _, groups = random_groups(3, 40)
    find_overlaps(boxes, groups, 0.3)
    assert strides == [1] * 4


def test_images_of_different_numbers_of_windows_share_matrices_of_their_size():
    counts = [1, 1, 2, 3, 300, 5, 0, 280, 1]
    assert [x for x, _ in _groups_by_size(counts)] == [[2], [3], [4, 7], [5]]
    boxes, _, _ = random_groups(1, sum(counts))
    groups = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(2))]
    overlaps = find_overlaps(boxes, groups, 0.3)
    iou = paired_iou(boxes[:, None], boxes)
    is_pair = (iou > overlaps.limit) & (groups[:, None] == groups)
    expected = is_pair.triu(1).nonzero().tolist()
    pairs = torch.stack([overlaps.first, overlaps.second], 1)
    assert sorted(pairs.tolist()) == expected
    assert len(expected) > 100
