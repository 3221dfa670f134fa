# SPDX-License-Identifier: Apache-2.0
"""White-box inversion: least squares where that is the answer, and nothing that the attacker may not know."""

import pytest
import torch
from torch import nn

from semlink import phy
from semlink._errors import SemlinkError
from semlink.attacks.optimisation import _variation, encoder_of, explain
from semlink.bench.attacker import fingerprint
from semlink.nn import Backbone
from semlink.schemes import DeepJSCC, DeepJSCCEncryption, Design, Key, Link, Scheme, Sent, Task, schemes

SHAPE = (1, 8, 8)


class Pixels(Scheme):
    """Sends the pixels themselves, two to a symbol."""

    def transmit(self, images, generator):
        return Sent(phy.to_symbols(images.flatten(1)))

    def receive(self, received, header=None):
        return self.observe(received, header, False).unflatten(1, self.design.task.image_shape)


def link_of(kind=DeepJSCC, uses=32, snr_db=12.0):
    torch.manual_seed(0)
    scheme = kind(Design(Task("classify", SHAPE, 3), uses, Backbone(16, 16)))
    if scheme.secret is not None:
        scheme.key = Key.for_test(0)
    return Link(scheme, phy.AWGN(), snr_db)


def images_of(count, seed=0):
    coarse = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear", align_corners=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def psnr(one, other):
    return float(-10 * (one - other).square().flatten(1).mean(1).log10().mean())


def heard_at(encode, images, variance, seed=7):
    sent = encode(images)
    return (sent + variance**0.5 * torch.randn(sent.shape, generator=seeded(seed))).detach()


def test_without_a_prior_the_answer_is_that_of_least_squares():
    matrix = torch.randn(64, 90, generator=seeded(1)) / 8
    images = 0.3 + 0.4 * torch.rand(5, *SHAPE, generator=seeded(2))  # far from 0 and 1, where the estimate is free

    def encode(x):
        return x.flatten(1) @ matrix

    heard = heard_at(encode, images, 1e-6)
    found = explain(encode, heard, SHAPE, 1e-6, total_variation=0.0, steps=2000, starts=1, generator=seeded())
    oracle = torch.linalg.lstsq(matrix.T, heard.T).solution.T
    assert (found.images.flatten(1) - oracle).abs().max() < 2e-3
    misfit = (heard - oracle @ matrix).square().sum(1) / 2e-6
    assert torch.all(found.objective >= misfit * (1 - 1e-3))  # nothing explains better


def test_the_objective_is_the_posterior_that_is_written_down():
    images, heard = images_of(3), torch.randn(3, 64, generator=seeded(3))
    found = explain(
        lambda x: x.flatten(1), heard, SHAPE, 0.25, total_variation=0.7, steps=5, starts=2, generator=seeded()
    )
    x = found.images
    by_hand = [
        sum((a - b) ** 2 for a, b in zip(heard[i].tolist(), x[i].flatten().tolist(), strict=True)) / 0.5
        + 0.7 * sum(abs(float(x[i, 0, r, c] - x[i, 0, r - 1, c])) for r in range(1, 8) for c in range(8))
        + 0.7 * sum(abs(float(x[i, 0, r, c] - x[i, 0, r, c - 1])) for r in range(8) for c in range(1, 8))
        for i in range(3)
    ]
    assert found.objective.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert torch.equal(found.objective, found.starts.min(0).values)
    assert _variation(images).shape == (3,)


def test_pixels_that_are_sent_as_they_are_are_found_beyond_35_db():
    encode = encoder_of(link_of(Pixels))
    images = images_of(20, seed=9)
    heard = heard_at(encode, images, 1e-6)
    found = explain(encode, heard, SHAPE, 1e-6, total_variation=0.0, steps=600, starts=1, generator=seeded())
    assert psnr(found.images, images) > 35
    assert found.images.min() >= 0
    assert found.images.max() <= 1


