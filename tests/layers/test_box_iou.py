# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers.box_iou import paired_iou
from torchvision.ops import box_iou, nms


def random_boxes(num, seed, dtype=torch.float32, size=60.0):
    generator = torch.Generator().manual_seed(seed)
    corner = size * torch.rand(num, 2, generator=generator, dtype=dtype)
    extent = size * torch.rand(num, 2, generator=generator, dtype=dtype)
    return torch.cat([corner, corner + extent], dim=1)


def test_pairs_have_the_iou_counted_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]])
    others = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [5, 5, 5, 5]])
    torch.testing.assert_close(paired_iou(boxes, others), torch.tensor([1, 1 / 3, 0, 0]))


def test_it_is_the_share_of_pixels_that_two_boxes_of_whole_pixels_have_in_common():
    boxes = random_boxes(20, 0, size=12.0).round()
    pixels = torch.arange(24)
    masks = [
        ((pixels >= y1) & (pixels < y2))[:, None] & ((pixels >= x1) & (pixels < x2))
        for x1, y1, x2, y2 in boxes
    ]
    for a, mask_a in zip(boxes, masks, strict=True):
        for b, mask_b in zip(boxes, masks, strict=True):
            expected = int((mask_a & mask_b).sum()) / max(int((mask_a | mask_b).sum()), 1)
            assert paired_iou(a, b).item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_broadcasts_and_is_bit_for_bit_that_of_torchvision(dtype):
    boxes, others = random_boxes(50, 1, dtype), random_boxes(70, 2, dtype)
    expected = box_iou(boxes, others)
    assert torch.equal(paired_iou(boxes[:, None], others), expected)
    assert torch.equal(paired_iou(boxes[:50], others[:50]), expected[:, :50].diagonal())
    assert paired_iou(boxes, others[:1]).dtype == dtype


@pytest.mark.parametrize("seed", range(5))
def test_two_boxes_suppress_each_other_at_no_threshold_below_their_iou(seed):
    for pair in random_boxes(200, seed).view(-1, 2, 4):
        iou = paired_iou(*pair).item()
        for thresh, num_kept in ((iou, 2), (iou * (1 - 1e-6), 1)):
            if iou > 0:
                assert len(nms(pair, torch.tensor([1.0, 0.5]), thresh)) == num_kept


def test_it_is_never_above_1_and_is_1_for_a_box_with_itself():
    boxes = random_boxes(2000, 3, size=1e3)
    near = torch.nextafter(boxes, boxes + 1)
    assert (paired_iou(boxes, boxes) == 1).all()
    iou = paired_iou(boxes, near)
    assert (iou <= 1).all()
    assert (iou > 0.99).all()


@pytest.mark.parametrize(
    "box",
    [[5, 5, 5, 5], [5, 0, 5, 9], [5, 5, 5 + 1e-30, 5 + 1e-30], [float("nan")] * 4, [1e30] * 4],
)
def test_boxes_without_area_and_boxes_that_are_none_overlap_nothing_not_even_themselves(box):
    box = torch.tensor(box, dtype=torch.float32)
    assert paired_iou(box, box) == 0
    assert paired_iou(box, torch.tensor([0.0, 0, 10, 10])) == 0


def test_no_boxes_give_no_overlaps_and_the_boxes_stay_as_they_are():
    assert paired_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    assert paired_iou(torch.zeros(0, 1, 4), torch.zeros(7, 4)).shape == (0, 7)
    boxes, others = random_boxes(5, 4), random_boxes(5, 5)
    before = boxes.clone(), others.clone()
    paired_iou(boxes, others)
    assert torch.equal(boxes, before[0])
    assert torch.equal(others, before[1])
