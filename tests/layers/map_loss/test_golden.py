# SPDX-License-Identifier: Apache-2.0
"""One overlap gives what version 0.1.0 gave, which looped over classes: see record_golden.py."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from maploss.layers import DetectionMemory, MAPLossSettings, map_loss

from tests.distributed import run_ranks

INPUTS = ["scores", "boxes", "image_ids", "gt_boxes", "gt_classes", "gt_image_ids", "gt_difficult"]
SETTINGS = ["gradient", "transitivity", "pairing", "ap_type", "nms_thresh", "margin", "min_delta"]
SETTINGS += ["log_space", "eps"]


class Golden(NamedTuple):
    """Turns: minibatches by turn and rank. The others: by rank, of the last turn."""

    settings: MAPLossSettings
    memory_size: int
    turns: list[list[dict]]
    loss: list[float]
    ap_per_class: list[torch.Tensor]
    gradient: list[torch.Tensor]


def load_cases() -> list[Golden]:
    with np.load(Path(__file__).with_name("golden.npz")) as file:
        data = {name: file[name] for name in file.files}
    sizes = dict.fromkeys([*INPUTS, "loss", "ap_per_class", "score_gradient"], 0)

    def take(name: str, *shape: int) -> torch.Tensor:
        """The next part of an array that holds one of each block."""
        start, sizes[name] = sizes[name], sizes[name] + math.prod(shape)
        return torch.from_numpy(data[name][start : sizes[name]].reshape(shape))

    cases = [_without_data(data, i) for i in range(len(data["gradient"]))]
    for case, turn, rank, num_windows, num_classes, num_gt, is_by_class in data["blocks"].tolist():
        golden, dtype = cases[case], getattr(torch, str(data["dtype"][case]))
        box_shape = (num_windows, num_classes, 4) if is_by_class else (num_windows, 4)
        batch = {
            "scores": take("scores", num_windows, num_classes).to(dtype) / 4096,
            "boxes": take("boxes", *box_shape).to(dtype) / 2,
            "image_ids": take("image_ids", num_windows).long(),
            "gt_boxes": take("gt_boxes", num_gt, 4).to(dtype) / 2,
            "gt_classes": take("gt_classes", num_gt).long(),
            "gt_image_ids": take("gt_image_ids", num_gt).long(),
            "gt_difficult": take("gt_difficult", num_gt),
        }
        if rank == 0:
            golden.turns.append([])
        golden.turns[-1].append(batch)
        if turn == (2 if golden.memory_size else 0):
            golden.loss.append(float(take("loss", 1)))
            golden.ap_per_class.append(take("ap_per_class", num_classes))
            golden.gradient.append(take("score_gradient", num_windows, num_classes).to(dtype))
    return cases


def _without_data(data: dict, case: int) -> Golden:
    clip = float(data["grad_clip"][case])
    settings = MAPLossSettings(
        pooled=0.0,
        iou_threshs=(float(data["iou_thresh"][case]),),
        grad_clip=None if math.isnan(clip) else clip,
        **{name: data[name][case].item() for name in SETTINGS},
    )
    return Golden(settings, int(data["memory_size"][case]), [], [], [], [])


CASES = load_cases()
ALONE = [i for i, case in enumerate(CASES) if len(case.loss) == 1]
IN_GROUPS = [i for i, case in enumerate(CASES) if len(case.loss) == 2]


def compute(case: Golden, rank: int = 0, group=None) -> tuple:
    """Loss, AP of each class and gradient of the last turn."""
    memory = DetectionMemory(case.memory_size) if case.memory_size else None
    for ranks in case.turns:
        scores = ranks[rank]["scores"].clone().requires_grad_()
        loss, stats = map_loss(
            **{**ranks[rank], "scores": scores},
            settings=case.settings,
            group=group,
            memory=memory,
        )
        loss.backward()
    return loss.detach(), stats.ap_per_class, scores.grad


def check(case: Golden, rank: int, loss, ap_per_class, gradient) -> None:
    # Since then the loss of log space is 0 at mAP 1.
    shift = math.log(1 + case.settings.eps) if case.settings.log_space else 0.0
    assert loss.item() == pytest.approx(case.loss[rank] + shift, abs=1e-6)
    torch.testing.assert_close(
        ap_per_class, case.ap_per_class[rank], atol=1e-6, rtol=0, equal_nan=True
    )
    # The gradients stored are float32. Those of float32 scores are sums of some tens of terms, each
    # of which was rounded to float32 (6e-8 of it).
    rtol = 1e-5 if gradient.dtype == torch.float32 else 0
    torch.testing.assert_close(gradient, case.gradient[rank], atol=1e-6, rtol=rtol)


@pytest.mark.parametrize("index", ALONE)
def test_one_process_has_the_loss_and_the_gradient_of_version_0_1_0(index):
    check(CASES[index], 0, *compute(CASES[index]))


def of_this_rank(indices: list[int]) -> list[tuple]:
    group, rank = torch.distributed.group.WORLD, torch.distributed.get_rank()
    return [compute(CASES[index], rank, group) for index in indices]


def test_two_processes_have_the_loss_and_the_gradients_of_version_0_1_0():
    for rank, results in enumerate(run_ranks(of_this_rank, 2, IN_GROUPS)):
        for index, result in zip(IN_GROUPS, results, strict=True):
            check(CASES[index], rank, *result)
