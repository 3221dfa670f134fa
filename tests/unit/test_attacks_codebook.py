# SPDX-License-Identifier: Apache-2.0
"""What an attacker makes of a codebook that she knows: exact posteriors, the right codewords, better drawings."""

import math

import pytest
import torch

from semlink import phy
from semlink._errors import SemlinkError
from semlink.attacks import CodebookInversion, Inversion, Tap, Threat, attacks
from semlink.bench.attacker import fingerprint
from semlink.nn import Backbone, Optimiser
from semlink.schemes import DeepJSCC, Design, Key, Link, Task, schemes

SHAPE = (1, 8, 8)


def images_of(count, seed=0):
    coarse = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear", align_corners=True)


def link_of(name="deepjscc-lbvq", uses=32, **options):
    """A link whose codebook is in uneven use, with indices on points in an order of their own."""
    torch.manual_seed(0)
    scheme = schemes[name](Design(Task("classify", SHAPE, 3), uses, Backbone(16, 16)), **options)
    core = scheme.core
    core.prepare(images_of(200))
    core.train()
    with torch.no_grad():
        for seed in range(20):
            core.choose(images_of(200, seed), torch.Generator().manual_seed(0))
    core.modem.usage.copy_(torch.arange(1.0, 17.0) / 136)
    core.modem.point.copy_(torch.randperm(16))
    if scheme.secret is not None:
        scheme.key = Key.for_test(0)
    return Link(scheme, phy.AWGN(), 12.0)


def attack_on(link, threat, kind=CodebookInversion, width=16):
    torch.manual_seed(0)
    return kind(Tap(link, threat, kind.sees), width, taps=0)


def train(attack, steps):
    (phase,) = attack.phases(Optimiser(learning_rate=3e-3, schedule="cosine", warm_up=0.1))
    optimiser, generator = phase.optimiser.build(phase.parameters), torch.Generator().manual_seed(1)
    images = images_of(2000)
    attack.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.optimiser.rate_at(step / steps)
        chosen = images[torch.randint(len(images), (32,), generator=generator)]
        optimiser.zero_grad()
        phase.module(chosen, torch.zeros(32), generator)["loss"].backward()
        optimiser.step()
    return attack.eval()


@pytest.mark.parametrize("name", ["deepjscc-lbvq", "uis-tosc"])
@pytest.mark.parametrize("receptions", [(1, 1), (2, 3)])
def test_posteriors_are_those_of_bayes(name, receptions):
    link, (antennas, transmissions) = link_of(name), receptions
    attack = attack_on(link, Threat(3.0, antennas=antennas, transmissions=transmissions))
    heard = attack.tap.intercept(images_of(5), torch.Generator().manual_seed(2))
    modem, symbols = link.scheme.modem, phy.to_symbols(heard).to(torch.complex128)
    for snr_db in (3.0, 9.0):
        n0 = 10 ** (-snr_db / 10) / (antennas * transmissions)
        points = modem.scaled(modem.point).modulate(modem.point[torch.arange(16)]).to(torch.complex128)
        densities = torch.exp(-((symbols[..., None] - points).abs() ** 2) / n0) / (math.pi * n0)
        joint = densities * modem.usage.double()
        posterior = attack.decoder.posterior(heard, snr_db).detach()
        assert torch.allclose(posterior.double(), joint / joint.sum(-1, keepdim=True), atol=1e-5)
    own = modem.decide(phy.Received(phy.to_symbols(heard), None, torch.full((5, 1), n0)), soft=True)
    assert torch.allclose(posterior, own, atol=1e-5)  # and those of the link's own soft decisions


