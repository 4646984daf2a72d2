# SPDX-License-Identifier: Apache-2.0
"""AP Loss, aLRP, Rank & Sort and its bucketed form, Smooth-AP."""

import functools
import sys

import numpy as np
import pytest
import torch
from maploss.layers import alrp_loss, ap_loss, rank_sort_loss, smooth_ap_loss
from maploss.layers.ranking_losses.pair_sums import BlockedPairs

from tests.reference import ranking_losses as reference

bucketed = functools.partial(rank_sort_loss, bucketed=True)
LOSSES = {
    "ap": ap_loss,
    "alrp": alrp_loss,
    "rank_sort": rank_sort_loss,
    "bucketed": bucketed,
    "smooth_ap": smooth_ap_loss,
}
WITH_QUALITY = ("alrp", "rank_sort", "bucketed")


def make_case(seed, num=40, share=0.25, has_ties=False):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num, generator=generator, dtype=torch.float64)
    if has_ties:
        scores = scores.round()
    labels = (torch.rand(num, generator=generator) < share).long()
    labels[torch.rand(num, generator=generator) < 0.1] = -1
    quality = torch.rand(int((labels == 1).sum()), generator=generator, dtype=torch.float64)
    return scores.requires_grad_(), labels, quality.requires_grad_()


def call(name, scores, labels, quality, **settings):
    inputs = (scores, labels, quality) if name in WITH_QUALITY else (scores, labels)
    return LOSSES[name](*inputs, **settings)


def as_numpy(scores, labels, quality):
    labels = labels.numpy()
    pos, neg = (np.flatnonzero(labels == x).tolist() for x in (1, 0))
    return scores.detach().numpy(), pos, neg, quality.detach().numpy()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("delta", [0.1, 1.0])
