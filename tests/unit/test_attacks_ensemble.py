# SPDX-License-Identifier: Apache-2.0
"""An ensemble is no worse than its mean member, and its members hear and start apart."""

import pytest
import torch
import torch.nn.functional as F

from semlink import phy
from semlink.attacks import EnsembleInversion, Tap, Threat
from semlink.bench.attacker import fingerprint
from semlink.nn import Backbone, ImageDecoder, Optimiser
from semlink.nn.drawers import UNetDecoder
from semlink.schemes import DeepJSCC, Design, Link, Task

SHAPE = (1, 8, 8)


def images_of(count, seed=0):
    coarse = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, SHAPE[1:], mode="bilinear", align_corners=True)


def attack_on(snr_db=3.0):
    torch.manual_seed(0)
    link = Link(DeepJSCC(Design(Task("classify", SHAPE, 3), 16, Backbone(16, 16))), phy.AWGN(), snr_db)
    return EnsembleInversion(Tap(link, Threat(snr_db)), 16, taps=0)


def trained(steps):
    attack, images, generator = attack_on(), images_of(500), torch.Generator().manual_seed(1)
    (phase,) = attack.phases(Optimiser(learning_rate=3e-3))
    optimiser = phase.optimiser.build(phase.parameters)
    attack.train()
    for _ in range(steps):
        chosen = images[torch.randint(len(images), (32,), generator=generator)]
        optimiser.zero_grad()
        phase.module(chosen, torch.zeros(32), generator)["loss"].backward()
        optimiser.step()
    return attack.eval()


@pytest.fixture(scope="module")
def eve():
    return trained(60)


@torch.no_grad()
def test_its_error_is_the_mean_members_less_their_variance(eve):
    """Krogh and Vedelsby: exact image by image, so never worse than the mean member."""
    test = images_of(100, seed=9)
    heard = eve.tap.intercept(test, torch.Generator().manual_seed(5))
    drawn = eve.reconstruct(heard, 3.0).double()
    members = torch.stack([member(heard).clamp(0, 1) for member in eve.decoder.members]).double()
    error = (drawn - test).square().flatten(1).mean(1)
    of_members = (members - test).square().flatten(2).mean(2)
    variance = (members - members.mean(0)).square().flatten(2).mean(2)
    assert torch.allclose(error, of_members.mean(0) - variance.mean(0), atol=1e-7)
    assert variance.min() > 1e-6  # they are not copies
    assert error.mean() < of_members.mean()
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_members_are_two_residual_decoders_and_a_unet_of_other_starts(eve):
    first, second, third = attack_on().decoder.members
    assert [type(each) for each in (first, second, third)] == [ImageDecoder, ImageDecoder, UNetDecoder]
    for one, other in ((first, second), (first, third.draft)):
        assert not torch.equal(one.seed.weight, other.seed.weight)


@torch.no_grad()
def test_in_training_each_member_has_its_own_noise_and_the_loss_is_the_mean_of_theirs():
    attack, images, heard = attack_on().train(), images_of(6), []
    for member in attack.decoder.members:
        member.register_forward_hook(lambda module, inputs, drawn: heard.append((inputs[0], drawn)))
    losses = attack(images, torch.zeros(6), torch.Generator().manual_seed(0))
    assert [len(features) for features, _ in heard] == [6, 6, 6]
    code = attack.tap.victim if attack.sees else None
    assert code is None
    noise = [features - attack.tap._link.scheme.features(images) for features, _ in heard]
    pairs = torch.corrcoef(torch.stack([each.flatten() for each in noise]))
    assert (pairs - torch.eye(3)).abs().max() < 4 / noise[0].numel() ** 0.5
    by_hand = sum(F.mse_loss(drawn, images) for _, drawn in heard) / 3
    assert losses["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)


@torch.no_grad()
def test_in_evaluation_the_loss_is_that_of_the_mean_drawing(eve):
    images = images_of(6)
    losses = eve(images, torch.zeros(6), torch.Generator().manual_seed(0))
    drawn = eve.reconstruct(eve.tap.intercept(images, torch.Generator().manual_seed(0)), 3.0)
    assert losses["loss"].item() == pytest.approx(F.mse_loss(drawn, images).item(), rel=1e-6)


def test_every_parameter_gets_gradient_and_results_repeat():
    attack = attack_on().train()
    attack(images_of(8), torch.zeros(8), torch.Generator().manual_seed(0))["loss"].backward()
    for name, parameter in attack.named_parameters():
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, name
    assert fingerprint(trained(3)) == fingerprint(trained(3))
