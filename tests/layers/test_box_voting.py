# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers import box_voting
from torchvision.ops import box_iou

BOX = torch.tensor([[0.0, 0, 10, 10]])


def test_a_box_becomes_the_mean_of_its_voters_weighted_by_their_probabilities():
    voters = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [2, 0, 10, 10], [40, 40, 50, 50]])
    weights = torch.tensor([0.5, 0.3, 0.2, 0.9])  # the last is elsewhere
    expected = [0.2 * 2, 0, 10, 10 + 0.3 * 2]
    torch.testing.assert_close(box_voting(BOX, voters, weights.log()), torch.tensor([expected]))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_formula(seed):
    generator = torch.Generator().manual_seed(seed)
    corner = 20 * torch.rand(40, 2, generator=generator, dtype=torch.float64)
    voters = torch.cat([corner, corner + 15], 1)
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    actual = box_voting(voters[:9], voters, weights.log(), 0.4)
    for row, box in enumerate(voters[:9]):
        near = [i for i in range(40) if box_iou(box[None], voters[i : i + 1]) > 0.4]
        assert len(near) > 1
        total = sum(weights[i] for i in near)
        expected = sum(weights[i] * voters[i] for i in near) / total
        torch.testing.assert_close(actual[row], expected)


def test_a_constant_added_to_the_scores_changes_nothing_however_large():
    voters = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12]])
    scores = torch.tensor([1.0, 0.5])
    expected = box_voting(BOX, voters, scores)
    torch.testing.assert_close(box_voting(BOX, voters, scores - 3000), expected)
    torch.testing.assert_close(box_voting(BOX, voters, scores + 3000), expected)


def test_a_voter_at_the_threshold_has_no_vote():
    voters = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]])  # IoU .5
    assert box_voting(BOX, voters, torch.zeros(2)).tolist() == BOX.tolist()


def test_without_votes_boxes_stay_as_they_are():
    flat = torch.tensor([[5.0, 5, 5, 5]])  # overlaps nothing, not even itself
    assert box_voting(flat, flat, torch.zeros(1)).tolist() == flat.tolist()
    silent = torch.tensor([float("-inf")])
    assert box_voting(BOX, BOX + 0.1, silent).tolist() == BOX.tolist()
    assert box_voting(BOX, BOX[:0], torch.zeros(0)).tolist() == BOX.tolist()
    assert box_voting(BOX[:0], BOX, torch.zeros(1)).shape == (0, 4)


def test_wrong_input_is_told():
    with pytest.raises(ValueError, match=r"log_weights: expected shape \(1,\), got \(2,\)"):
        box_voting(BOX, BOX, torch.zeros(2))
    with pytest.raises(ValueError, match=r"iou_thresh: expected a number in \[0, 1\], got -1"):
        box_voting(BOX, BOX, torch.zeros(1), -1)
