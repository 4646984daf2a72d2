# SPDX-License-Identifier: Apache-2.0
"""
Learning to rank documents: pointwise, pairwise, and losses whose gradient comes from the metric.

    python -m experiments.learning_to_rank [--seeds 3] [--updates 150] [--queries 300]

Prints a table in Markdown, mean and standard deviation over seeds: nDCG@10 and AP (grade 3 or
more) of held-out queries, in percent, and the step size, which each loss chooses from one list by
what it is to raise (nDCG@10, or AP for losses of AP) on validation queries of the first seed.
Queries are synthetic: 40 documents of 10 features, a hidden function of them plus noise cut into
grades 0 .. 4. The ranker is a network of 16 hidden units. Within a seed all losses see the same
batches of 4 queries from the same start, with Adam. Margin, min_delta and epsilon are fixed. The
losses of nDCG and AP leave the scale of the scores open: they have MAPLoss's term of squared scores
beside them, which the others do not need. About a minute on one core.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from maploss.layers import (
    Steps,
    ap_steps,
    average_precision,
    error_driven_gradient,
    pseudo_gradient,
)
from maploss.layers.ranking_losses.direct_ap_loss import direct_ap_loss
from maploss.layers.steps.dcg_steps import dcg, dcg_steps
from tabulate import tabulate
from torch import nn

NUM_DOCUMENTS, NUM_FEATURES, BATCH, RELEVANT = 40, 10, 4, 3
NUM_VALIDATION, NUM_TEST = 50, 100
# Of all documents, how many have at most grade 0, 1, 2, 3.
GRADE_QUANTILES = (0.5, 0.75, 0.88, 0.96)
STEP_SIZES = (0.01, 0.03, 0.1)
MIN_DELTA, MARGIN, EPSILON = 0.5, 1.0, 10.0
SCORE_REG_WEIGHT = 0.001

# Scores (D,) and grades (D,) of one query to its loss.
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Queries(NamedTuple):
    """features: (Q, D, NUM_FEATURES). grades: (Q, D) int64."""

    features: torch.Tensor
    grades: torch.Tensor


def make_queries(seed: int, nums: tuple[int, ...]) -> list[Queries]:
    """So many queries of each split, of one hidden function."""
    generator = torch.Generator().manual_seed(seed)
    randn = partial(torch.randn, generator=generator)
    first, second = 0.5 * randn(NUM_FEATURES, 16), 0.7 * randn(NUM_FEATURES, 16)
    # Queries differ in what their documents have in common.
    features = randn(sum(nums), NUM_DOCUMENTS, NUM_FEATURES)
    features += 0.5 * randn(sum(nums), 1, NUM_FEATURES)
    latent = ((features @ first).tanh() * (features @ second).cos()).sum(2)
    latent += 0.3 * latent.std() * randn(latent.shape)
    cuts = torch.quantile(latent.flatten(), torch.tensor(GRADE_QUANTILES))
    grades = torch.bucketize(latent, cuts)
    return [Queries(*x) for x in zip(features.split(nums), grades.split(nums), strict=True)]


def gains_of(grades: torch.Tensor) -> torch.Tensor:
    """Such that DCG with them is nDCG; 0 where all grades are."""
    gains = 2.0**grades - 1
    return gains / dcg(gains, gains).clamp(min=1).float()


def objects_of(grades: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Each relevant document as an object of its own, -1 for the others; how many."""
    is_relevant = grades >= RELEVANT
    return torch.where(is_relevant, is_relevant.cumsum(0) - 1, -1), int(is_relevant.sum())


