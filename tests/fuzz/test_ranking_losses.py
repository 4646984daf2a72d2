# SPDX-License-Identifier: Apache-2.0
"""The ranking losses: symmetries, bounds, and the slow versions in tests/reference."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maploss.layers import (
    alrp_loss,
    ap_loss,
    control_points,
    direct_ap_loss,
    parameterized_ap_loss,
    rank_sort_loss,
    smooth_ap_loss,
)

from tests import strategies as draw
from tests.reference import ranking_losses as reference
from tests.reference.direct_ap_loss import (
    average_precision,
    best_of_all_rankings,
    value_of_the_ranking_found,
)
from tests.reference.parameterized_ap_loss import whole_matrix_loss

DELTAS = st.sampled_from([0.25, 0.5, 1.0, 3.0])
UPDATES = st.sampled_from(["positive", "negative"])
# Numbers for all coordinates of the control points; those of y above 0 keep H1 above 0.
_THETA = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=20, max_size=20).map(
    lambda pairs: torch.tensor(pairs, dtype=torch.float64).reshape(5, 8) / 8
)
# Loss by scores, labels, qualities and the unit of score; those that are of differences of scores
# in that unit come first.
LOSSES = {
    "ap": lambda s, x, q, unit: ap_loss(s, x, delta=unit),
    "alrp": lambda s, x, q, unit: alrp_loss(s, x, q, delta=unit),
    "rank_sort": lambda s, x, q, unit: rank_sort_loss(s, x, q, delta=unit),
    "bucketed": lambda s, x, q, unit: rank_sort_loss(s, x, q, delta=unit, bucketed=True),
    "smooth_ap": lambda s, x, q, unit: smooth_ap_loss(s, x, temperature=unit),
    "direct": lambda s, x, q, unit: direct_ap_loss(s, x, epsilon=unit),
    "linear": lambda s, x, q, unit: parameterized_ap_loss(s, x, q, form="linear"),
    "sigmoid": lambda s, x, q, unit: parameterized_ap_loss(s, x, q, form="sigmoid"),
    "square": lambda s, x, q, unit: parameterized_ap_loss(s, x, q, form="square"),
}
HAVE_A_UNIT = list(LOSSES)[:6]
NAMES = st.sampled_from(list(LOSSES))


def value_and_gradients(loss, scores, labels, quality):
    """The value and the gradients by the scores and by the qualities, 0 where there is none."""
    inputs = [scores.clone().requires_grad_(), quality.clone().requires_grad_()]
    value = loss(inputs[0], labels, inputs[1])
    value.backward()
    return value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs)


def with_unit(name, unit):
    return lambda *inputs: LOSSES[name](*inputs, unit)


def as_numpy(scores, labels, quality):
    pos, neg = (np.flatnonzero(labels.numpy() == x).tolist() for x in (1, 0))
    return scores.numpy(), pos, neg, quality.numpy()


def apart(ranking) -> tuple:
    """No difference of two scores is one at which a loss has a kink."""
    scores, *rest = ranking
    return scores + torch.arange(len(scores)) * 0.00731, *rest


@given(draw.rankings(), DELTAS, st.sampled_from(["ap", "rank_sort", "bucketed"]))
def test_values_and_updates_are_those_of_loops_over_pairs(ranking, delta, name):
    scores, pos, neg, y = as_numpy(*ranking)
    value, by_scores, _ = value_and_gradients(with_unit(name, delta), *ranking)
    if not pos:
        expected, gradient = 0.0, np.zeros(len(scores))
    elif name == "ap":
        expected, gradient = reference.ap_loss(scores, pos, neg, delta)
    else:
        slow = {
            "rank_sort": reference.rank_sort_loss,
            "bucketed": reference.bucketed_rank_sort_loss,
        }
        expected, gradient = slow[name](scores, pos, neg, y, delta)
    assert value.item() == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(by_scores.numpy(), gradient, atol=1e-9)


FORMS_OF_RANK_SORT = {
    "plain": rank_sort_loss,
    "bucketed": functools.partial(rank_sort_loss, bucketed=True),
}


def both_forms(scores, labels, quality, delta):
    """Value and gradients of Rank & Sort by the scores, plain and bucketed."""
    return [
        value_and_gradients(functools.partial(loss, delta=delta), scores, labels, quality)[:2]
        for loss in FORMS_OF_RANK_SORT.values()
    ]


@given(
    draw.rankings().filter(lambda x: (x[1] == 1).any()),
    DELTAS,
    st.sampled_from(list(FORMS_OF_RANK_SORT)),
    st.lists(st.sampled_from([0.0, 0.125, 1.0, 20.0, 1e30]), max_size=100),
)
def test_rank_sort_is_bit_for_bit_that_without_negatives_out_of_reach(ranking, delta, form, depths):
    scores, labels, quality = ranking
    loss = functools.partial(FORMS_OF_RANK_SORT[form], delta=delta)
    value, by_scores, _ = value_and_gradients(loss, scores, labels, quality)
    lowest = scores[labels == 1].min() - delta
    far = torch.tensor([lowest - depth for depth in depths], dtype=scores.dtype)
    more = torch.cat([scores, far]), torch.cat([labels, torch.zeros(len(far), dtype=torch.int64)])
    value_with, by_scores_with, _ = value_and_gradients(loss, *more, quality)
    assert value_with == value
    assert torch.equal(by_scores_with[: len(scores)], by_scores)
    assert not by_scores_with[len(scores) :].any()


@given(draw.rankings(), DELTAS)
def test_buckets_of_equal_scores_change_nothing(ranking, delta):
    scores, labels, quality = ranking
    scores = scores.clone()
    bucket = (scores[labels == 1] < scores[:, None]).sum(1)
    for place in bucket.unique():
        same = (labels == 0) & (bucket == place)
        scores[same] = scores[same][:1]
    plain, bucketed = both_forms(scores, labels, quality, delta)
    torch.testing.assert_close(bucketed, plain, rtol=1e-12, atol=1e-12)


@given(draw.rankings(has_ties=False), DELTAS)
def test_buckets_only_share_gradients_where_no_step_bends_between_two_scores(ranking, delta):
    scores, labels, quality = apart(ranking)
    # All differences are on the slope of the step, where a mean stands for its bucket exactly.
    scores = 0.9 * delta * scores / (scores.max() - scores.min()).clamp(min=1)
    plain, bucketed = both_forms(scores, labels, quality, delta)
    expected = plain[1].clone()
    bucket = (scores[labels == 1] < scores[:, None]).sum(1)
    for place in bucket.unique():
        same = (labels == 0) & (bucket == place)
        expected[same] = expected[same].mean()
    torch.testing.assert_close(bucketed, (plain[0], expected), rtol=1e-9, atol=1e-12)


@given(draw.rankings(), DELTAS)
def test_alrp_is_that_of_loops_over_pairs(ranking, delta):
    scores, pos, neg, y = as_numpy(*ranking)
    value, by_scores, by_quality = value_and_gradients(with_unit("alrp", delta), *ranking)
    if not pos:
        assert value == 0
        return
    expected, localisation, *gradients = reference.alrp_loss(scores, pos, neg, y, delta)
    assert value.item() == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(by_scores.numpy(), gradients[0], atol=1e-9)
    balance = expected / localisation if localisation > 0 else 1.0
    np.testing.assert_allclose(by_quality.numpy(), balance * gradients[1], atol=1e-9)


@given(draw.rankings(), st.sampled_from([0.125, 1.0, 4.0]))
def test_smooth_ap_is_that_of_a_loop_and_its_gradient_the_derivative(ranking, temperature):
    scores, labels, _ = ranking
    value, by_scores, _ = value_and_gradients(with_unit("smooth_ap", temperature), *ranking)
    if not (labels == 1).any():
        assert not by_scores.any()
        return
    values, pos, neg, _ = as_numpy(*ranking)
    assert value.item() == pytest.approx(
        reference.smooth_ap_loss(values, pos, neg, temperature), abs=1e-12
    )
    x = scores.clone().requires_grad_()
    above = torch.sigmoid((x - x[pos, None]) / temperature)
    false, true = above[:, neg].sum(1), above[:, pos].sum(1) + 0.5
    (false / (false + true)).mean().backward()
    torch.testing.assert_close(by_scores, x.grad, rtol=1e-9, atol=1e-12)


@given(
    draw.rankings(has_ties=False),
    _THETA,
    st.sampled_from(["searched", "linear", "sigmoid", "square"]),
    st.integers(1, 14),
)
def test_parameterized_ap_is_that_of_the_whole_matrix(ranking, theta, form, num_ranked):
    scores, labels, quality = apart(ranking)
    # Away from the knots of I1, I2 and I3.
    quality = 0.98 * quality + 0.0061
    points = control_points(theta)
    given_settings = {"points": points, "form": form, "num_ranked": num_ranked}
    found = value_and_gradients(
        functools.partial(parameterized_ap_loss, **given_settings), scores, labels, quality
    )
    if not (labels == 1).any():
        assert not any(x.any() for x in found)
        return
    expected = value_and_gradients(
        lambda s, x, q: whole_matrix_loss(s, x, q, points, form, num_ranked),
        scores,
        labels,
        quality,
    )
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


@given(
    draw.rankings(max_size=5).filter(lambda x: {0, 1} <= set(x[1].tolist())),
    st.sampled_from([0.25, 1.0, 8.0]),
    UPDATES,
)
def test_direct_loss_minimisation_finds_the_best_of_all_rankings(ranking, epsilon, update):
    labels = ranking[1]
    is_counted = labels >= 0
    scores, labels = apart(ranking)[0][is_counted].numpy(), labels[is_counted].numpy()
    best, direct = best_of_all_rankings(scores, labels, epsilon, update)
    found = value_of_the_ranking_found(scores, labels, epsilon, update)
    assert found == pytest.approx(best, abs=1e-9)
    value, gradient, _ = value_and_gradients(
        lambda s, x, q: direct_ap_loss(s, x, epsilon=epsilon, update=update),
        torch.tensor(scores),
        torch.tensor(labels),
        ranking[2],
    )
    order = np.argsort(-scores, kind="stable")
    assert value.item() == pytest.approx(1 - average_precision(labels[order]), abs=1e-12)
    # With an epsilon so small that the loss does not count, the ranking by score is the best.
    _, own = best_of_all_rankings(scores, labels, 0.0, update)
    sign = 1 if update == "positive" else -1
    np.testing.assert_allclose(gradient, sign * (direct - own) / epsilon, atol=1e-12)


@given(draw.rankings(has_ties=False), NAMES, DELTAS, st.randoms())
def test_the_order_of_the_scores_does_not_matter(ranking, name, unit, random):
    scores, labels, quality = apart(ranking)
    value, by_scores, by_quality = value_and_gradients(
        with_unit(name, unit), scores, labels, quality
    )
    order = list(range(len(scores)))
    random.shuffle(order)
    place = torch.zeros_like(labels).masked_scatter(labels == 1, torch.arange(len(quality)))
    among_positives = place[order][labels[order] == 1]
    other = value_and_gradients(
        with_unit(name, unit), scores[order], labels[order], quality[among_positives]
    )
    expected = (value, by_scores[order], by_quality[among_positives])
    torch.testing.assert_close(other, expected, rtol=1e-9, atol=1e-9)


@given(
    draw.rankings(),
    st.sampled_from(HAVE_A_UNIT),
    DELTAS,
    st.sampled_from([0.125, 2.0, 1024.0]),
    st.integers(-64, 64),
)
def test_shifts_and_scales_with_the_unit_scale_gradients_only(ranking, name, unit, scale, shift):
    # On the grid two rankings may be the best of direct minimisation; rounding chooses.
    scores, labels, quality = apart(ranking) if name == "direct" else ranking
    value, by_scores, by_quality = value_and_gradients(
        with_unit(name, unit), scores, labels, quality
    )
    moved = value_and_gradients(
        with_unit(name, unit * scale), scores * scale + shift, labels, quality
    )
    # Updates of pairs have no unit; a derivative and direct minimisation are per unit of score.
    factor = 1 / scale if name in ("smooth_ap", "direct") else 1
    torch.testing.assert_close(
        moved, (value, by_scores * factor, by_quality), rtol=1e-9, atol=1e-9 * factor
    )


@given(st.data(), draw.DTYPES, NAMES, DELTAS)
def test_losses_are_bounded_and_gradients_finite_whatever_the_scores(data, dtype, name, unit):
    scores, labels, quality = data.draw(draw.rankings(dtype=dtype))
    extreme = data.draw(draw.extreme_scores(len(scores), dtype))
    for some in (scores, extreme):
        value, by_scores, by_quality = value_and_gradients(
            with_unit(name, unit), some, labels, quality
        )
        # Rank & Sort is a sum of two.
        largest = 2 if name in ("rank_sort", "bucketed") else 1
        assert -1e-6 <= value.item() <= largest + 1e-6
        assert by_scores.isfinite().all()
        assert by_quality.isfinite().all()
        assert not by_scores[labels == -1].any()


@given(draw.rankings(), NAMES, DELTAS)
def test_gradients_sum_to_zero_and_push_apart(ranking, name, unit):
    _, by_scores, _ = value_and_gradients(with_unit(name, unit), *ranking)
    labels = ranking[1]
    assert abs(float(by_scores.sum())) < 1e-9
    assert (by_scores[labels == 0] >= -1e-9).all()
    assert not by_scores[labels == -1].any()
    if not (labels == 1).any():
        assert not by_scores.any()


@given(st.data(), draw.rankings(), NAMES, DELTAS)
def test_labels_that_are_ignored_might_as_well_be_left_out(data, ranking, name, unit):
    scores, labels, quality = apart(ranking)
    counts = labels >= 0
    value, by_scores, by_quality = value_and_gradients(
        with_unit(name, unit), scores, labels, quality
    )
    moved = scores.clone()
    moved[~counts] = data.draw(draw.extreme_scores(int((~counts).sum()), torch.float64))
    rest = value_and_gradients(with_unit(name, unit), scores[counts], labels[counts], quality)
    assert torch.equal(value_and_gradients(with_unit(name, unit), moved, labels, quality)[0], value)
    torch.testing.assert_close(rest, (value, by_scores[counts], by_quality), rtol=1e-12, atol=1e-12)
