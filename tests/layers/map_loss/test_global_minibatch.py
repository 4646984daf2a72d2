# SPDX-License-Identifier: Apache-2.0
"""One ranking for several processes and for a memory, against one process with all windows."""

import math

import pytest
import torch
from maploss.layers import DetectionMemory, MAPLoss, MAPLossSettings, map_loss

from tests.distributed import run_ranks

NUM_IMAGES, NUM_WINDOWS, NUM_CLASSES = 8, 30, 5
SETTINGS = [
    {},
    {"transitivity": "none", "ap_type": "voc07"},
    {"transitivity": "label_aware", "margin": 0.1, "log_space": False, "grad_clip": 0.01},
    *(
        {"gradient": estimator, "transitivity": transitivity, "pairing": pairing}
        for estimator, pairing in (("mee", "paired"), ("sde", "none"))
        for transitivity in ("exact", "label_aware", "paper", "none")
    ),
]
TEN = {"iou_threshs": "coco"}
# Gradients by the overlap of boxes, and one list of all classes.
SETTINGS_OF_BOXES = [
    {"box_gradient": "error_driven", **TEN},
    {"box_gradient": "error_driven", "transitivity": "none", "log_space": False},
    {"box_gradient": "error_driven", "transitivity": "object_aware", **TEN},
    {"box_gradient": "mee", **TEN},
    {"box_gradient": "sde", "pooled": 0.4, **TEN},
    {"pooled": 0.3},
    {"pooled": 1.0, "box_gradient": "error_driven", "nms_thresh": 0.5},
    {"gradient": "mee", "transitivity": "exact", "box_gradient": "mee", "pooled": 0.5},
    {"gradient": "sde", "box_gradient": "error_driven", "pooled": 0.5, **TEN},
]