def regression(scores: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the grade."""
    return F.mse_loss(scores, grades.float())


def pairwise_logistic(scores: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
    """RankNet (Burges et al., ICML 2005): mean over pairs of different grades."""
    better, worse = (grades[:, None] > grades).nonzero(as_tuple=True)
    return F.softplus(scores[worse] - scores[better]).sum() / max(len(better), 1)


def dcg_of_steps(scores: torch.Tensor, grades: torch.Tensor) -> Steps:
    """Of nDCG of the whole list."""
    return dcg_steps(scores, gains_of(grades))


def ap_of_steps(scores: torch.Tensor, grades: torch.Tensor) -> Steps:
    """Of AP."""
    return ap_steps(scores, *objects_of(grades))


def ascend(gradient: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Whatever its value, its descent raises the scores along `gradient`."""
    return SCORE_REG_WEIGHT * scores.square().sum() - (gradient * scores).sum()


def nearest_steps(
    scores: torch.Tensor,
    grades: torch.Tensor,
    find: Callable[[torch.Tensor, torch.Tensor], Steps],
    estimator: str,
) -> torch.Tensor:
    """The paired pseudo-gradient of what `find` gives the steps of."""
    detached = scores.detach()
    steps = find(detached, grades)
    return ascend(pseudo_gradient(steps, detached, estimator, MIN_DELTA, "paired"), scores)


def ap_pairs(scores: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
    """All pairs in the wrong order, as `map_loss` takes them unless told otherwise."""
    return ascend(
        error_driven_gradient(scores.detach(), *objects_of(grades), margin=MARGIN), scores
    )


def direct(scores: torch.Tensor, grades: torch.Tensor, update: str) -> torch.Tensor:
    """Direct loss minimisation of AP."""
    loss = direct_ap_loss(scores, (grades >= RELEVANT).long(), epsilon=EPSILON, update=update)
    return loss + SCORE_REG_WEIGHT * scores.square().sum()


# Name: loss of one query, and what it is to raise (0 nDCG@10, 1 AP).
LOSSES: dict[str, tuple[Loss, int]] = {
    "regression": (regression, 0),
    "pairwise logistic": (pairwise_logistic, 0),
    "nDCG, mee": (partial(nearest_steps, find=dcg_of_steps, estimator="mee"), 0),
    "nDCG, sde": (partial(nearest_steps, find=dcg_of_steps, estimator="sde"), 0),
    "AP, mee": (partial(nearest_steps, find=ap_of_steps, estimator="mee"), 1),
    "AP, pairs": (ap_pairs, 1),
    "direct AP, positive": (partial(direct, update="positive"), 1),
    "direct AP, negative": (partial(direct, update="negative"), 1),
}


def train(loss: Loss, queries: Queries, seed: int, step_size: float, updates: int) -> nn.Module:
    """A ranker; batches and start depend on the seed alone."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=step_size)
    for _ in range(updates):
        chosen = torch.randperm(len(queries.grades))[:BATCH]
        scores = model(queries.features[chosen]).squeeze(2)
        total = sum(loss(*query) for query in zip(scores, queries.grades[chosen], strict=True))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model


@torch.no_grad()
def evaluate(model: nn.Module, queries: Queries) -> tuple[float, float]:
    """Mean nDCG@10 and mean AP in percent, each of the queries that have it."""
    ndcgs, aps = [], []
    for scores, grades in zip(model(queries.features).squeeze(2), queries.grades, strict=True):
        gains = 2.0**grades - 1
        if gains.any():
            ndcgs.append(float(dcg(scores, gains, 10) / dcg(gains, gains, 10)))
        objects, num = objects_of(grades)
        if num:
            aps.append(float(average_precision(scores, objects, num)))
    return 100 * statistics.mean(ndcgs), 100 * statistics.mean(aps)


def main() -> None:
    """Chooses step sizes, trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    for name, default in (("--seeds", 3), ("--updates", 150), ("--queries", 300)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    for name, number in vars(args).items():
        if number < 1:
            parser.error(f"--{name}: expected at least 1, got {number}")
    torch.set_num_threads(1)
    nums = (args.queries, NUM_VALIDATION, NUM_TEST)
    data = [make_queries(seed, nums) for seed in range(args.seeds)]
    rows = []
    for name, (loss, metric) in LOSSES.items():
        training, validation, test = data[0]
        models = {size: train(loss, training, 0, size, args.updates) for size in STEP_SIZES}
        reached = {size: evaluate(model, validation)[metric] for size, model in models.items()}
        step_size = max(STEP_SIZES, key=reached.__getitem__)
        results = [evaluate(models[step_size], test)]
        for seed, (training, _, test) in enumerate(data[1:], 1):
            model = train(loss, training, seed, step_size, args.updates)
            results.append(evaluate(model, test))
        cells = [
            f"{statistics.mean(x):.1f} ± {statistics.pstdev(x):.1f}"
            for x in zip(*results, strict=True)
        ]
        rows.append([name, *cells, step_size])
    print(tabulate(rows, ["loss", "nDCG@10", "AP", "step size"], tablefmt="github"))


if __name__ == "__main__":
    main()
