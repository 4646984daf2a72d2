# SPDX-License-Identifier: Apache-2.0
"""
Parameterized AP Loss (Tao et al., "Searching Parameterized AP Loss for Object Detection", NeurIPS
2021).

Shape letters: D scores, all windows x classes of the minibatch, P of them positive.
"""

from typing import NamedTuple, Protocol

import torch
from torch import nn

from ..checks import check_choice, check_positive
from ..surrogate_gradient import attach_gradient, scale_gradient
from .labels import IGNORED, POSITIVE, check_ranking
from .pair_sums import BlockedPairs, PairSums, piecewise_linear_pairs
from .piecewise_linear import check_points, identity_points, piecewise_linear

# The five functions, in the order of their control points.
FUNCTIONS = ("H1", "H2", "I1", "I2", "I3")
FORMS = ("searched", "linear", "sigmoid", "square")


def parameterized_ap_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    *,
    points: torch.Tensor | None = None,
    form: str = "searched",
    num_ranked: int = 100_000,
) -> torch.Tensor:
    """
    1 - AP, for a score and for a localization error, with searched functions in the place of steps.

    With u the quality of the boxes, 0 for negatives, and x_ji = clamp((s_j - s_i) / 2 + 1/2, 0, 1),

        L = 1/P sum_i [1 - I1(u_i) + I3(u_i) sum_j H2(x_ji) (1 - I2(u_j)) / sum_j H1(x_ji)],

    i over the positives, j over the `num_ranked` best scores. It is 1 - AP if all functions are
    steps. The gradient by the scores is that of H2 alone, H1 is a constant to it; the gradient by
    the qualities is that of I1, I2 and I3.

    `searched` and `linear` take time and memory of O(P + D) but for a sort (functions that are all
    but steps go through blocks too). `sigmoid` and `square`, which the paper compares with, go
    through all pairs, in blocks.

    Args:
        scores: (D,) logits, float32 or float64.
        labels: (D,) int64, 1 positive, 0 negative, -1 ignored.
        quality: (P,) in [0, 1], of the positives in their order, (GIoU + 1) / 2 in the paper.
        points: (5, 4, 2) control points of H1, H2, I1, I2, I3, for `searched`; None for identity
            functions.
        form: "searched"; "linear": identity functions; "sigmoid": H(d) = sigmoid(d) of d = s_j -
            s_i and I(u) = sigmoid(2 u - 1); "square": H = x^2, I = u^2.
        num_ranked: how many of the best scores that are not ignored are ranked; positives compete
            for these places as negatives do, and are summed over (i) all the same.

    Returns:
        0-d of the scores' dtype, 0 without positives.

    Raises:
        ValueError, TypeError: a wrong shape, dtype, label, quality, name or number of ranked ones;
            points of another shape, out of [0, 1], or that fall.
        FloatingPointError: a score that is not finite.

    Example:
        >>> scores = torch.tensor([2.5, 2.0, 0.0], requires_grad=True)
        >>> quality = torch.tensor([0.75], requires_grad=True)
        >>> loss = parameterized_ap_loss(scores, torch.tensor([0, 1, 0]), quality)
        >>> loss.backward()
        >>> loss.detach(), scores.grad, quality.grad
        (tensor(0.7750), tensor([ 0.3000, -0.3000,  0.0000]), tensor([-0.6000]))
    """
    check_ranking(scores, labels, quality)
    _check_settings(form, num_ranked)
    if points is None:
        points = _identity_functions()
    check_points("points", points, len(FUNCTIONS))
    return _loss(scores, labels, quality, points, form, num_ranked)


class ParameterizedAPLoss(nn.Module):
    """
    :func:`parameterized_ap_loss` with its settings; the control points are a buffer.

    So they are in the checkpoint, and on the device that the model is on. The gradient by the
    qualities is multiplied by `gradient_scale`, a searched number too.

    Example:
        >>> loss = ParameterizedAPLoss(gradient_scale=7.13)
        >>> loss(torch.tensor([3.0, 2.0, 0.0]), torch.tensor([0, 1, 0]), torch.tensor([0.8]))
        tensor(0.7867)
    """

    points: torch.Tensor
    gradient_scale: torch.Tensor

    def __init__(
        self,
        *,
        points: torch.Tensor | None = None,
        gradient_scale: float = 1.0,
        form: str = "searched",
        num_ranked: int = 100_000,
    ) -> None:
        """
        Args:
            points: as for :func:`parameterized_ap_loss`.
            gradient_scale: above 0.
            form: as for :func:`parameterized_ap_loss`.
            num_ranked: as for :func:`parameterized_ap_loss`.

        Raises:
            ValueError: as :func:`parameterized_ap_loss`.
        """
        super().__init__()
        _check_settings(form, num_ranked)
        check_positive("gradient_scale", gradient_scale)
        if points is None:
            points = _identity_functions()
        check_points("points", points, len(FUNCTIONS))
        self.form = form
        self.num_ranked = num_ranked
        self.register_buffer("points", points.double())
        self.register_buffer("gradient_scale", torch.tensor(float(gradient_scale)).double())

    def forward(
        self, scores: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor
    ) -> torch.Tensor:
        """The loss, 0-d; arguments and errors as for :func:`parameterized_ap_loss`."""
        check_ranking(scores, labels, quality)
        quality = scale_gradient(quality, self.gradient_scale.to(quality.dtype))
        return _loss(scores, labels, quality, self.points, self.form, self.num_ranked)


