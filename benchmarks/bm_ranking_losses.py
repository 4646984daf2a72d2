# SPDX-License-Identifier: Apache-2.0
"""
Time and peak memory of all ranking losses and of the mAP loss on the same logits, in one run.

    python -m benchmarks.bm_ranking_losses [--device cuda] [--repeats 1]

Two cases: 1,000 positives and 100,000 negatives, of one class, and 16 images x 2,000 windows x 20
classes. Forward and backward; the ranking losses see one list of all windows and
classes, the mAP loss and direct loss minimisation each class by itself. Ratios are to binary
cross-entropy of the same logits. Windows are those of `bm_map_loss.py`.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from maploss.layers import (
    MAPLossSettings,
    alrp_loss,
    ap_loss,
    direct_ap_loss,
    map_loss,
    parameterized_ap_loss,
    rank_sort_loss,
    smooth_ap_loss,
)
from torch.nn import functional as F

from benchmarks.bm_map_loss import Minibatch, make_minibatch, peak_mebibytes, seconds
from benchmarks.report import Row, machine, table

NUM_NEGATIVES = 100_000


class Case(NamedTuple):
    """
    batch: of R windows. labels: (R, K) of 1, 0, -1. quality: (P,) of the labels that are 1.
    """

    batch: Minibatch
    labels: torch.Tensor
    quality: torch.Tensor


def one_class(device: torch.device, num_negatives: int) -> Case:
    """The first class alone; a hundredth as many windows, those of most overlap, are positive."""
    num_positives = num_negatives // 100
    batch = make_minibatch(-(-(num_positives + num_negatives) // 2000), device)
    batch = batch._replace(
        scores=batch.scores[:, :1].contiguous(), gt_classes=torch.zeros_like(batch.gt_classes)
    )
    iou = _overlaps(batch)[:, 0]
    order = iou.argsort(descending=True)
    labels = torch.full_like(order, -1)[:, None]
    labels[order[: num_positives + num_negatives]] = 0
    labels[order[:num_positives]] = 1
    return Case(batch, labels, iou[labels[:, 0] == 1])


def all_classes(device: torch.device, num_images: int) -> Case:
    """20 classes; windows that overlap an object by half are positive for its class."""
    batch = make_minibatch(num_images, device)
    iou = _overlaps(batch)
    labels = (iou >= 0.5).long()
    return Case(batch, labels, iou[labels == 1])


def _overlaps(batch: Minibatch) -> torch.Tensor:
    """(R, K) the largest IoU of each window with an object of each class in its image."""
    iou = pairwise_iou(Boxes(batch.boxes), Boxes(batch.gt_boxes))
    iou *= batch.image_ids[:, None] == batch.gt_image_ids
    result = torch.zeros_like(batch.scores)
    for c in batch.gt_classes.unique().tolist():
        result[:, c] = iou[:, batch.gt_classes == c].amax(dim=1)
    return result


def run_flat(loss: Callable, case: Case, has_quality: bool) -> None:
    """Forward and backward of a loss of one list of scores."""
    scores = case.batch.scores.detach().clone().requires_grad_()
    inputs = [scores.flatten(), case.labels.flatten()]
    if has_quality:
        inputs.append(case.quality.clone().requires_grad_())
    loss(*inputs).backward()


def run_per_class(case: Case) -> None:
    """Forward and backward of direct loss minimisation, the mean of the classes present."""
    scores = case.batch.scores.detach().clone().requires_grad_()
    present = (case.labels == 1).any(dim=0).nonzero().squeeze(1).tolist()
    losses = [direct_ap_loss(scores[:, c], case.labels[:, c], epsilon=1.0) for c in present]
    (sum(losses) / len(present)).backward()


def run_map_loss(case: Case, settings: MAPLossSettings) -> None:
    """Forward and backward of the mAP loss."""
    scores = case.batch.scores.detach().clone().requires_grad_()
    loss, _ = map_loss(scores, *case.batch[1:], settings=settings)
    loss.backward()


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the labels that are not ignored."""
    is_known = labels >= 0
    return F.binary_cross_entropy_with_logits(scores[is_known], labels[is_known].to(scores.dtype))


def works(case: Case) -> dict[str, Callable[[], None]]:
    """What is measured, by name; the first is the unit."""
    forms = {
        f"parameterized_ap, {form}": (partial(parameterized_ap_loss, form=form), True)
        for form in ("linear", "square", "sigmoid")
    }
    flat = {
        "cross-entropy": (cross_entropy, False),
        **forms,
        "ap": (ap_loss, False),
        "alrp": (alrp_loss, True),
        "rank_sort": (rank_sort_loss, True),
        "bucketed_rank_sort": (partial(rank_sort_loss, bucketed=True), True),
        "smooth_ap": (smooth_ap_loss, False),
    }
    found: dict[str, Callable[[], None]] = {
        name: partial(run_flat, loss, case, has_quality)
        for name, (loss, has_quality) in flat.items()
    }
    found["direct_ap"] = partial(run_per_class, case)
    # Class by class, as the others.
    pairs = MAPLossSettings(transitivity="label_aware", pooled=0.0)
    exact = MAPLossSettings(gradient="mee", transitivity="exact", pooled=0.0)
    found["map, error_driven"] = partial(run_map_loss, case, pairs)
    found["map, mee exact"] = partial(run_map_loss, case, exact)
    return found


def measure(
    device: str = "cpu",
    *,
    repeats: int = 1,
    num_negatives: int = NUM_NEGATIVES,
    num_images: int = 16,
) -> list[Row]:
    """Each loss on one class with a positive for 100 negatives, and on the images."""
    where = torch.device(device)
    rows = []
    for case in (one_class(where, num_negatives), all_classes(where, num_images)):
        shape = " x ".join(map(str, case.labels.shape))
        num_positives, num_others = (int((case.labels == x).sum()) for x in (1, 0))
        unit = None
        for name, work in works(case).items():
            time = seconds(work, where, repeats)
            note = "" if unit else f"{num_positives} positive, {num_others} negative"
            unit = unit or time
            peak = peak_mebibytes(work, where)
            rows.append(
                Row(
                    Path(__file__).stem,
                    f"{shape}: {name}",
                    1e3 * time,
                    time / unit,
                    "cross-entropy",
                    peak,
                    "peak",
                    note,
                )
            )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    print(machine(args.device))
    print(table(measure(args.device, repeats=args.repeats)))


if __name__ == "__main__":
    main()
