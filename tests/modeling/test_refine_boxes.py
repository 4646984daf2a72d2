# SPDX-License-Identifier: Apache-2.0
"""Iterative box regression and box voting at test, with either head."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from maploss.layers import MAPLoss, box_voting
from maploss.modeling import MAPOutputLayers, SoftmaxOutputLayers
from maploss.modeling.detections import best_of_each_class, detections, make_candidates
from maploss.modeling.output_layers import BoxPredictions
from maploss.modeling.roi_heads import BoxROIHeads

from tests.modeling.test_roi_heads import make_batch

SIZE = (100, 100)


def candidates(boxes, scores, classes):
    return make_candidates(
        torch.tensor(boxes).float().reshape(-1, 4),
        torch.tensor(scores).float(),
        torch.tensor(classes, dtype=torch.int64),
        SIZE,
    )


def test_the_best_of_each_class_are_taken_ties_in_their_order():
    found = candidates(
        [[i, 0.0, i + 9, 9] for i in range(6)], [1, 3, 3, 3, 0, 5], [0, 2, 2, 2, 0, 2]
    )
    best = best_of_each_class(found, 2)
    assert best.pred_boxes.tensor[:, 0].tolist() == [0, 4, 5, 1]
    assert best.pred_classes.tolist() == [0, 0, 2, 2]
    assert len(best_of_each_class(found[:0], 2)) == 0


def test_of_many_ties_the_first_are_taken():
    scores = (torch.arange(1500) % 2).tolist()
    found = candidates([[i / 100, 0.0, 50, 50] for i in range(1500)], scores, [0] * 1500)
    taken = best_of_each_class(found, 100).pred_boxes.tensor[:, 0]
    torch.testing.assert_close(taken, torch.arange(1, 200, 2) / 100)


class Moving:
    """
    Scores of windows and deltas that move each by half its width: to the right as class 0, to the
    left as class 1. The score of class 0 grows to the right.
    """

    def __init__(self, num_boxes=2):
        self.num_boxes = num_boxes
        self.seen = []

    def __call__(self, windows):
        boxes = torch.cat([x.proposal_boxes.tensor for x in windows])
        self.seen.append(boxes)
        scores = torch.stack([boxes[:, 0], -boxes[:, 0]], dim=1) / 10
        deltas = torch.zeros(len(boxes), self.num_boxes, 4)
        deltas[:, 0, 0] = 0.5
        deltas[:, 1:, 0] = -0.5
        return BoxPredictions(scores, deltas.flatten(1))


class ScoredByFeatures(BoxROIHeads):
    """Heads whose features are a function from proposals to what is said of them."""

    def score_proposals(self, features, proposals):
        return features(proposals)


def make_heads(iterations, vote=0.0, nms=0.3, **kwargs):
    predictor = MAPOutputLayers(
        ShapeSpec(channels=5),
        num_classes=2,
        map_loss=MAPLoss(),
        box_reg_weight=1.0,
        box_reg_std=[1.0] * 4,
        test_vote_iou_thresh=vote,
        test_nms_iou_thresh=nms,
        **kwargs,
    )
    return heads_with(predictor, iterations)


def heads_with(predictor, iterations):
    return ScoredByFeatures(
        num_classes=2,
        batch_size_per_image=8,
        positive_fraction=0.5,
        proposal_matcher=Matcher([0.5], [0, 1]),
        in_features=[],
        pooler=None,
        box_head=None,
        box_predictor=predictor,
        test_box_iterations=iterations,
    )


def make_windows(boxes):
    windows = Instances(SIZE)
    windows.proposal_boxes = Boxes(torch.tensor(boxes).float().reshape(-1, 4))
    return windows


def found_by(result, class_id):
    own = result[result.pred_classes == class_id]
    return {
        (round(x, 3), round(s, 3))
        for x, s in zip(own.pred_boxes.tensor[:, 0].tolist(), own.scores.tolist(), strict=True)
    }


def test_regressed_boxes_are_scored_and_regressed_again_as_their_class():
    score = Moving()
    (result,) = make_heads(2, nms=1.0).inference(score, [make_windows([[40, 0, 50, 10]])])
    # One window: one of each class goes on. The first score is the window's own.
    assert score.seen[1][:, 0].tolist() == [45, 35]
    assert found_by(result, 0) == {(45, 4.0), (50, 4.5)}
    assert found_by(result, 1) == {(35, -4.0), (30, -3.5)}


def test_three_iterations_go_on_from_the_second():
    score = Moving()
    (result,) = make_heads(3, nms=1.0).inference(score, [make_windows([[40, 0, 50, 10]])])
    assert found_by(result, 0) == {(45, 4.0), (50, 4.5), (55, 5.0)}


def test_nms_is_of_the_boxes_of_all_iterations():
    (result,) = make_heads(2).inference(Moving(), [make_windows([[40, 0, 50, 10]])])
    assert found_by(result, 0) == {(50, 4.5)}
    assert found_by(result, 1) == {(30, -3.5)}


def test_as_many_boxes_are_scored_again_as_there_are_windows_the_best_first():
    score = Moving()
    windows = [make_windows([[i * 10, 0, i * 10 + 8, 10] for i in range(6)]), make_windows([])]
    first, second = make_heads(2).inference(score, windows)
    assert [len(x) for x in score.seen] == [6, 6]
    assert score.seen[1][:3, 0].tolist() == [54, 44, 34]  # the best three of class 0
    assert len(first) > 0
    assert len(second) == 0


def test_boxes_of_no_class_of_their_own_are_scored_again_as_each():
    (result,) = make_heads(2, nms=1.0, is_class_agnostic=True).inference(
        Moving(num_boxes=1), [make_windows([[40, 0, 50, 10]])]
    )
    assert found_by(result, 0) == {(45, 4.0), (50, 4.5)}
    assert found_by(result, 1) == {(45, -4.0), (50, -4.5)}


def test_scores_again_below_the_threshold_are_dropped():
    heads = make_heads(2, nms=1.0, test_score_thresh=-3.9)
    (result,) = heads.inference(Moving(), [make_windows([[40, 0, 50, 10]])])
    assert found_by(result, 0) == {(45, 4.0), (50, 4.5)}
    assert found_by(result, 1) == set()


def test_scores_again_that_are_not_finite_are_an_error():
    score = Moving()

    def broken(windows):
        outputs = score(windows)
        return outputs if len(score.seen) == 1 else outputs._replace(scores=outputs.scores / 0)

    with pytest.raises(FloatingPointError, match="scores: expected finite values"):
        make_heads(2).inference(broken, [make_windows([[40, 0, 50, 10]])])


@pytest.mark.parametrize(("iterations", "vote"), [(0, 0.0), (1, 1.5), (1, -0.5)])
def test_numbers_out_of_range_are_told_at_once(iterations, vote):
    with pytest.raises(ValueError, match=r"test_(box_iterations|vote_iou_thresh): expected"):
        make_heads(iterations, vote)


def test_one_iteration_is_the_plain_test_and_more_need_box_regression():
    score = Moving()
    make_heads(1).inference(score, [make_windows([[40, 0, 50, 10]])])
    assert len(score.seen) == 1
    for kwargs in ({"box_reg_weight": 0.0}, {"box_reg_weight": 1.0, "regress_at_test": False}):
        predictor = SoftmaxOutputLayers(ShapeSpec(channels=5), num_classes=2, **kwargs)
        with pytest.raises(ValueError, match="test_box_iterations: expected 1 without box regress"):
            heads_with(predictor, 2)


VOTERS = [[0, 0, 10, 10], [0, 0, 10, 12], [0, 0, 12, 10], [0, 0, 10, 20], [60, 60, 70, 70]]


def test_boxes_of_the_same_class_vote_with_their_scores():
    found = candidates(VOTERS * 2, [5, 4, 3, 2, 1, 0, 0, 0, 0, 0], [0] * 5 + [1] * 5)
    settings = {"nms_iou_thresh": 0.3, "detections_per_image": -1}
    plain = detections(found, **settings)
    voted = detections(found, vote_iou_thresh=0.5, log_weights=found.scores, **settings)
    assert torch.equal(voted.scores, plain.scores)
    assert torch.equal(voted.pred_classes, plain.pred_classes)
    boxes = torch.tensor(VOTERS).float()
    best = voted[voted.pred_classes == 0].pred_boxes.tensor[0]
    torch.testing.assert_close(best[None], box_voting(boxes[:1], boxes, found.scores[:5]))
    weights = torch.tensor([5.0, 4, 3]).softmax(0)
    torch.testing.assert_close(best[3], 10 + 2 * weights[1])
    assert plain[plain.pred_classes == 0].pred_boxes.tensor[0].tolist() == VOTERS[0]


def test_probabilities_vote_as_they_are_and_zero_does_not():
    predictor = SoftmaxOutputLayers(ShapeSpec(channels=5), num_classes=2)
    weights = predictor.vote_log_weights(torch.tensor([0.5, 0.25, 0.0])).exp()
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.25, 0.0]))


@pytest.mark.parametrize("head", ["MAPROIHeads", "SoftmaxROIHeads", "OHEMROIHeads"])
@pytest.mark.parametrize("pyramid", [False, True])
def test_every_head_with_box_regression_detects_with_them(tiny_cfg, head, pyramid):
    tiny_cfg.MODEL.ROI_HEADS.NAME = head
    tiny_cfg.MODEL.MAP_LOSS.BOX_REG.BOXES = "windows"
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    batch = make_batch()
    if pyramid:
        for x in batch:
            size = [2 * n for n in x["image"].shape[1:]]
            larger = torch.nn.functional.interpolate(x["image"][None].float(), size=size)
            x["pyramid"] = [x["image"], larger[0]]
    results = []
    for iterations, vote in ((1, 0.0), (2, 0.0), (1, 0.5), (2, 0.5)):
        tiny_cfg.TEST.BOX_REG.ITERATIONS = iterations
        tiny_cfg.TEST.BOX_VOTING_IOU_THRESH = vote
        torch.manual_seed(0)
        model = build_model(tiny_cfg).eval()
        with torch.no_grad():
            model.roi_heads.box_predictor.cls_score.weight.mul_(100)
            model.roi_heads.box_predictor.bbox_pred.weight.mul_(100)
            results.append(model(batch)[0]["instances"])
    assert all(len(x) > 0 for x in results)
    boxes = [x.pred_boxes.tensor for x in results]
    assert boxes[0].shape == boxes[2].shape  # voting moves boxes
    assert not torch.allclose(boxes[0], boxes[2])
    assert torch.equal(results[0].scores, results[2].scores)
    assert boxes[0].shape != boxes[1].shape or not torch.allclose(boxes[0], boxes[1])
    assert not torch.allclose(boxes[1], boxes[3])
