# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from maploss.layers import LowRankLinear, truncated_svd


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 3)])
def test_at_full_rank_nothing_is_lost(shape):
    weight = torch.randn(shape, dtype=torch.float64)
    thin = truncated_svd(weight, min(shape))
    torch.testing.assert_close(thin.second @ thin.first, weight)
    assert thin.error == pytest.approx(0, abs=1e-12)


def test_what_is_lost_are_the_small_singular_values():
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64))[0] for n in (6, 9))
    weight = left @ torch.diag(torch.tensor([3.0, 2, 1], dtype=torch.float64)) @ right.T
    thin = truncated_svd(weight, 2)
    assert thin.first.shape == (2, 9)
    assert thin.second.shape == (6, 2)
    expected = (
        left[:, :2] @ torch.diag(torch.tensor([3.0, 2], dtype=torch.float64)) @ right[:, :2].T
    )
    torch.testing.assert_close(thin.second @ thin.first, expected)
    assert thin.error == pytest.approx((1 / 14) ** 0.5)
    assert thin.error == pytest.approx(float((weight - expected).norm() / weight.norm()))


def test_weights_of_zero_lose_nothing():
    assert truncated_svd(torch.zeros(3, 4), 2).error == 0


def test_two_thin_layers_have_the_shapes_of_the_paper():
    thin = LowRankLinear(25088, 40, 10)
    assert [tuple(x.shape) for x in thin.parameters()] == [(10, 25088), (40, 10), (40,)]
    assert thin(torch.zeros(2, 25088)).shape == (2, 40)


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_that_cannot_be_says_the_limit(rank):
    with pytest.raises(ValueError, match=rf"rank: expected 1 to 4 for .*\(6, 4\), got {rank}"):
        truncated_svd(torch.randn(6, 4), rank)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"weight: expected shape \(U, V\), got \(2, 3, 4\)"):
        truncated_svd(torch.randn(2, 3, 4), 1)