def minibatch(seed: int = 0, dtype=torch.float64, per_class_boxes: bool = False) -> dict:
    """Windows by image, many near objects; class 4 has no object, class 3 one; scores are tied."""
    generator = torch.Generator().manual_seed(seed)
    num_objects = 3 * NUM_IMAGES
    corner = torch.rand(num_objects, 2, generator=generator) * 60
    size = 15 + torch.rand(num_objects, 2, generator=generator) * 20
    gt_boxes = torch.cat([corner, corner + size], 1)
    # Image 5 has no object.
    gt_image_ids = torch.arange(num_objects) // 3
    gt_image_ids[gt_image_ids == 5] = 0
    gt_classes = torch.randint(0, 3, (num_objects,), generator=generator)
    gt_classes[-1] = 3
    boxes = []
    for image in range(NUM_IMAGES):
        near = gt_boxes[gt_image_ids == image].repeat(9, 1)[: NUM_WINDOWS // 2]
        near = near + torch.randn(near.shape, generator=generator) * 3
        corner = torch.rand(NUM_WINDOWS - len(near), 2, generator=generator) * 60
        boxes.append(torch.cat([near, torch.cat([corner, corner + 25], 1)]))
    boxes = torch.cat(boxes)
    scores = torch.randn(len(boxes), NUM_CLASSES, generator=generator, dtype=torch.float64)
    scores = (scores * 20).round() / 20
    if per_class_boxes:
        shape = (len(boxes), NUM_CLASSES, 4)
        boxes = boxes[:, None] + torch.randn(shape, generator=generator)
    return {
        "scores": scores.to(dtype),
        "boxes": boxes,
        "image_ids": torch.arange(NUM_IMAGES).repeat_interleave(NUM_WINDOWS),
        "gt_boxes": gt_boxes,
        "gt_classes": gt_classes,
        "gt_image_ids": gt_image_ids,
        "gt_difficult": torch.arange(num_objects) % 7 == 4,
    }


def images_of(batch: dict, first: int, last: int) -> dict:
    """What belongs to images first .. last - 1."""
    chosen = (batch["image_ids"] >= first) & (batch["image_ids"] < last)
    of_objects = (batch["gt_image_ids"] >= first) & (batch["gt_image_ids"] < last)
    return {k: v[of_objects if k.startswith("gt") else chosen] for k, v in batch.items()}


def gradient_of(batch: dict, **settings):
    """Loss, gradient by the scores and AP."""
    return results_of(batch, **settings)[:3]


def results_of(batch: dict, **settings):
    """The same, the gradient by the overlap of boxes, and the object that each is pulled to."""
    scores = batch["scores"].clone().requires_grad_()
    takes_part = {k: settings.pop(k) for k in ("group", "memory") if k in settings}
    loss, stats = map_loss(
        **{**batch, "scores": scores},
        settings=MAPLossSettings(**{"pooled": 0.0} | settings),
        **takes_part,
    )
    loss.backward()
    by_overlap = pulled_to = torch.zeros(len(scores), 0)
    if stats.box_gradient is not None:
        by_overlap, objects = stats.box_gradient
        gt_boxes = torch.cat([batch["gt_boxes"], torch.zeros(1, 4)])  # the last one for none
        pulled_to = gt_boxes[objects]
    return float(loss.detach()), scores.grad, stats.ap_per_class, by_overlap, pulled_to


def cases():
    """Minibatch and settings: all settings once, other minibatches with a few of them."""
    return [
        *((minibatch(), settings) for settings in SETTINGS + SETTINGS_OF_BOXES),
        *((minibatch(1, torch.float32), settings) for settings in SETTINGS[:4]),
        *((minibatch(1, torch.float32), settings) for settings in SETTINGS_OF_BOXES[:4]),
        *((minibatch(2, per_class_boxes=True), settings) for settings in SETTINGS[:4]),
        *((minibatch(2, per_class_boxes=True), settings) for settings in SETTINGS_OF_BOXES),
    ]


def of_this_rank(bounds):
    """What this process, with its images, has of all cases, and of some with a memory."""
    group, rank = torch.distributed.group.WORLD, torch.distributed.get_rank()
    own = bounds[rank : rank + 2]
    of_cases = [
        results_of(images_of(batch, *own), group=group, **settings) for batch, settings in cases()
    ]
    return of_cases, remembered_steps(own, group)


def remembered_steps(own=(0, NUM_IMAGES), group=None):
    """Minibatches in a row, ranked with a memory, by the images own[0] .. own[1] - 1."""
    results = []
    for settings in SETTINGS[:5] + SETTINGS_OF_BOXES:
        memory = DetectionMemory(1)
        for seed in range(3):
            batch = images_of(minibatch(seed), *own)
            results.append(results_of(batch, group=group, memory=memory, **settings))
    return results


@pytest.mark.parametrize("bounds", [(0, 4, 8), (0, 0, 5, 6, 8)], ids=["2 ranks", "4 ranks"])
def test_processes_have_the_loss_and_the_gradients_of_one_with_all_images(bounds):
    # Of four ranks one has no window, another no object.
    ranks = run_ranks(of_this_rank, len(bounds) - 1, bounds)
    expected = [results_of(batch, **settings) for batch, settings in cases()]
    for part, wanted in enumerate((expected, remembered_steps())):
        for i, (loss, gradient, ap, *boxes) in enumerate(wanted):
            assert gradient.abs().sum() > 0
            assert boxes[0].sum() > 0 or not boxes[0].numel()
            for own_loss, _, own_ap, *_ in (rank[part][i] for rank in ranks):
                assert own_loss == pytest.approx(loss, abs=1e-6), i
                torch.testing.assert_close(own_ap, ap, equal_nan=True, atol=1e-9, rtol=0)
            for column, values in ((1, gradient), (3, boxes[0]), (4, boxes[1])):
                joined = torch.cat([rank[part][i][column] for rank in ranks])
                torch.testing.assert_close(
                    joined, values, atol=1e-6, rtol=1e-5, msg=f"{i} {column}"
                )


def several(batches: list[dict]) -> dict:
    """All windows and objects of several minibatches, each with images of its own."""
    shifted = [
        {k: v + NUM_IMAGES * i if "image_ids" in k else v for k, v in batch.items()}
        for i, batch in enumerate(batches)
    ]
    return {k: torch.cat([batch[k] for batch in shifted]) for k in shifted[0]}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"transitivity": "none"},
        {"gradient": "mee", "transitivity": "none"},
        {"box_gradient": "error_driven", "pooled": 0.5, **TEN},
        {"box_gradient": "mee", "transitivity": "none", **TEN},
        {"box_gradient": "sde", "pooled": 1.0},
    ],
    ids=str,
)
def test_what_is_remembered_is_ranked_as_if_it_were_at_hand(settings):
    memory = DetectionMemory(2)
    for seed in range(3):
        gradient_of(minibatch(seed), memory=memory, **settings)
    loss, gradient, ap, *boxes = results_of(minibatch(3), memory=memory, **settings)
    # The first has been forgotten.
    batches = [minibatch(seed) for seed in (3, 1, 2)]
    expected_loss, expected, expected_ap, *of_boxes = results_of(several(batches), **settings)
    assert loss == pytest.approx(expected_loss, abs=1e-9)
    torch.testing.assert_close(ap, expected_ap, equal_nan=True)
    torch.testing.assert_close(gradient, 3 * expected[: len(gradient)])
    torch.testing.assert_close(boxes[0], 3 * of_boxes[0][: len(gradient)])
    assert boxes[0].sum() > 0 or "box_gradient" not in settings


