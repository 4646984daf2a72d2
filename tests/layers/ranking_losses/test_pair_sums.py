# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers.ranking_losses import pair_sums
from maploss.layers.ranking_losses.pair_sums import (
    BlockedPairs,
    PiecewiseLinearPairs,
    piecewise_linear_pairs,
    ramp_pairs,
)
from maploss.layers.ranking_losses.piecewise_linear import control_points, knots, piecewise_linear


def whole_matrix(queries, items, delta, points):
    """f(s_j - s_i) and its derivative by s_j, (P, D)."""
    items = items.double().requires_grad_()
    matrix = items.expand(len(queries), -1)
    x = ((matrix - queries.double()[:, None]) / (2 * delta) + 0.5).clamp(0, 1)
    values = piecewise_linear(x, points)
    slopes = torch.autograd.grad(values.sum(), matrix)[0] if values.numel() else values
    return values.detach(), slopes


def assert_sums(pairs, values, slopes):
    by_item = torch.rand(values.shape[1], dtype=torch.float64)
    by_query = torch.rand(values.shape[0], dtype=torch.float64)
    for got, want in zip(
        pairs.over_items(by_item), (values @ by_item, slopes @ by_item), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for got, want in zip(
        pairs.over_queries(by_query), (by_query @ values, by_query @ slopes), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_running_sums_give_the_sums_of_the_whole_matrix(seed):
    torch.manual_seed(seed)
    spread, delta = 10 ** torch.empty(2).uniform_(-1, 1)
    queries, items = spread * torch.randn(17), spread * torch.randn(200)
    points = control_points(torch.rand(8))
    pairs = PiecewiseLinearPairs(queries, items, float(delta), knots(points))
    assert_sums(pairs, *whole_matrix(queries, items, float(delta), points))


def test_ties_and_scores_at_the_ends_of_the_ramp_are_summed_too():
    queries = torch.tensor([0.0, 1.0, 1.0])
    items = torch.tensor([-1.0, 0.0, 0.0, 1.0, 2.0, 3.0])
    expected = torch.tensor([[0, 0.5, 0.5, 1, 1, 1], [0, 0, 0, 0.5, 1, 1], [0, 0, 0, 0.5, 1, 1]])
    got, _ = ramp_pairs(queries, items, 1.0).over_items(torch.ones(6))
    torch.testing.assert_close(got, expected.sum(1).double())
    jump = torch.tensor([[0.0, 0.5], [0.0, 0.5], [0.5, 0.5], [0.5, 0.75]])
    pairs = PiecewiseLinearPairs(queries, items, 1.0, knots(jump))
    values, _ = whole_matrix(queries, items, 1.0, jump)
    torch.testing.assert_close(pairs.over_items(torch.ones(6))[0], values.sum(1))


@pytest.mark.parametrize(("num_queries", "num_items"), [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_no_queries_or_no_items_give_empty_sums_or_zeros(num_queries, num_items):
    queries, items = torch.randn(num_queries), torch.randn(num_items)
    blocked = BlockedPairs(queries, items, lambda d: (d, torch.ones_like(d)))
    for pairs in (ramp_pairs(queries, items, 1.0), blocked):
        for got in pairs.over_items(torch.ones(num_items)):
            assert got.shape == (num_queries,)
            assert num_items or not got.any()
        for got in pairs.over_queries(torch.ones(num_queries)):
            assert got.shape == (num_items,)
            assert num_queries or not got.any()


@pytest.mark.parametrize("block", [1, 100, 1000, 1 << 20])
def test_blocks_of_any_size_give_the_sums_of_the_whole_matrix(block, monkeypatch):
    monkeypatch.setattr(pair_sums, "_BLOCK", block)
    queries, items = torch.randn(13).double(), torch.randn(70).double()
    values = torch.tanh(items - queries[:, None])
    pairs = BlockedPairs(queries, items, lambda d: (d.tanh(), 1 - d.tanh() ** 2))
    assert_sums(pairs, values, 1 - values**2)


@pytest.mark.parametrize("outlier", [-1e30, 1e15])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("gap", [0.2, 1e-6])
def test_far_scores_shifted_ones_and_steep_functions_lose_no_digits(outlier, offset, gap):
    torch.manual_seed(0)
    queries = (offset + 3 * torch.randn(20)).double()
    items = torch.cat([queries, (offset + 3 * torch.randn(5000)).double()])
    steep = torch.tensor([[0.3, 0.1], [0.5, 0.2], [0.5 + gap, 0.9], [0.9, 0.9]]).double()
    values, slopes = whole_matrix(queries, items, 1.0, steep)
    far = torch.tensor([outlier], dtype=torch.float64)
    pairs = piecewise_linear_pairs(queries, torch.cat([items, far]), 1.0, steep)
    weights = torch.rand(len(items) + 1, dtype=torch.float64)
    expected = values @ weights[:-1] + weights[-1] * (outlier > 0)
    got, got_slopes = pairs.over_items(weights)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(got_slopes, slopes @ weights[:-1], rtol=1e-7, atol=1e-7)
    by_query = torch.rand(20, dtype=torch.float64)
    got, got_slopes = pairs.over_queries(by_query)
    torch.testing.assert_close(got[:-1], by_query @ values, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(got_slopes[:-1], by_query @ slopes, rtol=1e-7, atol=1e-7)


def test_only_what_is_too_steep_goes_through_blocks():
    queries, items = torch.randn(5), torch.randn(50)
    gentle, steep = (torch.tensor([[0.5, 0.2], [0.5 + gap, 0.9]]) for gap in (0.1, 1e-6))
    assert isinstance(piecewise_linear_pairs(queries, items, 1.0, gentle), PiecewiseLinearPairs)
    assert isinstance(piecewise_linear_pairs(queries, items, 1.0, steep), BlockedPairs)
    assert isinstance(ramp_pairs(queries, items, 1e-9), BlockedPairs)
