# SPDX-License-Identifier: Apache-2.0
"""White-box inversion: least squares where that is the answer, and nothing that the attacker may not know."""

import pytest
import torch
from torch import nn

from semlink import phy
from semlink._errors import SemlinkError
from semlink.attacks.optimisation import Learned, Smooth, encoder_of, explain
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
    found = explain(encode, heard, Smooth(SHAPE, 0.0), 1e-6, steps=2000, starts=1, generator=seeded())
    oracle = torch.linalg.lstsq(matrix.T, heard.T).solution.T
    assert (found.images.flatten(1) - oracle).abs().max() < 2e-3
    misfit = (heard - oracle @ matrix).square().sum(1) / 2e-6
    assert torch.all(found.objective >= misfit * (1 - 1e-3))  # nothing explains better


def test_the_objective_is_the_posterior_that_is_written_down():
    heard = torch.randn(3, 64, generator=seeded(3))
    found = explain(lambda x: x.flatten(1), heard, Smooth(SHAPE, 0.7), 0.25, steps=5, starts=2, generator=seeded())
    x = found.images
    by_hand = [
        sum((a - b) ** 2 for a, b in zip(heard[i].tolist(), x[i].flatten().tolist(), strict=True)) / 0.5
        + 0.7 * sum(abs(float(x[i, 0, r, c] - x[i, 0, r - 1, c])) for r in range(1, 8) for c in range(8))
        + 0.7 * sum(abs(float(x[i, 0, r, c] - x[i, 0, r, c - 1])) for r in range(8) for c in range(1, 8))
        for i in range(3)
    ]
    assert found.objective.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert torch.equal(found.objective, found.starts.min(0).values)


def test_pixels_that_are_sent_as_they_are_are_found_beyond_35_db():
    encode = encoder_of(link_of(Pixels))
    images = images_of(20, seed=9)
    heard = heard_at(encode, images, 1e-6)
    found = explain(encode, heard, Smooth(SHAPE, 0.0), 1e-6, steps=600, starts=1, generator=seeded())
    assert psnr(found.images, images) > 35
    assert found.images.min() >= 0
    assert found.images.max() <= 1


def test_through_an_encoder_that_compresses_it_beats_the_mean_image():
    encode = encoder_of(link_of())
    images = images_of(30, seed=9)
    variance = 10 ** (-30 / 10) / 2
    heard = heard_at(encode, images, variance)
    found = explain(encode, heard, Smooth(SHAPE, 3.0), variance, steps=400, starts=2, generator=seeded())
    assert psnr(found.images, images) > psnr(images_of(2000).mean(0).expand_as(images), images) + 2
    assert found.late_fall < 0.01


def test_the_less_noise_the_better_it_explains():
    encode, images = encoder_of(link_of(Pixels)), images_of(40, seed=9)
    reached = []
    for snr_db in (0.0, 10.0, 20.0, 30.0):
        variance = 10 ** (-snr_db / 10) / 2
        heard = heard_at(encode, images, variance)
        found = explain(encode, heard, Smooth(SHAPE, 3.0), variance, steps=200, starts=1, generator=seeded())
        reached.append(psnr(found.images, images))
    assert reached == sorted(reached)


def test_a_prior_of_smoothness_helps_where_noise_is_strong():
    encode, images = encoder_of(link_of(Pixels)), images_of(40, seed=9)
    heard = heard_at(encode, images, 0.05)
    with_prior, without = (
        explain(encode, heard, Smooth(SHAPE, t), 0.05, steps=200, starts=1, generator=seeded()).images
        for t in (3.0, 0.0)
    )
    assert psnr(with_prior, images) > psnr(without, images) + 2


def test_the_attacker_keeps_what_her_own_objective_likes():
    def encode(x):  # two images explain the same: only the objective, not the truth, can choose
        return torch.sin(6.0 * x.flatten(1))

    images = images_of(10, seed=9)
    heard = heard_at(encode, images, 1e-4)
    many = explain(encode, heard, Smooth(SHAPE, 0.5), 1e-4, starts=8, steps=60, generator=seeded())
    assert many.starts.shape == (8, 10)
    assert torch.equal(many.objective, many.starts.min(0).values)
    assert many.objective.mean() < many.starts.mean(1).min()


def test_searching_leaves_the_victim_as_it_was_and_images_apart():
    link = link_of()
    before = fingerprint(link.scheme)
    encode, images = encoder_of(link), images_of(6, seed=9)
    heard = heard_at(encode, images, 0.01)
    prior = Smooth(SHAPE, 1.0)
    together = explain(encode, heard, prior, 0.01, generator=seeded(), steps=30, starts=1)
    assert fingerprint(link.scheme) == before
    assert all(p.grad is None for p in link.scheme.parameters())
    with torch.no_grad():  # as when a trained attack is judged
        again = explain(encode, heard, prior, 0.01, generator=seeded(), steps=30, starts=1)
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
    ],
)
def test_numbers_without_sense_are_refused(name, value):
    arguments = {"noise_variance": 0.1, "steps": 1, "starts": 1} | {name: value}
    with pytest.raises(SemlinkError, match=rf"{name} is {value}: .* expected"):
        explain(lambda x: x.flatten(1), torch.zeros(1, 64), Smooth(SHAPE, 0.0), generator=seeded(), **arguments)


def test_a_negative_weight_is_refused():
    with pytest.raises(SemlinkError, match="weight of total variation is -1"):
        Smooth(SHAPE, -1.0)


@pytest.fixture(scope="module")
def learned():
    """An autoencoder that has seen smooth images."""
    torch.manual_seed(0)
    prior, images, generator = Learned(SHAPE, 16, 16), images_of(2000), seeded(4)
    adam = torch.optim.Adam(prior.parameters(), 3e-3)
    for _ in range(400):
        batch = images[torch.randint(len(images), (64,), generator=generator)]
        adam.zero_grad()
        prior(batch, torch.zeros(64), generator)["loss"].backward()
        adam.step()
    return prior.eval()


def test_every_parameter_of_a_learned_prior_gets_gradient_and_its_rate_is_the_divergence():
    torch.manual_seed(0)
    prior, images = Learned((3, 32, 32), 32, 16), torch.rand(6, 3, 32, 32)
    losses = prior(images, torch.zeros(6), seeded())
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())
    mean, log_scale = prior.encoder(images).chunk(2, 1)
    own = torch.distributions.Normal(mean, log_scale.clamp(-6, 2).exp())
    divergence = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    assert losses["rate"].item() == pytest.approx(divergence.item(), rel=0.05)  # batch statistics were measured since


def test_a_learned_prior_draws_what_little_is_heard_better_than_a_smooth_one(learned):
    matrix, images = torch.randn(64, 12, generator=seeded(5)) / 8, images_of(40, seed=9)

    def encode(x):
        return (x - 0.5).flatten(1) @ matrix

    heard = heard_at(encode, images, 1e-3)
    arguments = {"steps": 300, "starts": 2, "generator": seeded()}
    taught = explain(encode, heard, learned, 1e-3, **arguments)
    smooth = max(
        psnr(explain(encode, heard, Smooth(SHAPE, weight), 1e-3, **arguments).images, images)
        for weight in (1.0, 3.0, 10.0, 30.0)
    )
    assert psnr(taught.images, images) > smooth + 1
    assert psnr(taught.images, images) > psnr(images_of(2000).mean(0).expand_as(images), images) + 3


def test_latents_that_fill_no_map_are_refused():
    with pytest.raises(SemlinkError, match="latents is 20: a multiple of 16"):
        Learned(SHAPE, 20, 16)
