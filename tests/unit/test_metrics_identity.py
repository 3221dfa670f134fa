# SPDX-License-Identifier: Apache-2.0
"""Retrieval and verification: by hand, at chance, and intervals that cover what they should."""

import itertools
import math
from statistics import NormalDist

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.metrics import auc, mse, retrieval, verification_auc


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bytes_of(count: int, seed: int = 0, shape=(3, 8, 8)) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), generator=seeded(seed)) / 255


def slow_retrieval(drawn: torch.Tensor, images: torch.Tensor, gallery: int) -> list[float]:
    found = []
    for i in range(len(images)):
        first = min(i // gallery * gallery, len(images) - gallery)
        errors = mse(drawn[i].expand(gallery, -1, -1, -1), images[first : first + gallery])
        found.append(float(errors.argmin() == i - first))
    return found


@pytest.mark.parametrize("gallery", [7, 10, 23, 24])
def test_retrieval_equals_the_slow_loop(gallery):
    images = bytes_of(24)
    drawn = (0.12 * images + 0.88 * bytes_of(24, 1)).clamp(0, 1)
    found = retrieval(drawn, images, gallery)
    assert found.tolist() == slow_retrieval(drawn, images, gallery)
    assert found.dtype == torch.float32
    assert 0 < found.mean() < 1, "a case in which some are found and some are not"


def test_originals_are_found_and_other_images_are_not():
    images = bytes_of(60)
    assert retrieval(images, images, 20).tolist() == [1.0] * 60
    assert retrieval(images.roll(1, 0), images, 60).tolist() == [0.0] * 60
    faint = 0.5 + 0.02 * (images - 0.5)  # next to no contrast left: the nearest is still the one it correlates with
    near = images[:1] + 0.1 * (bytes_of(60, 3) - 0.5)
    assert retrieval(near, near, 60).sum() == 60
    assert retrieval(faint, images, 20).tolist() == slow_retrieval(faint, images, 20)


@pytest.mark.parametrize("value", [0.0, 0.5, 1 / 3])
def test_a_constant_reconstruction_scores_exactly_chance(value):
    images = bytes_of(120)
    images[7] = images[3]  # copies, as some sets have
    images[45:50] = images[44]
    for same in (torch.full_like(images, value), images.mean(0, keepdim=True).expand_as(images), images[44:45]):
        found = retrieval(same.expand_as(images), images, 40)
        for block in found.split(40):
            assert float(block.sum()) == pytest.approx(1, abs=1e-6)


def test_copies_share_the_one():
    images = bytes_of(6)
    images[2:5] = images[1]
    assert retrieval(images, images, 6).tolist() == pytest.approx([1, 0.25, 0.25, 0.25, 0.25, 1])


def test_unrelated_reconstructions_score_chance_on_average():
    found = retrieval(bytes_of(4000, 1, (1, 4, 4)), bytes_of(4000, 2, (1, 4, 4)), 50)
    assert abs(float(found.mean()) - 0.02) < 4 * math.sqrt(0.02 * 0.98 / 4000)


def test_images_behind_the_last_whole_block_have_the_last_gallery():
    images = bytes_of(25)
    drawn = images.clone()
    drawn[24] = images[16]  # in the last ten, though not in the last five
    drawn[23] = images[14]  # not among the last ten
    expected = [1.0] * 25
    expected[24] = 0.0
    found = retrieval(drawn, images, 10).tolist()
    assert found[:23] + found[24:] == expected[:23] + expected[24:]
    assert found[23] == slow_retrieval(drawn, images, 10)[23]


def test_of_fewer_images_than_a_gallery_all_are_the_gallery():
    images = bytes_of(8)
    drawn = 0.1 * images + 0.9 * bytes_of(8, 1)
    assert torch.equal(retrieval(drawn, images), retrieval(drawn, images, 8))
    assert retrieval(images[:1].expand_as(images), images).mean() == 1 / 8


def test_a_reconstruction_that_is_not_a_number_shows():
    images = bytes_of(10)
    drawn = images.clone()
    drawn[3, 0, 0, 0] = math.nan
    assert retrieval(drawn, images, 10).isnan().nonzero().tolist() == [[3]]


def people(generator, persons: int, each: int, spread: float, noise: float = 1.0, dimensions: int = 8):
    """Features of photographs and of their reconstructions, the first coarser the larger ``noise``, and who is who."""
    faces = torch.randn(persons, 1, dimensions, generator=generator)
    photographs = (faces + spread * torch.randn(persons, each, dimensions, generator=generator)).flatten(0, 1)
    drawn = photographs + noise * torch.randn(photographs.shape, generator=generator)
    return drawn, photographs, torch.arange(persons).repeat_interleave(each)


def slow_auc(drawn, other, who, whom, weights=None) -> float:
    """From the definition, pair by pair; ``weights`` says how often each person is in the sample."""
    cosine = torch.nn.functional.cosine_similarity(drawn[:, None].double(), other[None].double(), dim=2)
    own, others = [], []
    for i, j in itertools.product(range(len(drawn)), range(len(other))):
        w = [1.0 if weights is None else float(weights[int(p)]) for p in (who[i], whom[j])]
        if who[i] != whom[j]:
            others.append((float(cosine[i, j]), w[0] * w[1]))
        elif i != j:
            own.append((float(cosine[i, j]), w[0]))
    total = sum(u * v * ((a > b) + 0.5 * (a == b)) for (a, u), (b, v) in itertools.product(own, others))
    return total / (sum(u for _, u in own) * sum(v for _, v in others))


def test_verification_equals_the_slow_loop_and_its_variance_that_of_reweighting_persons():
    generator = seeded(1)
    drawn, photographs, who = people(generator, 6, 3, 0.8)
    drawn, who = drawn[:-1], who[:-1]  # unequal persons, unequal sides
    photographs, whom = (
        photographs[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 15]],
        torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 9]),
    )
    found = verification_auc(drawn, photographs, who, whom)
    assert found.mean == pytest.approx(slow_auc(drawn, photographs, who, whom), abs=1e-12)
    assert found.n == 7
    step, squares = 1e-4, 0.0
    for person in (0, 1, 2, 3, 4, 5, 9):
        ends = []
        for sign in (1, -1):
            weights = dict.fromkeys(range(10), 1.0) | {person: 1 + sign * step}
            ends.append(slow_auc(drawn, photographs, who, whom, weights))
        squares += ((ends[0] - ends[1]) / (2 * step)) ** 2
    error = math.sqrt(squares * 7 / 6)
    logit = [math.log(p / (1 - p)) for p in (found.low, found.mean, found.high)]
    half = 2.446912 * error / (found.mean * (1 - found.mean))  # Student's t with 6 degrees of freedom
    assert logit[1] - logit[0] == pytest.approx(half, rel=1e-4)
    assert logit[2] - logit[1] == pytest.approx(half, rel=1e-4)


