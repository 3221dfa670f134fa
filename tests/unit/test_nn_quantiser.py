# SPDX-License-Identifier: Apache-2.0
"""The codebook, the draw of a codeword, and entropies of indices, against loops and closed forms."""

import math

import pytest
import torch

from semlink.nn.quantiser import Codebook, entropy_nats, gumbel_one_hot, index_entropy_bits, one_hot, perplexity

K, D = 5, 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def codebook():
    torch.manual_seed(0)
    return Codebook(K, D)


@pytest.fixture
def x():
    return torch.randn(3, 4, D, generator=seeded(1))


def test_codewords_start_as_large_as_features_of_unit_variance():
    torch.manual_seed(0)
    vectors = Codebook(64, 256).vectors
    assert vectors.std().item() == pytest.approx(1, abs=0.02)
    assert abs(vectors.mean().item()) < 0.03


def test_scores_are_scaled_products_and_negative_distances(codebook, x):
    similar, near = (found.detach() for found in (codebook.similarities(x), codebook.nearness(x)))
    assert similar.shape == near.shape == (3, 4, K)
    for b in range(3):
        for i in range(4):
            for k in range(K):
                word = codebook.vectors[k].detach()
                assert similar[b, i, k].item() == pytest.approx(float(x[b, i] @ word) / math.sqrt(D), abs=1e-5)
                squared = float((x[b, i] - word).square().sum())
                assert near[b, i, k].item() == pytest.approx(-squared / math.sqrt(D), rel=1e-5, abs=1e-5)


def test_autocast_rounds_neither_scores_nor_codewords(codebook, x):
    weights = torch.softmax(codebook.similarities(x), -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for method, argument in ((codebook.similarities, x), (codebook.nearness, x), (codebook.lookup, weights)):
            found = method(argument)
            assert found.dtype == torch.float32
    assert torch.equal(codebook.lookup(weights), found)


def test_lookup_gives_codewords_and_their_mixtures(codebook):
    indices = torch.tensor([[0, 4, 2]])
    assert torch.equal(codebook.lookup(torch.eye(K)[indices]), codebook.vectors[indices])
    weights = torch.tensor([[[0.25, 0.0, 0.0, 0.0, 0.75]]])
    mixed = 0.25 * codebook.vectors[0] + 0.75 * codebook.vectors[4]
    assert torch.allclose(codebook.lookup(weights)[0, 0], mixed)


def test_distances_of_all_pairs(codebook):
    expected = torch.cdist(codebook.vectors.double(), codebook.vectors.double()).square()
    found = codebook.distances()
    assert (found.dtype, found.requires_grad) == (torch.float64, False)
    assert torch.allclose(found, expected.detach(), atol=1e-6)


def test_one_hot_is_the_highest_score_without_gradient():
    scores = torch.tensor([[0.1, 3.0, -1.0], [2.0, 1.9, 1.8]], requires_grad=True)
    found = one_hot(scores)
    assert torch.equal(found, torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    assert not found.requires_grad


def test_draws_have_the_probabilities_of_softmax():
    """200,000 draws: every share within 5 standard errors."""
    scores = torch.tensor([2.0, 0.0, -1.0, 0.5])
    n = 200_000
    drawn = gumbel_one_hot(scores.expand(n, 4), 0.5, seeded())
    assert torch.equal(drawn.sum(1), torch.ones(n))
    assert torch.equal(drawn.amax(1), torch.ones(n))
    p = torch.softmax(scores, 0)
    assert ((drawn.mean(0) - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize("temperature", [0.3, 0.5, 2.0])
def test_the_gradient_of_a_draw_is_that_of_the_relaxed_draw(temperature):
    scores = torch.randn(6, 4, generator=seeded(), requires_grad=True)
    towards = torch.randn(6, 4, generator=seeded(1))
    (found,) = torch.autograd.grad((gumbel_one_hot(scores, temperature, seeded(2)) * towards).sum(), scores)
    waits = torch.empty(6, 4).exponential_(generator=seeded(2))
    relaxed = torch.softmax((scores - waits.log()) / temperature, -1)
    (expected,) = torch.autograd.grad((relaxed * towards).sum(), scores)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found != 0).all()


def test_draws_repeat_with_the_generator():
    scores = torch.zeros(50, K)
    first = gumbel_one_hot(scores, 0.5, seeded(3))
    assert torch.equal(first, gumbel_one_hot(scores, 0.5, seeded(3)))
    assert not torch.equal(first, gumbel_one_hot(scores, 0.5, seeded(4)))


def test_gradient_reaches_vectors_and_codebook_through_the_choice_and_the_lookup(codebook, x):
    """Of the codewords that were not looked up too: the choice compares with all of them."""
    x.requires_grad_()
    choice = gumbel_one_hot(codebook.similarities(x), 0.5, seeded())
    codebook.lookup(choice).square().sum().backward()
    for tensor in (x, codebook.vectors):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert (tensor.grad.flatten(0, -2).abs().sum(1) > 0).all()


def test_entropy_by_hand_and_with_zeros():
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25] * 4], requires_grad=True)
    found = entropy_nats(p)
    assert found.tolist() == pytest.approx([1.5 * math.log(2), 0, math.log(4)], abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), p)
    assert gradient.isfinite().all()
    assert gradient[0, 0].item() == pytest.approx(-math.log(0.5) - 1)


def test_perplexity_counts_what_is_used():
    assert perplexity(torch.tensor([0.25] * 4)).item() == pytest.approx(4)
    assert perplexity(torch.tensor([0.5, 0.5, 0.0, 0.0])).item() == pytest.approx(2)
    assert perplexity(torch.tensor([0.0, 1.0, 0.0])).item() == pytest.approx(1)


def test_entropy_of_an_index_is_that_of_the_batch_at_each_position():
    """Position 0 always says 2; position 1 says 0 or 3, evenly: 0 and 1 bit, though 3 indices share the whole."""
    chosen = torch.eye(4)[torch.tensor([[2, 0], [2, 3], [2, 0], [2, 3]])]
    scores = torch.randn(4, 2, 4, generator=seeded(), requires_grad=True)
    found = index_entropy_bits(chosen, scores)
    assert found.item() == pytest.approx(0.5, abs=1e-6)
    (gradient,) = torch.autograd.grad(found, scores)
    relaxed = entropy_nats(torch.softmax(scores, -1).mean(0)).mean() / math.log(2)
    (expected,) = torch.autograd.grad(relaxed, scores)
    assert torch.allclose(gradient, expected, atol=1e-7)
    assert gradient.abs().max() > 1e-3
