# SPDX-License-Identifier: Apache-2.0
"""One update of all images: by one process at once, in several passes, by several processes."""

import contextlib

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from maploss.engine import build_optimizer
from maploss.engine.accumulating_trainer import AccumulatingTrainer
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import run_ranks
from tests.tiny import make_cfg

SIZE = (64, 96)
UPDATES = {
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 0,  # all windows, so that nothing is drawn
    "MODEL.MAP_LOSS.SCORE_REG.WEIGHT": 1e-5,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.WARMUP_ITERS": 0,
}
REGRESSED = {
    "MODEL.MAP_LOSS.BOX_REG.BOXES": "regressed",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 10.0,  # boxes move by far more than rounding
}
METHODS = {
    "error-driven": {},
    "regressed boxes": REGRESSED,
    "boxes by steps, pooled": REGRESSED
    | {
        "MODEL.MAP_LOSS.BOX_REG.GRADIENT": "mee",
        "MODEL.MAP_LOSS.IOU_THRESHS": "coco",
        "MODEL.MAP_LOSS.POOLED": 0.5,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    },
    "boxes of windows over objects": REGRESSED | {"MODEL.MAP_LOSS.BOX_REG.GRADIENT": "none"},
    "steps": {"MODEL.MAP_LOSS.GRADIENT": "mee", "MODEL.MAP_LOSS.TRANSITIVITY": "exact"},
    "memory": {"MODEL.MAP_LOSS.MEMORY": 2},
}


def images(seed: int, num: int = 4) -> list[dict]:
    """Image i has 10 + 5 i windows, many near its objects."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for i in range(num):
        count = 10 + 5 * i
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 30.0])
        boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(count, 2, generator=generator)], 1)
        proposals, instances = Instances(SIZE), Instances(SIZE)
        proposals.proposal_boxes = Boxes(boxes)
        instances.gt_boxes = Boxes(boxes[:3] + 2 * torch.randn(3, 4, generator=generator))
        instances.gt_classes = torch.randint(0, 3, (3,), generator=generator)
        image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=generator)
        inputs.append({"image": image, "proposals": proposals, "instances": instances})
    return inputs


def train(
    settings: dict, sizes: list[int], num_updates: int = 2, is_amp: bool = False
) -> tuple[dict, dict]:
    """
    Parameters and mean losses after updates of 4 images each, `sizes` of them in each pass; each
    process has its share of a pass.
    """
    cfg = make_cfg(UPDATES | settings)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)  # different scores
    batches, rank = [], comm.get_rank()
    for update in range(num_updates):
        rest = images(update)
        for size in sizes:
            own = size // comm.get_world_size()
            batches.append(rest[rank * own : (rank + 1) * own])
            rest = rest[size:]
    parallel = model
    if comm.get_world_size() > 1:
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = build_optimizer(cfg, model)
    trainer = AccumulatingTrainer(
        parallel, batches, optimizer, num_passes=len(sizes), is_amp=is_amp
    )
    with EventStorage() as storage:
        for trainer.iter in range(num_updates):
            trainer.run_step()
            storage.step()
    logged = {k: v.latest() for k, v in storage.histories().items() if k.startswith("loss")}
    return model.state_dict(), logged


def assert_same(result: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    for key, value in expected[0].items():
        torch.testing.assert_close(result[0][key], value, atol=1e-5, rtol=1e-5, msg=key)
    assert result[1] == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_passes_make_the_update_of_one_minibatch(method):
    expected = train(METHODS[method], [4])
    start = train(METHODS[method], [4], num_updates=0)[0]
    layers = {"cls_score", "bbox_pred"} if "boxes" in method else {"cls_score"}
    for layer in layers:
        key = f"roi_heads.box_predictor.{layer}.weight"
        assert (expected[0][key] - start[key]).abs().max() > 1e-3
    for sizes in ([1, 1, 1, 1], [3, 1]):
        assert_same(train(METHODS[method], sizes), expected)


def train_all(cases: list[tuple[str, int]]) -> list:
    return [train(METHODS[method], [4 // passes] * passes) for method, passes in cases]


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        (2, [*((method, 1) for method in METHODS), ("error-driven", 2), ("memory", 2)]),
        (4, [("error-driven", 1), ("regressed boxes", 1)]),
    ],
    ids=["2 ranks", "4 ranks"],
)
def test_processes_make_the_update_of_one_process(world_size, cases):
    ranks = run_ranks(train_all, world_size, cases)
    for i, (method, _) in enumerate(cases):
        assert_same(ranks[0][i], train(METHODS[method], [4]))
        for key, value in ranks[0][i][0].items():
            assert torch.equal(ranks[-1][i][0][key], value), key


@pytest.mark.parametrize(("box_gradient", "name"), [("sde", "map_box"), ("none", "box_reg")])
def test_the_loss_of_boxes_is_logged_beside_that_of_the_scores(box_gradient, name):
    settings = REGRESSED | {"MODEL.MAP_LOSS.BOX_REG.GRADIENT": box_gradient}
    for sizes in ([4], [2, 2]):
        logged = train(settings, sizes, num_updates=1)[1]
        assert set(logged) == {"loss_map", "loss_score_reg", f"loss_{name}"}
        assert logged[f"loss_{name}"] > 0


def test_both_rounds_draw_the_same_windows(monkeypatch):
    few = {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 4, "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5}
    train(few, [2, 2])
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="expected those of the first round"):
        train(few, [2, 2])


def test_hard_windows_are_chosen_pass_by_pass_from_one_ranking():
    hard = {"MODEL.MAP_LOSS.WINDOWS": "hard", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100}
    passes, expected = (train(hard, sizes, num_updates=1) for sizes in ([2, 2], [4]))
    assert passes[1] == pytest.approx(expected[1], abs=1e-6)
    assert passes[1] != train(hard, [2], num_updates=1)[1]


def test_several_passes_need_the_meta_architecture_that_tells_what_is_ranked():
    own = {"MODEL.META_ARCHITECTURE": "GeneralizedRCNN"}
    train(own, [4], num_updates=1)
    with pytest.raises(ValueError, match=r"ARCHITECTURE: expected MAPRCNN .*, got Generalized"):
        train(own, [2, 2])
    train(own | {"MODEL.ROI_HEADS.NAME": "SoftmaxROIHeads"}, [2, 2], num_updates=1)


def test_passes_learn_in_mixed_precision():
    start = train(REGRESSED, [2, 2], num_updates=0)[0]
    found = train(REGRESSED, [2, 2], num_updates=1, is_amp=True)[0]
    for layer in ("box_predictor.cls_score", "box_predictor.bbox_pred", "box_head.fc1"):
        key = f"roi_heads.{layer}.weight"
        assert (found[key] - start[key]).abs().max() > 1e-5
