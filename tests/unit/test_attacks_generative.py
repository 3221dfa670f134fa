# SPDX-License-Identifier: Apache-2.0
"""Generative inversion where the posterior is known: two images, of which little is heard."""

import pytest
import torch

from semlink import phy
from semlink._errors import SemlinkError
from semlink.attacks import Tap, Threat
from semlink.attacks.generative import SAMPLES, Generative
from semlink.nn import Backbone, Optimiser
from semlink.schemes import Design, Link, Scheme, Sent, Task

SHAPE = (1, 8, 8)
DARK, BRIGHT = 0.2, 0.8


class Level(Scheme):
    """Sends the brightness of the image, one real number in both parts of one symbol."""

    def transmit(self, images, generator):
        level = (images.flatten(1).mean(1) - 0.5) / 0.3
        return Sent(torch.complex(level, level)[:, None] / 2**0.5)

    def receive(self, received, header=None):
        return received.symbols


def images_of(bright):
    return torch.where(bright, BRIGHT, DARK)[:, None, None, None].expand(-1, *SHAPE)


@pytest.fixture(scope="module")
def eve():
    """Trained at 0 dB on images that are all dark or all bright, bright three times in four."""
    torch.manual_seed(0)
    link = Link(Level(Design(Task("classify", SHAPE, 2), 1, Backbone(16, 16))), phy.AWGN(), 0.0)
    attack = Generative(Tap(link, Threat(0.0)), 32, taps=0)
    (phase,) = attack.phases(Optimiser(learning_rate=3e-3, schedule="cosine", warm_up=0.1))
    optimiser, generator = phase.optimiser.build(phase.parameters), torch.Generator().manual_seed(1)
    attack.train()
    steps = 500
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.optimiser.rate_at(step / steps)
        images = images_of(torch.rand(64, generator=generator) < 0.75)
        loss = attack(images, torch.zeros(64).long(), generator)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return attack.eval()


def posterior(heard):
    """P(bright | heard): both features carry +1 or -1 in noise of variance 1."""
    log_ratio = torch.log(torch.tensor(3.0)) + 2 * heard.sum(1)
    return log_ratio.sigmoid()


def test_samples_are_images_that_could_have_been_sent_as_often_as_the_posterior_says(eve):
    heard = torch.tensor([[0.0, 0.0], [-0.2, -0.2], [-0.4, -0.4]])
    count = 400
    drawn = eve.sample(heard.repeat_interleave(count, 0), torch.Generator().manual_seed(2))
    levels = drawn.flatten(1).mean(1)
    near = torch.minimum((levels - DARK).abs(), (levels - BRIGHT).abs())
    assert (near < 0.15).float().mean() > 0.9  # and not grey, as the mean of both is
    shares = (levels > 0.5).float().unflatten(0, (3, count)).mean(1)
    wanted = posterior(heard)
    error = (wanted * (1 - wanted) / count).sqrt()
    assert ((shares - wanted).abs() < 4 * error + 0.04).all(), (shares, wanted)  # 0.04: 500 steps of training
    assert shares[0] > shares[1] > shares[2]


def test_the_reconstruction_is_the_mean_of_samples_and_near_the_posteriors(eve):
    heard = torch.tensor([[0.0, 0.0], [-0.3, -0.3], [0.6, 0.6], [-0.9, -0.9]]).repeat(40, 1)
    wanted = DARK + (BRIGHT - DARK) * posterior(heard)
    drawn = eve.reconstruct(heard, 12.0)
    by_kind = drawn.flatten(1).mean(1).unflatten(0, (40, 4)).mean(0)
    error = 0.3 / (SAMPLES * 40) ** 0.5
    assert ((by_kind - wanted[:4]).abs() < 4 * error + 0.03).all(), (by_kind, wanted[:4])
    assert torch.equal(drawn, eve.reconstruct(heard, 12.0))
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([eve.sample(heard, generator) for _ in range(SAMPLES)]).mean(0)
    assert torch.equal(drawn, mean)
    assert (drawn.min() >= 0, drawn.max() <= 1) == (True, True)


def test_what_is_heard_well_leaves_no_choice(eve):
    heard = torch.tensor([[2.0, 2.0], [-3.0, -3.0]])
    drawn = eve.sample(heard.repeat_interleave(50, 0), torch.Generator().manual_seed(3)).flatten(1).mean(1)
    assert (drawn[:50] > 0.5).all()
    assert (drawn[50:] < 0.5).float().mean() > 0.9


def test_a_perceptual_loss_is_refused_and_not_ignored(eve):
    with pytest.raises(SemlinkError, match="has no perceptual loss; use it with perceptual 'none'"):
        Generative(eve.tap, 32, taps=2)