def test_chunks_do_not_matter(monkeypatch):
    held = people(seeded(2), 12, 4, 0.8)
    whole = verification_auc(*held, held[2])
    monkeypatch.setattr("semlink.metrics.identity._CHUNK", 100)
    assert verification_auc(*held, held[2]).low == pytest.approx(whole.low, abs=1e-12)


def test_an_image_is_never_compared_with_itself():
    """Reconstructions equal to their photographs, and those as unlike each other as different people's."""
    generator = seeded(3)
    photographs, who = torch.randn(400, 6, generator=generator), torch.arange(200).repeat_interleave(2)
    found = verification_auc(photographs, photographs, who, who)
    assert abs(found.mean - 0.5) < 4 * 0.5 / math.sqrt(3 * 200)
    assert found.low < 0.5 < found.high
    shuffled = torch.randperm(400, generator=generator)  # other rows are other photographs
    assert verification_auc(photographs, photographs[shuffled], who, who[shuffled]).mean > 0.6


def test_the_interval_covers_the_truth_where_one_over_pairs_would_not():
    generator, trials, hits, naive = seeded(4), 200, 0, 0
    settings = {"spread": 0.7, "noise": 0.7, "dimensions": 4}
    truth = verification_auc(*(held := people(seeded(5), 700, 3, **settings)), held[2])
    assert truth.high - truth.low < 0.03
    for _ in range(trials):
        drawn, photographs, who = people(generator, 25, 3, **settings)
        found = verification_auc(drawn, photographs, who, who)
        hits += found.low <= truth.mean <= found.high
        cosine = torch.nn.functional.cosine_similarity(drawn[:, None], photographs[None], dim=2)
        same = who[:, None] == who
        apart = ~torch.eye(len(who), dtype=torch.bool)
        of_pairs = auc(cosine[apart], same[apart])
        assert of_pairs.mean == pytest.approx(found.mean, abs=1e-5)
        naive += of_pairs.low <= truth.mean <= of_pairs.high
    assert abs(hits / trials - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / trials)
    assert naive / trials < 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / trials)


def test_features_without_a_person_in_them_are_chance_and_perfect_ones_perfect():
    who = torch.arange(40).repeat_interleave(3)
    found = verification_auc(torch.ones(120, 5), torch.ones(120, 5), who, who)
    assert found.mean == 0.5
    assert found.low < 0.5 < found.high
    perfect = torch.eye(40)[who]
    found = verification_auc(perfect, perfect, who, who)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - math.log(20) / 40)


def test_the_truth_of_two_dimensional_angles():
    """On a line features are signs: pairs of one person agree with probability a, others with 1/2."""
    generator = seeded(6)
    faces = 2.0 * torch.randint(0, 2, (1000, 1, 1), generator=generator) - 1
    flips = 1 - 2 * (torch.rand(2, 1000, 2, 1, generator=generator) < 0.1).float()
    drawn, photographs = (faces * flips).flatten(1, 2)
    who = torch.arange(1000).repeat_interleave(2)
    found = verification_auc(drawn, photographs, who, who)
    agree = 0.9**2 + 0.1**2
    truth = 0.5 * agree + 0.25  # P(agree, others not) + half of the ties
    error = (found.high - found.low) / (2 * NormalDist().inv_cdf(0.975))
    assert abs(found.mean - truth) < 4 * error
    assert error < 0.015


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: retrieval(bytes_of(1), bytes_of(1)), "gallery of retrieval is 1: .* at least 2"),
        (lambda: retrieval(bytes_of(4), bytes_of(4), 1), "gallery of retrieval is 1: .* at least 2"),
        (lambda: retrieval(bytes_of(4), bytes_of(5), 2), "shapes must agree"),
        (
            lambda: verification_auc(torch.ones(3, 2), torch.ones(3, 2), torch.arange(3), torch.arange(3)),
            "no person has two images",
        ),
        (
            lambda: verification_auc(torch.ones(3, 2), torch.ones(3, 2), torch.ones(3), torch.ones(3)),
            "all images are of one person",
        ),
        (
            lambda: verification_auc(torch.ones(3, 2), torch.ones(3, 4), torch.arange(3), torch.arange(3)),
            "of 2 and of 4",
        ),
        (lambda: verification_auc(torch.ones(3, 2), torch.ones(3, 2), torch.arange(2), torch.arange(3)), r"\(n, d\)"),
        (
            lambda: verification_auc(torch.full((3, 2), math.nan), torch.ones(3, 2), torch.ones(3), torch.ones(3)),
            "not finite",
        ),
    ],
)
def test_what_cannot_be_measured(call, said):
    with pytest.raises(SemlinkError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
