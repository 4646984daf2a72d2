# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers import MAPLossSettings, average_precision, map_loss
from maploss.layers.map_loss import rank_minibatch

from tests.layers.map_loss.test_map_loss import loss_and_gradient, random_batch


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_loss_is_the_same_with_the_kept_set_of_batched_nms(monkeypatch, is_shared):
    batch = random_batch()
    batch["boxes"] = batch["boxes"].round()
    if not is_shared:
        batch["boxes"] = torch.stack([batch["boxes"] + 2 * c for c in range(4)], 1)
    loss, gradient, stats = loss_and_gradient(batch, iou_threshs="coco")
    used = []

    def as_on_cuda(cells, settings):
        used.append(cells)

    monkeypatch.setattr(rank_minibatch, "_find_overlaps", as_on_cuda)
    other_loss, other, other_stats = loss_and_gradient(batch, iou_threshs="coco")
    assert len(used) == 1
    assert torch.equal(other_loss, loss)
    assert torch.equal(other, gradient)
    assert torch.equal(other_stats.ap.nan_to_num(), stats.ap.nan_to_num())


def test_the_detections_of_a_class_have_its_ap_at_each_overlap():
    batch = random_batch(dtype=torch.float64)
    _, stats = map_loss(**batch, settings=MAPLossSettings(iou_threshs=[0.3, 0.5, 0.7]))
    for c in range(3):
        for overlap in range(3):
            ap = average_precision(*stats.class_detections(c, overlap))
            assert float(ap) == pytest.approx(float(stats.ap[overlap, c]), abs=1e-12)
    assert stats.class_detections(3) is None
    for c, overlap in ((4, 0), (-1, 0), (0, 3)):
        with pytest.raises(IndexError, match="expected 0 to"):
            stats.class_detections(c, overlap)


@pytest.mark.parametrize("gradient", ["error_driven", "mee", "sde"])
def test_boxes_by_class_may_meet_difficult_objects_only(gradient):
    batch = random_batch()
    batch["gt_difficult"] = torch.ones(9)
    batch["boxes"] = batch["boxes"][:, None].repeat(1, 4, 1)
    _, found, stats = loss_and_gradient(batch, gradient=gradient)
    assert stats.map == 0
    assert not found.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_boxes_of_half_precision_and_whole_numbers_are_matched_as_float32(dtype):
    batch = random_batch()
    # Areas that half precision does not hold.
    batch["boxes"], batch["gt_boxes"] = (
        (batch[name] * 8).round() for name in ("boxes", "gt_boxes")
    )
    expected, gradient, _ = loss_and_gradient(batch)
    batch["boxes"], batch["gt_boxes"] = (batch[k].to(dtype) for k in ("boxes", "gt_boxes"))
    loss, other, _ = loss_and_gradient(batch)
    assert torch.equal(loss, expected)
    assert torch.equal(other, gradient)
