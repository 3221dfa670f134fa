# SPDX-License-Identifier: Apache-2.0
"""Decoders that no permutation moves, and that draw what a permutation leaves."""

import pytest
import torch

from semlink import phy
from semlink.attacks import Inversion, Tap, Threat, attacks
from semlink.attacks.invariant import Pooled, SetInversion, Sorted, SortedInversion
from semlink.bench.attacker import Plan, build
from semlink.data import describe
from semlink.nn import Backbone, ImageDecoder, Optimiser
from semlink.schemes import DeepJSCCEncryption, Design, Key, Link, Scheme, Sent, Task

KINDS = {"sorted-inversion": SortedInversion, "set-inversion": SetInversion}
every_kind = pytest.mark.parametrize("kind", KINDS.values())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def link_of(shape=(1, 28, 28), uses=16, kind=DeepJSCCEncryption):
    torch.manual_seed(0)
    scheme = kind(Design(Task("classify", shape, 3), uses, Backbone(16, 16)))
    if scheme.secret is not None:
        scheme.key = Key.for_test(0)
    return Link(scheme, phy.AWGN(), 12.0)


def attack_on(kind, link, snr_db=12.0):
    torch.manual_seed(1)
    return kind(Tap(link, Threat(snr_db)), width=16, taps=0)


class ShuffledPixels(Scheme):
    """Sends the pixels in an order that is new for each message; with ``flips``, half of them negated."""

    flips = False

    def transmit(self, images, generator):
        pixels = images.flatten(1)
        order = torch.rand(pixels.shape, generator=generator).argsort(1)
        signs = 1 - 2 * torch.randint(2, pixels.shape, generator=generator) if self.flips else 1
        return Sent(phy.to_symbols(pixels.gather(1, order) * signs))

    def receive(self, received, header=None):
        raise NotImplementedError


class FlippedPixels(ShuffledPixels):
    flips = True


def lit(count, seed):
    """Flat images of any brightness, with a little texture."""
    generator = seeded(seed)
    return torch.rand(count, 1, 1, 1, generator=generator) * 0.9 + 0.1 * torch.rand(count, 1, 8, 8, generator=generator)


@pytest.mark.parametrize("name", KINDS)
def test_they_are_found_by_key_and_built_as_every_attack(name):
    assert attacks[name] is KINDS[name]
    attack = build(link_of(), Plan(name, Threat(12.0), "smoke", "none", 0, "fp32"), describe("digits"))
    assert type(attack) is KINDS[name]
    assert isinstance(attack, Inversion)
    torch.manual_seed(0)
    again = build(link_of(), Plan(name, Threat(12.0), "smoke", "none", 0, "fp32"), describe("digits"))
    for label, value in attack.state_dict().items():
        assert torch.equal(value, again.state_dict()[label]), f"{label} follows from the plan's seed"


@every_kind
@pytest.mark.parametrize("training", [False, True])
def test_no_permutation_moves_a_drawing(kind, training):
    attack = attack_on(kind, link_of()).train(training)
    torch.nn.init.normal_(attack.decoder[-1].shortcut.weight, std=0.1)  # 0 when new: it would hide what it reads
    heard = torch.randn(5, 32, generator=seeded(0))
    with torch.no_grad():
        drawn = attack.decoder(heard)
        for seed in range(5):
            order = torch.rand(heard.shape, generator=seeded(seed)).argsort(1)  # each message has its own
            other = attack.decoder(heard.gather(1, order))
            if kind is SortedInversion:
                assert torch.equal(other, drawn)
            else:
                assert torch.allclose(other, drawn, atol=1e-4)
        changed = heard.clone()
        changed[:, 0] += 1
        assert (attack.decoder(changed) - drawn).abs().amax((1, 2, 3)).min() > 1e-3, "what is heard moves it"