def test_through_an_encoder_that_compresses_it_beats_the_mean_image():
    encode = encoder_of(link_of())
    images = images_of(30, seed=9)
    variance = 10 ** (-30 / 10) / 2
    heard = heard_at(encode, images, variance)
    found = explain(encode, heard, SHAPE, variance, total_variation=3.0, steps=400, starts=2, generator=seeded())
    assert psnr(found.images, images) > psnr(images_of(2000).mean(0).expand_as(images), images) + 2
    assert found.late_fall < 0.01


def test_the_less_noise_the_better_it_explains():
    encode, images = encoder_of(link_of(Pixels)), images_of(40, seed=9)
    reached = []
    for snr_db in (0.0, 10.0, 20.0, 30.0):
        variance = 10 ** (-snr_db / 10) / 2
        heard = heard_at(encode, images, variance)
        found = explain(encode, heard, SHAPE, variance, total_variation=3.0, steps=200, starts=1, generator=seeded())
        reached.append(psnr(found.images, images))
    assert reached == sorted(reached)


def test_a_prior_of_smoothness_helps_where_noise_is_strong():
    encode, images = encoder_of(link_of(Pixels)), images_of(40, seed=9)
    heard = heard_at(encode, images, 0.05)
    with_prior, without = (
        explain(encode, heard, SHAPE, 0.05, total_variation=t, steps=200, starts=1, generator=seeded()).images
        for t in (3.0, 0.0)
    )
    assert psnr(with_prior, images) > psnr(without, images) + 2


def test_the_attacker_keeps_what_her_own_objective_likes():
    def encode(x):  # two images explain the same: only the objective, not the truth, can choose
        return torch.sin(6.0 * x.flatten(1))

    images = images_of(10, seed=9)
    heard = heard_at(encode, images, 1e-4)
    arguments = {"total_variation": 0.5, "steps": 60, "generator": seeded()}
    many = explain(encode, heard, SHAPE, 1e-4, starts=8, **arguments)
    assert many.starts.shape == (8, 10)
    assert torch.equal(many.objective, many.starts.min(0).values)
    assert many.objective.mean() < many.starts.mean(1).min()


def test_searching_leaves_the_victim_as_it_was_and_images_apart():
    link = link_of()
    before = fingerprint(link.scheme)
    encode, images = encoder_of(link), images_of(6, seed=9)
    heard = heard_at(encode, images, 0.01)
    arguments = {"total_variation": 1.0, "steps": 30, "starts": 1}
    together = explain(encode, heard, SHAPE, 0.01, generator=seeded(), **arguments)
    assert fingerprint(link.scheme) == before
    assert all(p.grad is None for p in link.scheme.parameters())
    with torch.no_grad():  # as when a trained attack is judged
        again = explain(encode, heard, SHAPE, 0.01, generator=seeded(), **arguments)
    assert torch.equal(again.images, together.images)


def test_what_no_gradient_passes_through_is_refused():
    torch.manual_seed(0)
    scheme = schemes["deepjscc-lbvq"](Design(Task("classify", SHAPE, 3), 16, Backbone(16, 16)))
    with pytest.raises(SemlinkError, match="carries no gradient to the image"):
        encoder_of(Link(scheme, phy.AWGN(), 12.0))


def test_what_is_sent_otherwise_each_time_is_refused():
    with pytest.raises(SemlinkError, match="sends the same image in other ways at other times"):
        encoder_of(link_of(DeepJSCCEncryption))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_variance", 0.0),
        ("noise_variance", float("inf")),
        ("steps", 0),
        ("starts", -1),
        ("total_variation", -1.0),
    ],
)
def test_numbers_without_sense_are_refused(name, value):
    arguments = {"noise_variance": 0.1, "total_variation": 0.0, "steps": 1, "starts": 1} | {name: value}
    with pytest.raises(SemlinkError, match=rf"{name} is {value}: .* expected"):
        explain(lambda x: x.flatten(1), torch.zeros(1, 64), SHAPE, generator=seeded(), **arguments)
