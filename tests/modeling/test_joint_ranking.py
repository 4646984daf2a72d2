# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers import map_loss
from maploss.modeling.joint_ranking import JointRanking, LossInputs


def inputs_of_pass(seed: int, num_windows: int) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_windows, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 20], 1)
    return LossInputs(
        torch.randn(num_windows, 3, generator=generator, requires_grad=True),
        boxes,
        torch.arange(num_windows) % 2,
        boxes[:2] + 1,
        torch.tensor([0, seed % 3]),
        torch.tensor([0, 1]),
        torch.tensor([False, False]),
    )


def loss(inputs: LossInputs) -> dict:
    return {"loss_map": map_loss(*inputs)[0], "loss_score_reg": 0.1 * inputs.scores.square().sum()}


def test_passes_have_the_gradient_of_all_and_its_value():
    passes = [inputs_of_pass(0, 12), inputs_of_pass(1, 20)]
    joint = JointRanking()
    for inputs in passes:
        joint.collect(inputs, num_images=2)
    assert not joint.is_ranked
    joint.rank(loss)
    assert joint.is_ranked
    assert joint.mean_num_windows == 16
    joined = LossInputs(*(torch.cat(x) for x in zip(*passes, strict=True)))
    ids = torch.cat([passes[0].image_ids, passes[1].image_ids + 2])
    joined = joined._replace(image_ids=ids, gt_image_ids=torch.arange(4))
    expected = loss(joined)
    sum(expected.values()).backward()
    wanted = [x.scores.grad.clone() for x in passes]
    for inputs, gradient in zip(passes, wanted, strict=True):
        inputs.scores.grad = None
        losses = joint.next_losses(inputs.scores)
        assert float(losses["loss_map"].detach()) == pytest.approx(float(expected["loss_map"]))
        assert float(losses["loss_score_reg"]) == pytest.approx(float(expected["loss_score_reg"]))
        # The mean over the passes.
        (sum(losses.values()) / 2).backward()
        torch.testing.assert_close(inputs.scores.grad, gradient)


def test_other_windows_in_the_second_round_are_noticed():
    joint = JointRanking()
    joint.collect(inputs_of_pass(0, 12), num_images=2)
    joint.rank(loss)
    with pytest.raises(RuntimeError, match=r"first round, \(12, 3\), got others, \(13, 3\)"):
        joint.next_losses(inputs_of_pass(0, 13).scores)
    with pytest.raises(RuntimeError, match="expected those of the first round"):
        joint.next_losses(inputs_of_pass(1, 12).scores)
    joint.next_losses(inputs_of_pass(0, 12).scores * (1 + 1e-4))


def test_a_pass_without_windows_takes_part():
    joint = JointRanking()
    passes = [
        inputs_of_pass(0, 12),
        inputs_of_pass(1, 0)._replace(
            gt_boxes=torch.zeros(0, 4),
            gt_classes=torch.zeros(0, dtype=torch.int64),
            gt_image_ids=torch.zeros(0, dtype=torch.int64),
            gt_difficult=torch.zeros(0) > 0,
        ),
    ]
    for inputs in passes:
        joint.collect(inputs, num_images=2)
    joint.rank(loss)
    for inputs in passes:
        sum(joint.next_losses(inputs.scores).values()).backward()
    assert passes[0].scores.grad.abs().sum() > 0