def test_what_is_heard_well_is_looked_up_as_it_was_sent():
    link = link_of()
    attack, images = attack_on(link, Threat(60.0)).eval(), images_of(4)
    seen = []
    attack.decoder.draw.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    heard = attack.tap.intercept(images, torch.Generator().manual_seed(0))
    attack.reconstruct(heard, 60.0)
    with torch.no_grad():
        codewords = link.scheme.codebook.lookup(link.scheme.choose(images, torch.Generator()).choice)
    wanted = codewords.reshape(4, 16, -1).transpose(1, 2)  # the map that the receiver's own decoder gets
    per_symbol = seen[0].unflatten(1, (-1, 16)).transpose(1, 2).reshape(4, 32, -1)
    maps = per_symbol[..., :-2].reshape(4, 16, -1).transpose(1, 2)
    assert torch.allclose(maps, wanted, atol=1e-5)
    assert torch.equal(per_symbol[..., -2:].flatten(1), heard)


@pytest.mark.parametrize("snr_db", [-3.0, 3.0])
def test_it_draws_better_than_who_lacks_the_codebook(snr_db):
    link, test = link_of(), images_of(400, seed=9)
    errors = []
    for kind in (CodebookInversion, Inversion):
        attack = train(attack_on(link, Threat(snr_db), kind), 150)
        with torch.no_grad():
            drawn = attack.reconstruct(attack.tap.intercept(test, torch.Generator().manual_seed(5)), snr_db)
        errors.append((drawn - test).square().flatten(1).mean(1).double())
    lead = errors[1] - errors[0]
    assert lead.mean() > 3 * lead.std() / len(lead) ** 0.5


def test_the_scale_of_the_noise_can_be_learned():
    """Told of 10 dB more than there are, she finds the factor by which codewords are expected with least error."""
    link = link_of()
    modem, vectors = link.scheme.modem, link.scheme.codebook.vectors.detach()
    decoder, generator = attack_on(link, Threat(10.0)).decoder, torch.Generator().manual_seed(0)
    sent = torch.multinomial(modem.usage, 40000, replacement=True, generator=generator).unflatten(0, (-1, 32))
    heard = phy.to_features(phy.AWGN()(modem.modulate(sent), 0.0, generator).symbols)
    adam = torch.optim.Adam([decoder.trust], 0.1)
    for _ in range(100):
        adam.zero_grad()
        (decoder.posterior(heard, 10.0) @ vectors - vectors[sent]).square().mean().backward()
        adam.step()
    assert decoder.trust.item() == pytest.approx(-math.log(10), abs=0.1)


def test_every_parameter_gets_gradient_and_the_victim_none():
    for name, options in (("deepjscc-lbvq", {}), ("uis-tosc", {}), ("layered", {"base": "deepjscc-lbvq"})):
        link = link_of(name, **options)
        before = fingerprint(link.scheme)
        attack = attack_on(link, Threat(3.0)).train()
        own = {name for name, _ in attack.named_buffers()}
        assert {"decoder.points", "decoder.usage", "decoder.vectors"} <= own
        attack(images_of(8), torch.zeros(8), torch.Generator().manual_seed(0))["loss"].backward()
        for label, parameter in attack.named_parameters():
            reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
            assert (reached != 0).float().mean() > 0.9, label
        assert all(p.grad is None for p in link.scheme.parameters())
        assert fingerprint(link.scheme) == before
        assert not {p.data_ptr() for p in attack.state_dict().values()} & {
            p.data_ptr() for p in link.scheme.state_dict().values()
        }


def test_results_repeat():
    first, again = (train(attack_on(link_of(), Threat(3.0)), 3) for _ in range(2))
    assert fingerprint(first) == fingerprint(again)


def test_a_scheme_without_a_codebook_is_refused():
    link = Link(DeepJSCC(Design(Task("classify", SHAPE, 3), 16, Backbone(16, 16))), phy.AWGN(), 12.0)
    with pytest.raises(SemlinkError, match=r"needs a codebook, and DeepJSCC sends no .* by 'inversion'") as caught:
        attack_on(link, Threat(12.0), attacks["codebook-inversion"])
    assert "\n" not in str(caught.value)
