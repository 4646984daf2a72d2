# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from maploss.layers import MAPLoss, MAPLossSettings, map_loss
from maploss.modeling import MAPOutputLayers
from maploss.modeling.gradient_cache import BoxTargets, GradientCache, LossInputs
from maploss.modeling.hard_example_mining import sparsify_gradient
from maploss.modeling.output_layers import BoxPredictions


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


def losses_of(inputs: LossInputs) -> dict:
    return {"loss_map": map_loss(*inputs)[0], "loss_score_reg": 0.1 * inputs.scores.square().sum()}


def cache_of(passes: list[LossInputs], num_images: int = 2) -> list[GradientCache]:
    joined = LossInputs.join(passes, [num_images] * len(passes))
    scores = joined.scores.detach().requires_grad_()
    losses = losses_of(joined._replace(scores=scores))
    (gradient,) = torch.autograd.grad(sum(losses.values()), scores)
    values = {name: loss.detach() for name, loss in losses.items()}
    cache = GradientCache(values, gradient, len(scores), scores.detach())
    return cache.split([len(x.scores) for x in passes])


def test_passes_have_the_gradient_of_all_and_its_value():
    passes = [inputs_of_pass(0, 12), inputs_of_pass(1, 20)]
    caches = cache_of(passes)
    assert [x.num_proposals for x in caches] == [16, 16]
    joined = LossInputs(*(torch.cat(x) for x in zip(*passes, strict=True)))
    ids = torch.cat([passes[0].image_ids, passes[1].image_ids + 2])
    joined = joined._replace(image_ids=ids, gt_image_ids=torch.arange(4))
    expected = losses_of(joined)
    sum(expected.values()).backward()
    wanted = [x.scores.grad.clone() for x in passes]
    for inputs, cache, gradient in zip(passes, caches, wanted, strict=True):
        inputs.scores.grad = None
        losses = cache.losses(inputs.scores)
        assert float(losses["loss_map"].detach()) == pytest.approx(float(expected["loss_map"]))
        assert float(losses["loss_score_reg"]) == pytest.approx(float(expected["loss_score_reg"]))
        # The mean over the passes.
        (sum(losses.values()) / 2).backward()
        torch.testing.assert_close(inputs.scores.grad, gradient)


def test_other_windows_in_the_second_round_are_noticed():
    (cache,) = cache_of([inputs_of_pass(0, 12)])
    with pytest.raises(RuntimeError, match=r"first round, \(12, 3\), got others, \(13, 3\)"):
        cache.losses(inputs_of_pass(0, 13).scores)
    with pytest.raises(RuntimeError, match="expected those of the first round"):
        cache.losses(inputs_of_pass(1, 12).scores)
    cache.losses(inputs_of_pass(0, 12).scores * (1 + 1e-4))


def test_a_pass_without_windows_takes_part():
    passes = [
        inputs_of_pass(0, 12),
        inputs_of_pass(1, 0)._replace(
            gt_boxes=torch.zeros(0, 4),
            gt_classes=torch.zeros(0, dtype=torch.int64),
            gt_image_ids=torch.zeros(0, dtype=torch.int64),
            gt_difficult=torch.zeros(0) > 0,
        ),
    ]
    for inputs, cache in zip(passes, cache_of(passes), strict=True):
        sum(cache.losses(inputs.scores).values()).backward()
    assert passes[0].scores.grad.abs().sum() > 0


def test_hard_windows_carry_the_sparse_gradient_whatever_their_scores_in_training_are():
    inputs, inds = inputs_of_pass(0, 12), torch.tensor([1, 4, 5, 9])
    (cache,) = cache_of([inputs])
    hard = cache.only(inds)
    assert hard.num_proposals == 4
    scores = inputs_of_pass(7, 4).scores  # as with dropout
    losses = hard.losses(scores)
    assert float(losses["loss_map"].detach()) == float(cache.values["loss_map"])
    sum(losses.values()).backward()
    torch.testing.assert_close(scores.grad, sparsify_gradient(cache.gradient, inds))


def proposals_and_targets(passes: list[LossInputs]) -> tuple[list[Instances], list[Instances]]:
    """Those of two images of each pass; windows are told apart by their images."""
    proposals, targets = [], []
    for inputs in passes:
        for i in range(2):
            windows, objects = Instances((60, 60)), Instances((60, 60))
            windows.proposal_boxes = Boxes(inputs.boxes[inputs.image_ids == i])
            objects.gt_boxes = Boxes(inputs.gt_boxes[inputs.gt_image_ids == i])
            objects.gt_classes = inputs.gt_classes[inputs.gt_image_ids == i]
            objects.gt_difficult = inputs.gt_difficult[inputs.gt_image_ids == i]
            proposals.append(windows)
            targets.append(objects)
    return proposals, targets


