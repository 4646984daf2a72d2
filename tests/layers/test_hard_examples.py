# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers import hard_examples
from torchvision.ops import box_iou

FAR = torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10], [0, 50, 10, 60], [50, 50, 60, 60]])
ONE_IMAGE = torch.zeros(4, dtype=torch.int64)


def reference(losses, boxes, image_ids, num, iou_thresh):
    """The worst left is taken, and all near it go, until there are enough or none."""
    left, taken = list(range(len(losses))), []
    while left and len(taken) < num:
        worst = max(left, key=lambda i: (float(losses[i]), -i))
        taken.append(worst)
        iou = box_iou(boxes[worst : worst + 1], boxes)[0]
        left = [
            i
            for i in left
            if i != worst and (image_ids[i] != image_ids[worst] or iou[i] <= iou_thresh)
        ]
    return sorted(taken)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("iou_thresh", [0.3, 0.7])
def test_it_is_the_greedy_choice(seed, iou_thresh):
    generator = torch.Generator().manual_seed(seed)
    corner = 30 * torch.rand(60, 2, generator=generator)
    boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(60, 2, generator=generator)], 1)
    losses = torch.rand(60, generator=generator)
    images = torch.randint(0, 3, (60,), generator=generator)
    for num in (1, 7, 1000):
        actual = hard_examples(losses, boxes, images, num, iou_thresh).tolist()
        assert actual == reference(losses, boxes, images, num, iou_thresh)


def test_the_worst_of_all_images_are_taken_in_rising_order():
    images = torch.tensor([0, 0, 1, 1])
    losses = torch.tensor([0.1, 3.0, 0.2, 5.0])
    assert hard_examples(losses, FAR, images, 2).tolist() == [1, 3]


def test_of_windows_at_one_place_the_worst_stays_but_not_across_images():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10]])
    losses = torch.tensor([2.0, 3.0, 1.0])
    assert hard_examples(losses, boxes, torch.tensor([0, 0, 1]), 9).tolist() == [1, 2]
    assert hard_examples(losses, boxes, torch.tensor([0, 0, 0]), 9).tolist() == [1]
    assert hard_examples(losses, boxes, torch.tensor([0, 0, 0]), 9, 1.0).tolist() == [0, 1, 2]


def test_of_equal_losses_the_first_are_taken():
    assert hard_examples(torch.ones(4), FAR, ONE_IMAGE, 2).tolist() == [0, 1]
    # More than are sorted stably by chance.
    corner = 12 * torch.arange(1500.0)[:, None]
    boxes = torch.cat([corner, corner, corner + 10, corner + 10], dim=1)
    losses = (torch.arange(1500) % 2).float()
    chosen = hard_examples(losses, boxes, torch.zeros(1500, dtype=torch.int64), 100)
    assert chosen.tolist() == list(range(1, 200, 2))


def test_there_may_be_fewer_windows_than_asked_for_or_none():
    assert hard_examples(torch.zeros(4), FAR, ONE_IMAGE, 9).tolist() == [0, 1, 2, 3]
    empty = hard_examples(torch.zeros(0), FAR[:0], ONE_IMAGE[:0], 9)
    assert empty.shape == (0,)
    assert empty.dtype == torch.int64


def test_what_cannot_be_chosen_from_is_told():
    losses = torch.zeros(4)
    with pytest.raises(ValueError, match="num: expected at least 1, got 0"):
        hard_examples(losses, FAR, ONE_IMAGE, 0)
    with pytest.raises(ValueError, match=r"iou_thresh: expected a number in \[0, 1\], got 2"):
        hard_examples(losses, FAR, ONE_IMAGE, 1, 2)
    with pytest.raises(ValueError, match=r"boxes: expected shape \(4, 4\), got \(3, 4\)"):
        hard_examples(losses, FAR[:3], ONE_IMAGE, 1)
    losses[2] = float("nan")
    with pytest.raises(FloatingPointError, match="losses: 1 of 4 not finite"):
        hard_examples(losses, FAR, ONE_IMAGE, 1)