@every_kind
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_shapes_range_and_that_every_parameter_gets_gradient(kind, shape):
    link = link_of(shape)
    attack = attack_on(kind, link).train()
    images = torch.rand(6, *shape, generator=seeded(0))
    losses = attack(images, torch.zeros(6).long(), seeded(1))
    assert set(losses) == {"loss", "mse"}
    losses["loss"].backward()
    for label, parameter in attack.named_parameters():
        assert parameter.grad is not None, label
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, f"{label}: units without gradient"
    (phase,) = attack.phases(Optimiser())
    assert {id(p) for p in phase.parameters} == {id(p) for p in attack.parameters()}
    assert all(p.grad is None for p in link.scheme.parameters())
    attack.eval()
    torch.nn.init.normal_(attack.decoder[-1].shortcut.weight, std=20.0)
    drawn = attack.reconstruct(attack.tap.intercept(images, seeded(2)), 12.0)
    assert drawn.shape == (6, *shape)
    assert drawn.dtype == torch.float32
    assert (drawn.min(), drawn.max()) == (0, 1)


def test_sorting_by_hand():
    heard = torch.tensor([[0.5, -2.0, 1.0], [3.0, 3.0, -1.0]])
    expected = torch.tensor([[-2.0, 0.5, 1.0, 0.5, 1.0, 2.0], [-1.0, 3.0, 3.0, 1.0, 3.0, 3.0]])
    assert torch.equal(Sorted()(heard), expected)
    assert torch.equal(Sorted()(-heard)[:, 3:], expected[:, 3:]), "flips leave the magnitudes"


def test_pooling_is_the_mean_and_the_maximum_of_what_each_feature_becomes():
    torch.manual_seed(0)
    pooled, heard = Pooled(7).eval(), torch.randn(4, 7, generator=seeded(0))
    singly = torch.stack([pooled.embedding(heard[:, j : j + 1]) for j in range(7)])
    expected = torch.cat([singly.mean(0), singly.max(0).values], dim=1) / (1 + pooled.standard.eps) ** 0.5
    assert torch.allclose(pooled(heard), expected, atol=1e-6)
    assert pooled(heard).shape == (4, 14)
    for half in pooled(heard).split(7, dim=1):
        (gradient,) = torch.autograd.grad(half.sum(), pooled.embedding[2].weight, retain_graph=True)
        assert (gradient.abs().sum(1) > 0).all()


def test_a_set_network_hears_which_values_came_together():
    """Two sets with the same mean and the same maximum differ in what their features become."""
    torch.manual_seed(0)
    heard = torch.tensor([[1.0, 0.0, 0.0, -1.0], [1.0, 0.5, -0.5, -1.0]])
    one, other = Pooled(4).eval()(heard)
    assert (one[:4] - other[:4]).abs().max() > 1e-3


@every_kind
def test_nothing_of_the_decoder_that_it_replaces_is_left(kind):
    attack = attack_on(kind, link_of())
    assert sum(isinstance(module, ImageDecoder) for module in attack.modules()) == 1
    assert attack.decoder[-1].seed.in_features == 2 * attack.tap.features


@pytest.mark.parametrize("victim", [ShuffledPixels, FlippedPixels])
@every_kind
def test_they_draw_what_fresh_keys_leave(kind, victim):
    """The brightness of an image is in any order of its pixels; of the magnitudes, where signs are flipped."""
    attack, images, generator = attack_on(kind, link_of((1, 8, 8), 32, victim), 20.0), lit(1000, 0), seeded(1)
    (phase,) = attack.phases(Optimiser(learning_rate=3e-3))
    optimiser = phase.optimiser.build(phase.parameters)
    attack.train()
    for _ in range(80):
        chosen = images[torch.randint(len(images), (32,), generator=generator)]
        loss = phase.module(chosen, torch.zeros(32).long(), generator)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    attack.eval()
    test = lit(200, 2)
    with torch.no_grad():
        drawn = attack.reconstruct(attack.tap.intercept(test, generator), 12.0)
    error, ignorant = ((each - test).square().mean() for each in (drawn, images.mean(0).expand_as(test)))
    assert error < ignorant / 10