def predictor_with_boxes(box_gradient: str, is_class_agnostic: bool) -> MAPOutputLayers:
    settings = MAPLossSettings(iou_threshs="coco", box_gradient=box_gradient, pooled=0.5)
    return MAPOutputLayers(
        ShapeSpec(channels=5),
        num_classes=3,
        map_loss=MAPLoss(settings, score_reg_weight=0.1),
        nms_on_regressed=True,
        box_reg_weight=2.0,
        is_class_agnostic=is_class_agnostic,
    )


@pytest.mark.parametrize("box_gradient", ["error_driven", "mee"])
@pytest.mark.parametrize("is_class_agnostic", [False, True])
def test_passes_have_the_gradient_of_all_by_their_boxes(storage, is_class_agnostic, box_gradient):
    predictor = predictor_with_boxes(box_gradient, is_class_agnostic)
    passes = [inputs_of_pass(0, 12), inputs_of_pass(1, 20), inputs_of_pass(2, 7)]
    generator, size = torch.Generator().manual_seed(0), 4 * predictor.bbox_pred.num_boxes
    outputs = [
        BoxPredictions(x.scores, torch.randn(len(x.scores), size, generator=generator) / 2)
        for x in passes
    ]
    columns = (torch.cat(x).detach() for x in zip(*outputs, strict=True))
    joined = BoxPredictions(*(x.requires_grad_() for x in columns))
    expected = predictor.losses(joined, *proposals_and_targets(passes))
    sum(expected.values()).backward()
    gradients = joined.deltas.grad.split([12, 20, 7])
    cache = predictor.rank(predictor.loss_inputs(joined, *proposals_and_targets(passes)))
    values = []
    for i, part in enumerate(cache.split([12, 20, 7])):
        proposals, targets = proposals_and_targets(passes[i : i + 1])
        own = BoxPredictions(*(x.detach().requires_grad_() for x in outputs[i]))
        losses = predictor.losses(own, proposals, targets, part)
        values.append(losses["loss_map_box"].item())
        # The mean over the passes.
        (sum(losses.values()) / 3).backward()
        torch.testing.assert_close(own.deltas.grad, gradients[i])
        assert own.deltas.grad.abs().max() > 1e-4
    assert sum(values) / 3 == pytest.approx(expected["loss_map_box"].item(), rel=1e-5)


def test_hard_windows_carry_what_the_boxes_of_all_are_worth():
    weights = torch.tensor([[1.0, 0, 2], [0, 3, 0], [0, 0, 0], [4, 0, 0]]).double()
    objects = torch.arange(12).view(4, 3)
    targets = BoxTargets(weights, objects, torch.zeros(12, 4))
    cache = GradientCache({}, torch.zeros(4, 3), 4, None, targets)
    hard = cache.only(torch.tensor([0, 3])).box_targets
    assert hard.weights.sum() == weights.sum()
    torch.testing.assert_close(hard.weights, weights[[0, 3]] * 10 / 7)
    assert torch.equal(hard.objects, objects[[0, 3]])
    assert torch.equal(cache.only(torch.arange(4)).box_targets.weights, weights)
    # None of which any box is worth something.
    assert cache.only(torch.tensor([2])).box_targets.weights.tolist() == [[0.0] * 3]


def test_a_cache_of_the_predictor_gives_the_losses_and_gradient_of_ranking_at_once(storage):
    loss = MAPLoss(score_reg_weight=0.1)
    predictor = MAPOutputLayers(ShapeSpec(channels=5), num_classes=3, map_loss=loss)
    proposals, targets = proposals_and_targets([inputs_of_pass(0, 12), inputs_of_pass(1, 12)])
    gradients, values = [], []
    for is_cached in (False, True):
        scores = inputs_of_pass(3, 24).scores
        outputs = BoxPredictions(scores)
        cache = None
        if is_cached:
            inputs = predictor.loss_inputs(outputs, proposals, targets)
            cache = predictor.rank(inputs)
            assert not cache.gradient.requires_grad
            assert scores.grad is None
        losses = predictor.losses(outputs, proposals, targets, cache)
        values.append({name: x.detach() for name, x in losses.items()})
        sum(losses.values()).backward()
        gradients.append(scores.grad)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0.1