def test_a_class_without_objects_at_hand_learns_from_what_is_remembered():
    memory = DetectionMemory(1)
    gradient_of(minibatch(0), memory=memory)
    batch = minibatch(1)
    batch["gt_classes"] = batch["gt_classes"].clamp(max=1)
    _, without, _ = gradient_of(batch)
    _, gradient, ap = gradient_of(batch, memory=memory)
    assert without[:, 2].eq(0).all()
    # All at hand are false positives.
    assert (gradient[:, 2] >= 0).all()
    assert gradient[:, 2].sum() > 0
    assert ap[2].isfinite()
    assert ap[4].isnan()


def test_detections_of_a_class_are_remembered_before_it_has_an_object():
    memory = DetectionMemory(1)
    batch = minibatch(1)
    gradient_of({**batch, "gt_classes": batch["gt_classes"].clamp(max=1)}, memory=memory)
    _, _, ap = gradient_of(minibatch(0), memory=memory)
    assert ap[2] < gradient_of(minibatch(0))[2][2]


def test_an_empty_memory_changes_nothing():
    loss, gradient, ap = gradient_of(minibatch())
    other_loss, other, other_ap = gradient_of(minibatch(), memory=DetectionMemory(3))
    assert other_loss == loss
    assert torch.equal(other, gradient)
    assert torch.equal(other_ap.nan_to_num(), ap.nan_to_num())


def test_without_classes_there_is_nothing_to_remember():
    batch, memory = minibatch(), DetectionMemory(1)
    empty = {k: v[:0] if k.startswith("gt") else v for k, v in batch.items()}
    loss, _, _ = gradient_of({**empty, "scores": batch["scores"][:, :0]}, memory=memory)
    assert loss == pytest.approx(math.log(2))  # mAP 0
    assert len(memory) == 0


@torch.no_grad()
def test_what_is_only_looked_at_is_not_remembered():
    memory = DetectionMemory(2)
    map_loss(**minibatch(), memory=memory)
    assert len(memory) == 0
    with torch.enable_grad():
        map_loss(**minibatch(), memory=memory)
    assert len(memory) == 1