@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("name", ["ap", "rank_sort", "bucketed"])
def test_value_and_update_are_those_of_the_papers(name, seed, delta, has_ties):
    case = make_case(seed, has_ties=has_ties)
    loss = call(name, *case, delta=delta)
    scores, pos, neg, y = as_numpy(*case)
    if name == "ap":
        value, gradient = reference.ap_loss(scores, pos, neg, delta)
    elif name == "rank_sort":
        value, gradient = reference.rank_sort_loss(scores, pos, neg, y, delta)
    else:
        value, gradient = reference.bucketed_rank_sort_loss(scores, pos, neg, y, delta)
    assert loss.item() == pytest.approx(value, abs=1e-9)
    (got,) = torch.autograd.grad(loss, case[0])
    np.testing.assert_allclose(got.numpy(), gradient, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_alrp_is_that_of_the_paper_with_balanced_boxes(seed, delta):
    case = make_case(seed)
    loss = alrp_loss(*case, delta=delta)
    value, localisation, by_scores, by_quality = reference.alrp_loss(*as_numpy(*case), delta)
    assert loss.item() == pytest.approx(value, abs=1e-9)
    got = torch.autograd.grad(loss, (case[0], case[2]))
    np.testing.assert_allclose(got[0].numpy(), by_scores, atol=1e-9)
    np.testing.assert_allclose(got[1].numpy(), by_quality * value / localisation, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_smooth_ap_is_that_of_the_paper_and_its_gradient_the_derivative(seed, temperature):
    scores, labels, quality = make_case(seed, num=20)
    loss = smooth_ap_loss(scores, labels, temperature=temperature)
    values, pos, neg, _ = as_numpy(scores, labels, quality)
    assert loss.item() == pytest.approx(reference.smooth_ap_loss(values, pos, neg, temperature))
    (got,) = torch.autograd.grad(loss, scores)
    for i in range(len(values)):
        moved = [values.copy(), values.copy()]
        moved[0][i] += 1e-6
        moved[1][i] -= 1e-6
        up, down = (reference.smooth_ap_loss(x, pos, neg, temperature) for x in moved)
        assert got[i].item() == pytest.approx((up - down) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_buckets_change_nothing_where_the_step_is_narrow(seed):
    case = make_case(seed, num=200)
    results = [
        (loss, *torch.autograd.grad(loss, case[0]))
        for loss in (call(name, *case, delta=1e-9) for name in ("rank_sort", "bucketed"))
    ]
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(
        results[0][1][case[1] == 1], results[1][1][case[1] == 1], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", ["rank_sort", "bucketed"])
@pytest.mark.parametrize("num_far", [0, 90, 10_000])
def test_negatives_just_below_a_positive_are_pushed_whatever_lies_far_below(name, num_far):
    scores = torch.cat([torch.zeros(1), torch.full((10,), -0.1), torch.full((num_far,), -20.0)])
    scores.requires_grad_()
    labels = (torch.arange(len(scores)) < 1).long()
    loss = call(name, scores, labels, torch.ones(1))
    loss.backward()
    # H(-.1) is .4: ten such negatives are four, of five ranks.
    assert loss.item() == pytest.approx(0.8)
    assert scores.grad[0].item() == pytest.approx(-0.8)
    torch.testing.assert_close(scores.grad[1:11], torch.full((10,), 0.08))
    assert not scores.grad[11:].any()


@pytest.mark.parametrize("name", LOSSES)
def test_without_positives_the_loss_is_0_with_a_graph(name):
    for num in (0, 4):
        scores, quality = torch.randn(num, requires_grad=True), torch.zeros(0, requires_grad=True)
        loss = call(name, scores, torch.zeros(num, dtype=torch.int64), quality)
        loss.backward()
        assert loss == 0
        assert not scores.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_without_negatives_perfect_positives_lose_nothing_and_get_no_push(name):
    scores = torch.randn(3, requires_grad=True)
    loss = call(name, scores, torch.ones(3, dtype=torch.int64), torch.ones(3, requires_grad=True))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(scores.grad, torch.zeros(3))


def overlap_case(seed, has_ties=False):
    """A case, and at which of four overlaps its positives are right: at the last one none is."""
    scores, labels, quality = make_case(seed, num=30, share=0.4, has_ties=has_ties)
    is_matched = quality.detach() > torch.tensor([0.2, 0.5, 0.8, 1.0])[:, None]
    return scores, labels, is_matched


def reference_of_overlaps(loss, scores, labels, is_matched, *args):
    """What a reference says at each overlap with a positive, wrong ones being negatives."""
    values, pos, neg, _ = as_numpy(scores, labels, torch.zeros(0))
    results = []
    for matched in is_matched.tolist():
        right = [i for i, x in zip(pos, matched, strict=True) if x]
        wrong = [i for i, x in zip(pos, matched, strict=True) if not x]
        if right:
            results.append(loss(values, right, [*neg, *wrong], *args))
    assert 0 < len(results) < len(is_matched)
    return results


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_ap_loss_of_overlaps_is_the_mean_of_losses_with_fewer_positives(seed, has_ties, delta):
    scores, labels, is_matched = overlap_case(seed, has_ties)
    results = reference_of_overlaps(reference.ap_loss, scores, labels, is_matched, delta)
    loss = ap_loss(scores, labels, delta=delta, is_matched=is_matched)
    assert loss.item() == pytest.approx(sum(x for x, _ in results) / 4, abs=1e-9)
    (got,) = torch.autograd.grad(loss, scores)
    np.testing.assert_allclose(got.numpy(), sum(x for _, x in results) / 4, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_smooth_ap_of_overlaps_is_the_mean_and_its_gradient_the_derivative(seed, temperature):
    scores, labels, is_matched = overlap_case(seed)
    slow = (reference.smooth_ap_loss, scores, labels, is_matched, temperature)
    loss = smooth_ap_loss(scores, labels, temperature=temperature, is_matched=is_matched)
    assert loss.item() == pytest.approx(sum(reference_of_overlaps(*slow)) / 4, abs=1e-9)
    assert torch.autograd.gradcheck(
        lambda x: smooth_ap_loss(x, labels, temperature=temperature, is_matched=is_matched),
        (scores,),
    )


@pytest.mark.parametrize("loss", [ap_loss, smooth_ap_loss])
def test_all_positives_right_at_one_overlap_is_the_plain_loss_bit_for_bit(loss):
    scores, labels, _ = make_case(4)
    is_right = torch.ones(1, int((labels == 1).sum()), dtype=torch.bool)
    plain, other = loss(scores, labels), loss(scores, labels, is_matched=is_right)
    assert other == plain
    gradients = [torch.autograd.grad(x, scores)[0] for x in (plain, other)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("loss", [ap_loss, smooth_ap_loss])
def test_overlaps_that_do_not_fit_are_named(loss):
    scores, labels = torch.zeros(3), torch.tensor([1, 0, -1])
    with pytest.raises(ValueError, match=r"is_matched: expected shape \(T, 1\), got \(2, 3\)"):
        loss(scores, labels, is_matched=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"is_matched: expected dtype torch.bool, got torch.int64"):
        loss(scores, labels, is_matched=torch.ones(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"is_matched: expected at least one overlap, got none"):
        loss(scores, labels, is_matched=torch.ones(0, 1, dtype=torch.bool))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_sum_to_zero_and_descent_puts_positives_first(name, seed):
    scores, labels, quality = make_case(seed)
    loss = call(name, scores, labels, quality)
    assert torch.autograd.grad(loss, scores)[0].sum().abs() < 1e-9
    moved = scores.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([moved], lr=2.0)
    for _ in range(300):
        optimizer.zero_grad()
        call(name, moved, labels, quality).backward()
        optimizer.step()
    assert moved[labels == 1].min() > moved[labels == 0].max()
    torch.testing.assert_close(moved[labels == -1], scores[labels == -1].detach())


def test_sorting_puts_better_boxes_first_and_alrp_wants_tighter_ones():
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    quality = torch.tensor([0.2, 0.9, 0.5, 0.7], dtype=torch.float64, requires_grad=True)
    labels = torch.ones(4, dtype=torch.int64)
    (gradient,) = torch.autograd.grad(rank_sort_loss(scores, labels, quality), scores)
    assert gradient.argsort().tolist() == quality.argsort(descending=True).tolist()
    (gradient,) = torch.autograd.grad(alrp_loss(scores, labels, quality), quality)
    assert (gradient < 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_negative_that_ran_away_and_one_hardly_in_reach_leave_sums_of_zero(name):
    labels = torch.cat([torch.ones(2), torch.zeros(2002)]).long()
    rest = -5 - torch.rand(2000, generator=torch.Generator().manual_seed(0)).double()
    for margin in (1e-12, 1e-9, 1e-7):
        scores = torch.cat([torch.tensor([3.0, 0, -1 + margin, -1e30]).double(), rest])
        scores.requires_grad_()
        loss = call(name, scores, labels, torch.tensor([0.2, 0.5]).double().requires_grad_())
        (gradient,) = torch.autograd.grad(loss, scores)
        assert gradient.sum().abs() < 1e-6
        assert gradient[3] == pytest.approx(0, abs=1e-9)


def test_all_take_float32():
    for name in LOSSES:
        scores, labels, quality = make_case(0)
        single = scores.detach().float().requires_grad_()
        loss = call(name, single, labels, quality.detach().float().requires_grad_())
        loss.backward()
        assert loss.dtype == single.grad.dtype == torch.float32
        expected = call(name, scores, labels, quality)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_bad_input_is_named(name):
    scores, labels, quality = torch.zeros(3), torch.tensor([1, 0, -1]), torch.ones(1)
    call(name, scores, labels, quality)
    with pytest.raises(ValueError, match=r"labels: expected shape \(3,\), got \(2,\)"):
        call(name, scores, labels[:2], quality)
    with pytest.raises(FloatingPointError, match="scores: 1 of 3 are not finite"):
        call(name, torch.tensor([0, float("inf"), 0]), labels, quality)
    width = "temperature" if name == "smooth_ap" else "delta"
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"{width}: expected a number above 0, got {value}"):
            call(name, scores, labels, quality, **{width: value})
    if name in WITH_QUALITY:
        with pytest.raises(ValueError, match=r"quality: expected shape \(1,\), got \(3,\)"):
            call(name, scores, labels, torch.ones(3))


def test_smooth_ap_makes_its_pairs_in_blocks(monkeypatch):
    scores, labels, _ = make_case(1)
    expected = torch.autograd.grad(smooth_ap_loss(scores, labels), scores)[0]
    monkeypatch.setattr("maploss.layers.ranking_losses.pair_sums._BLOCK", 50)
    torch.testing.assert_close(
        torch.autograd.grad(smooth_ap_loss(scores, labels), scores)[0], expected
    )
    assert BlockedPairs(scores.detach(), scores.detach(), lambda d: (d, d))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", LOSSES)
def test_cuda_gives_what_the_cpu_gives(name):
    scores, labels, quality = make_case(0, num=500)
    expected = call(name, scores, labels, quality)
    on_gpu = scores.detach().cuda().requires_grad_()
    loss = call(name, on_gpu, labels.cuda(), quality.detach().cuda().requires_grad_())
    torch.testing.assert_close(loss.cpu(), expected)
    (want,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(torch.autograd.grad(loss, on_gpu)[0].cpu(), want)


def test_positives_sorted_in_several_blocks_are_sorted_as_in_one(monkeypatch):
    module = sys.modules["maploss.layers.ranking_losses.rank_sort_loss"]
    expected = value_and_gradient("rank_sort", 3)
    monkeypatch.setattr(module, "_BLOCK", 1)
    loss, gradient = value_and_gradient("rank_sort", 3)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(gradient, expected[1])


def value_and_gradient(name: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    scores, *others = make_case(seed)
    scores = scores.detach().requires_grad_()
    loss = call(name, scores, *others, delta=1.0)
    return loss, torch.autograd.grad(loss, scores)[0]


def test_alrp_takes_the_step_of_its_paper_if_told_none():
    case = make_case(0)
    assert alrp_loss(*case) == alrp_loss(*case, delta=1.0)
    assert alrp_loss(*case) != alrp_loss(*case, delta=2.0)