def _check_settings(form: str, num_ranked: int) -> None:
    check_choice("form", form, FORMS)
    if num_ranked < 1:
        raise ValueError(f"num_ranked: expected at least 1, got {num_ranked}")


def _identity_functions() -> torch.Tensor:
    return identity_points().repeat(len(FUNCTIONS), 1, 1)


def _loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    points: torch.Tensor,
    form: str,
    num_ranked: int,
) -> torch.Tensor:
    """The loss of inputs that have been checked."""
    positives = (labels == POSITIVE).nonzero().squeeze(1)
    if len(positives) == 0:
        return (scores * 0.0).sum() + (quality * 0.0).sum()
    if form == "linear":
        points = _identity_functions()
    functions = _FUNCTIONS_OF_FORMS.get(form, _Searched)(points.to(scores.device))
    with torch.no_grad():
        result = _value_and_gradients(scores, labels, positives, quality, functions, num_ranked)
    return attach_gradient(
        result.value.to(scores.dtype),
        (scores, quality),
        (result.by_scores.to(scores.dtype), result.by_quality.to(quality.dtype)),
    )


class _Functions(Protocol):
    def pairs(self, queries: torch.Tensor, items: torch.Tensor) -> tuple[PairSums, PairSums]:
        """The sums of H1 and of H2."""
        ...

    def of_quality(self, u: torch.Tensor, which: int) -> torch.Tensor:
        """I1, I2 or I3 of u, differentiable."""
        ...


class _Searched:
    def __init__(self, points: torch.Tensor) -> None:
        self._points = points

    def pairs(self, queries: torch.Tensor, items: torch.Tensor) -> tuple[PairSums, PairSums]:
        h1, h2 = (piecewise_linear_pairs(queries, items, 1.0, x) for x in self._points[:2])
        return h1, h2

    def of_quality(self, u: torch.Tensor, which: int) -> torch.Tensor:
        return piecewise_linear(u, self._points[1 + which])


class _Sigmoid:
    def __init__(self, points: torch.Tensor) -> None:
        pass

    def pairs(self, queries: torch.Tensor, items: torch.Tensor) -> tuple[PairSums, PairSums]:
        pairs = BlockedPairs(queries, items, self._h)
        return pairs, pairs

    def of_quality(self, u: torch.Tensor, which: int) -> torch.Tensor:
        return torch.sigmoid(2 * u - 1)

    @staticmethod
    def _h(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.sigmoid(d)
        return h, h * (1 - h)


class _Square(_Sigmoid):
    def of_quality(self, u: torch.Tensor, which: int) -> torch.Tensor:
        return u.square()

    @staticmethod
    def _h(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = (d / 2 + 0.5).clamp(0, 1)
        return x.square(), x * (d < 1)


_FUNCTIONS_OF_FORMS: dict[str, type] = {"sigmoid": _Sigmoid, "square": _Square}


class _Result(NamedTuple):
    value: torch.Tensor
    by_scores: torch.Tensor
    by_quality: torch.Tensor


def _value_and_gradients(
    scores: torch.Tensor,
    labels: torch.Tensor,
    positives: torch.Tensor,
    quality: torch.Tensor,
    functions: _Functions,
    num_ranked: int,
) -> _Result:
    ranked = (labels != IGNORED).nonzero().squeeze(1)
    if len(ranked) > num_ranked:
        ranked = ranked[scores[ranked].topk(num_ranked).indices]
    u = quality.detach().double().requires_grad_()
    with torch.enable_grad():
        i1, i2, i3 = (functions.of_quality(u, which) for which in (1, 2, 3))
    num_positives = len(positives)
    # 1 - I2 of all, that of negatives being of quality 0, and of those that are ranked.
    localization_error = 1 - functions.of_quality(u.new_zeros(1), 2).expand(len(scores)).clone()
    localization_error[positives] = 1 - i2.detach()
    h1, h2 = functions.pairs(scores[positives], scores[ranked])
    rank, _ = h1.over_items(torch.ones_like(localization_error[ranked]))
    errors, slopes = h2.over_items(localization_error[ranked])
    # H1 may be 0 at 1/2: then a positive above all others has rank 0, and no errors to share.
    inverse = torch.where(rank > 0, 1 / rank, 0.0)
    each = i3.detach() * inverse / num_positives
    value = (1 - i1.detach()).mean() + (each * errors).sum()
    counts, changes = h2.over_queries(each)
    by_scores = scores.new_zeros(len(scores), dtype=torch.float64)
    by_scores[ranked] = changes * localization_error[ranked]
    by_scores[positives] -= each * slopes
    # How often each positive's localization error is counted.
    weight = scores.new_zeros(len(scores), dtype=torch.float64)
    weight[ranked] = counts
    weights = (
        torch.full_like(u, -1 / num_positives),
        -weight[positives],
        errors * inverse / num_positives,
    )
    (by_quality,) = torch.autograd.grad((i1, i2, i3), u, weights)
    return _Result(value, by_scores, by_quality)