def test_a_memory_goes_on_from_its_state(tmp_path):
    memory = DetectionMemory(2)
    for seed in range(3):
        gradient_of(minibatch(seed, torch.float32), memory=memory)
    torch.save(memory.state_dict(), tmp_path / "state.pth")
    other = DetectionMemory(2)
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    results = [gradient_of(minibatch(5, torch.float32), memory=x) for x in (memory, other)]
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_what_came_from_a_checkpoint_is_joined_with_what_came_since():
    # The checkpoint's tensors are on the CPU; here they are of another dtype.
    memory, other = DetectionMemory(2), DetectionMemory(2)
    gradient_of(minibatch(0), memory=memory)
    other.load_state_dict(memory.state_dict())
    for x in (memory, other):
        gradient_of(minibatch(1, torch.float32), memory=x)
    results = [gradient_of(minibatch(2, torch.float32), memory=x) for x in (memory, other)]
    assert results[0][0] == results[1][0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_memory_on_cuda_goes_on_from_a_checkpoint():
    def on_cuda(seed):
        return {k: v.cuda() for k, v in minibatch(seed, torch.float32).items()}

    memory, other = DetectionMemory(2), DetectionMemory(2)
    gradient_of(on_cuda(0), memory=memory)
    state = memory.state_dict()["minibatches"]
    on_cpu = [tuple(v.cpu() if isinstance(v, torch.Tensor) else v for v in x) for x in state]
    other.load_state_dict({"minibatches": on_cpu})
    for seed in (1, 2):
        results = [gradient_of(on_cuda(seed), memory=x) for x in (memory, other)]
        assert results[0][0] == results[1][0]


def test_a_smaller_memory_takes_the_latest_of_a_state():
    memory, smaller, expected = (DetectionMemory(size) for size in (3, 1, 1))
    for seed in range(3):
        gradient_of(minibatch(seed), memory=memory)
    gradient_of(minibatch(2), memory=expected)
    smaller.load_state_dict(memory.state_dict())
    results = [gradient_of(minibatch(5), memory=x) for x in (smaller, expected)]
    assert results[0][0] == results[1][0]


def test_a_memory_is_bounded():
    memory = DetectionMemory(2)
    sizes = []
    for seed in range(6):
        gradient_of(minibatch(seed), memory=memory)
        sizes.append(sum(len(x[0]) for x in memory.state_dict()["minibatches"]))
    assert max(sizes) <= 2 * NUM_IMAGES * NUM_WINDOWS * NUM_CLASSES
    assert len(memory) == 2


def test_a_memory_of_other_classes_and_a_negative_size_are_refused():
    memory = DetectionMemory(1)
    gradient_of(minibatch(), memory=memory)
    batch = minibatch()
    with pytest.raises(ValueError, match="expected detections of 4 classes, got 5"):
        gradient_of({**batch, "scores": batch["scores"][:, :4]}, memory=memory)
    with pytest.raises(ValueError, match="at least 1 minibatch, got -1"):
        DetectionMemory(-1)


def test_the_module_remembers_as_many_minibatches_as_it_is_told():
    loss = MAPLoss(memory_size=2)
    values = []
    for seed in (0, 1, 2, 0):
        losses, _ = loss(**minibatch(seed))
        values.append(float(losses["loss_map"]))
    assert len(loss.memory) == 2
    assert values[3] != values[0]
    assert MAPLoss().memory is None
    assert str(MAPLoss(memory_size=5)).count("memory_size=5") == 1
    with pytest.raises(ValueError, match="memory_size: expected 0 or more minibatches, got -1"):
        MAPLoss(memory_size=-1)


def test_a_memory_of_other_overlaps_is_refused():
    memory = DetectionMemory(1)
    gradient_of(minibatch(), memory=memory)
    with pytest.raises(ValueError, match=r"expected detections at the overlaps \(0.9,\), got"):
        gradient_of(minibatch(), memory=memory, iou_threshs=(0.9,))


def messages_of_ranks_that_differ():
    """What each rank says where they differ: in classes, in settings."""
    group, rank = torch.distributed.group.WORLD, torch.distributed.get_rank()
    messages = []
    for num_classes, overlap in ((NUM_CLASSES + rank, 0.5), (NUM_CLASSES, 0.5 + 0.1 * rank)):
        batch = minibatch()
        batch["scores"] = torch.zeros(len(batch["scores"]), num_classes)
        try:
            gradient_of(batch, group=group, iou_threshs=(overlap,))
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_processes_with_other_classes_or_settings_are_told_apart():
    for classes, settings in run_ranks(messages_of_ranks_that_differ, 2):
        assert "expected one number of classes in all processes, got [5, 6]" in classes
        assert "settings: expected the same in all processes" in settings
