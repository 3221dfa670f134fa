# SPDX-License-Identifier: Apache-2.0
"""IBAL: the rate of what is sent, the weight of privacy, and a game in which each moves only what is its own."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from semlink import phy
from semlink._errors import SemlinkError
from semlink.data import ImageSet
from semlink.nn import Backbone, Optimiser
from semlink.nn.adversary import Adversary
from semlink.schemes import Design, Link, Task, schemes
from semlink.schemes.base import Sent
from semlink.schemes.ibal import IBAL, GaussianPrior
from semlink.training import Batches, Fit, make_fabric

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]
CASES = [(shape, kind, False) for shape in SHAPES for kind in ("classify", "attributes", "reconstruct")]
CASES += [(SHAPES[1], "classify", True)]
SMALL = (1, 8, 8)


def make(shape=SMALL, kind="classify", uses=8, **options):
    torch.manual_seed(0)
    scheme = IBAL(Design(Task(kind, shape, 0 if kind == "reconstruct" else 5), uses, Backbone(16, 16)), **options)
    scheme.prepare(images_of(40, shape))
    return scheme


def images_of(count=12, shape=SMALL, seed=1):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def targets_of(kind, count=12):
    return torch.rand(count, 5).round() if kind == "attributes" else torch.arange(count) % 5


def awgn(symbols, generator):
    return phy.AWGN()(symbols, 12.0, generator)


def rayleigh(symbols, generator):
    return phy.Rayleigh("symbol")(symbols, 12.0, generator)


def losses_of(scheme, carry=awgn, progress=1.0, images=None, seed=3):
    game = scheme.phases(Optimiser(), carry, 0.0)[0]
    game.optimiser.rate_at(progress)
    images = images_of() if images is None else images
    return game.module(images, targets_of("classify", len(images)), torch.Generator().manual_seed(seed))


class Draws(nn.Module):
    """An adversary's decoder that draws ``share`` of the way from the mean image to a fixed batch of images."""

    def __init__(self, adversary, images, share):
        super().__init__()
        self.drawing = adversary.mean_image + share * (images - adversary.mean_image)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, heard):
        return self.drawing * self.scale + 0 * heard.sum()


# The rate


def test_the_rate_is_the_divergence_of_two_gaussians():
    prior, generator = GaussianPrior(6), torch.Generator().manual_seed(0)
    prior.centre.copy_(torch.randn(6, generator=generator))
    prior.spread.copy_(torch.rand(6, generator=generator) + 0.1)
    features, noise = torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator) + 0.01
    sent = torch.distributions.Normal(features, noise.sqrt())
    q = torch.distributions.Normal(prior.centre, (prior.spread + noise).sqrt())
    expected = torch.distributions.kl_divergence(sent, q).sum(1)
    assert torch.allclose(prior.divergence(features, noise), expected, rtol=1e-5)


def test_the_rate_of_gaussian_features_is_what_the_channel_carries():
    """With m and v their moments, the mean rate is sum_i ln(1 + v_i / sigma^2) / 2, the capacity at that energy."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([2.0, 1.0, 0.1, 0.0])
    features = 0.7 + torch.randn(40_000, 4, generator=generator) * spread.sqrt()
    prior = GaussianPrior(4)
    for _ in range(60):
        prior.follow(features)
    assert torch.allclose(prior.centre, torch.full((4,), 0.7), atol=0.02)
    assert torch.allclose(prior.spread, spread, atol=0.02)
    for sigma2 in (0.01, 0.3, 5.0):
        rate = prior.divergence(features, torch.full_like(features, sigma2)).mean()
        assert float(rate) == pytest.approx(float((1 + spread / sigma2).log().sum() / 2), rel=0.01)
    # Any other q says more: the rate is a bound that the moments make tight.
    wrong = GaussianPrior(4)
    tight = prior.divergence(features, torch.full_like(features, 0.3)).mean()
    assert wrong.divergence(features, torch.full_like(features, 0.3)).mean() > tight + 0.1


def test_the_rate_follows_what_is_sent_and_the_true_noise_and_nothing_else():
    scheme = make().eval()
    scheme.prior.centre.normal_()
    images = images_of()
    sent = scheme.transmit(images, torch.Generator())
    for snr_db in (0.0, 7.0, 20.0):
        received = phy.AWGN()(sent.symbols, snr_db, torch.Generator().manual_seed(1))
        n0 = 10 ** (-snr_db / 10)
        f = np.sqrt(2) * torch.view_as_real(sent.symbols).flatten(1).detach().double().numpy()
        m, v = scheme.prior.centre.double().numpy(), scheme.prior.spread.double().numpy()
        expected = 0.5 * (((f - m) ** 2 + n0) / (v + n0) - 1 + np.log1p(v / n0)).sum(1)
        rate = scheme.rate(sent, received)
        assert rate.detach().double().numpy() == pytest.approx(expected, rel=1e-5)
        again = phy.AWGN()(sent.symbols, snr_db, torch.Generator().manual_seed(2))
        assert torch.equal(scheme.rate(sent, again), rate)  # of the noise's variance, not of a draw
    other = Sent(sent.symbols.roll(1, 0) * 1j)
    assert not torch.allclose(scheme.rate(other, received), rate)
    for parameter in (*scheme.decoder.parameters(), *scheme.adversary.parameters()):
        nn.init.normal_(parameter)
    assert torch.equal(scheme.rate(sent, received), rate)


def test_over_fading_the_rate_is_that_of_the_noise_after_the_gain():
    scheme = make().eval()
    sent = scheme.transmit(images_of(), torch.Generator())
    faded = rayleigh(sent.symbols, torch.Generator().manual_seed(0))
    seen = phy.zero_force(faded)
    by_hand = sum(
        scheme.prior.divergence(f[:, None] * torch.ones(1, 16), n.expand(12, 16))[:, None] / 16
        for f, n in zip(
            phy.to_features(sent.symbols).unbind(1),
            seen.noise_variance.repeat_interleave(2, 1)[:, :, None].unbind(1),
            strict=True,
        )
    )
    assert torch.allclose(scheme.rate(sent, faded), by_hand[:, 0], rtol=1e-4)


def test_a_fixed_standard_prior_would_do_nothing():
    """Why q follows the features: under it every code of unit energy has the same rate."""
    prior, generator = GaussianPrior(16), torch.Generator().manual_seed(0)
    features = torch.randn(5, 16, generator=generator) * torch.rand(5, 16, generator=generator)
    code = phy.to_features(phy.normalise_power(phy.to_symbols(features)))
    assert torch.allclose(prior.divergence(code, torch.full((5, 16), 0.1)), torch.full((5,), 8 * math.log(11)))


def test_the_prior_follows_training_and_stands_still_otherwise():
    scheme = make().train()
    transceiver, adversary = scheme.phases(Optimiser(), awgn, 0.0)

    def moves(act):
        before = scheme.prior.centre.clone(), scheme.prior.spread.clone()
        act()
        return not torch.equal(before[0], scheme.prior.centre), not torch.equal(before[1], scheme.prior.spread)

    generator = torch.Generator().manual_seed(0)
    assert moves(lambda: transceiver.module(images_of(), targets_of("classify"), generator)) == (True, True)
    assert moves(lambda: adversary.module(images_of(), targets_of("classify"), generator)) == (False, False)
    assert moves(lambda: scheme.eval().transmit(images_of(), generator)) == (False, False)


# The loss


def test_the_loss_is_the_sum_of_its_parts_with_their_weights():
    plain = losses_of(make(beta=0.0, privacy_weight=0.0))
    assert set(plain) == {"loss", "task", "rate_nats", "privacy"}
    assert torch.equal(plain["loss"], plain["task"])
    for beta, weight, progress, anneal in (
        (0.02, 0.7, 1.0, 1),
        (0.02, 0.7, 0.0, 0),
        (0.02, 0.0, 3 / 32, 0.5),
        (0, 3, 1, 1),
    ):
        scheme = make(beta=beta, privacy_weight=weight)
        scheme.adversary.decoder = Draws(scheme.adversary, images_of(), 0.4)
        parts = losses_of(scheme, progress=progress)
        per_nat = anneal * beta * 0.1 / 10**-0.6  # sigma at 12 dB
        expected = parts["task"] + per_nat * parts["rate_nats"] - weight * parts["privacy"]
        assert float(parts["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        assert float(parts["privacy"].detach()) == pytest.approx(0.36, abs=1e-5)
        assert torch.equal(parts["task"], plain["task"])


def test_each_part_pulls_where_it_says():
    """A few steps on a part alone change that part as its sign in the loss says."""

    def after(steps, **options):
        scheme = make(anneal_start=0.0, anneal_end=0.0, **options)
        game, _ = scheme.phases(Optimiser(), awgn, 0.0)
        optimiser, generator = torch.optim.Adam(game.parameters, 3e-3), torch.Generator().manual_seed(0)
        for _ in range(steps):
            parts = game.module(images_of(24, seed=4), targets_of("classify", 24), generator)
            optimiser.zero_grad()
            parts["loss"].backward()
            optimiser.step()
        return {name: float(value.detach()) for name, value in parts.items()}

    free, tight = after(25, beta=0.0, privacy_weight=0.0), after(25, beta=0.8, privacy_weight=0.0)
    assert tight["rate_nats"] < 0.6 * free["rate_nats"]
    assert free["task"] < tight["task"]


def test_the_transceiver_is_paid_for_what_a_listener_cannot_draw():
    """Against an adversary who reads the image off the code, privacy rises with its weight."""

    def privacy(weight):
        scheme = make(beta=0.0, privacy_weight=weight)
        transceiver, adversary = scheme.phases(Optimiser(), awgn, 0.0)
        players = [(p, torch.optim.Adam(p.parameters, 3e-3)) for p in (transceiver, adversary)]
        generator = torch.Generator().manual_seed(0)
        for step in range(60):
            shade = torch.rand(60, 4, generator=generator)
            images = nn.functional.interpolate(shade.view(60, 1, 2, 2), scale_factor=4)
            if step == 0:
                scheme.adversary.measure(images)
            targets = (shade[:, 0] * 5).long()
            for phase, optimiser in players:
                for p in scheme.parameters():
                    p.requires_grad_(any(p is q for q in phase.parameters))
                for _ in range(phase.steps):
                    parts = phase.module(images, targets, generator)
                    optimiser.zero_grad()
                    parts["loss"].backward()
                    optimiser.step()
                if phase is transceiver:
                    kept = float(parts["privacy"].detach())
        return kept

    assert privacy(5.0) > privacy(0.0) + 0.1


# The weight


def test_the_weight_of_privacy_follows_the_noise_only_if_adaptive():
    n0 = 10 ** (-torch.tensor([4.0, 8.0, 12.0, 16.0, 20.0]) / 10)[:, None]
    fixed = make(privacy_weight=0.8).weight(n0, 10**-1.2)
    assert torch.equal(fixed, torch.full((5,), 0.8))
    adaptive = make(privacy_weight=0.8, adaptive=True).weight(n0, 10**-1.2)
    expected = [0.8 * math.log2(1 + 10 ** (s / 10)) / math.log2(1 + 10**1.2) for s in (4, 8, 12, 16, 20)]
    assert adaptive.tolist() == pytest.approx(expected, rel=1e-5)
    assert float(adaptive[2]) == pytest.approx(0.8)
    assert adaptive.diff().gt(0).all()


@pytest.mark.parametrize("carry", [awgn, rayleigh])
def test_adaptive_training_meets_a_range_of_snrs_and_weighs_each_image_by_its_own(carry, monkeypatch):
    images = images_of(400)
    met: list[phy.Received] = []
    for adaptive in (False, True):
        scheme = make(adaptive=adaptive, snr_low_db=6.0, snr_high_db=18.0, privacy_weight=2.0, beta=0.0)
        scheme.adversary.decoder = Draws(scheme.adversary, images, torch.rand(400, 1, 1, 1))
        met.clear()
        observe = scheme.observe
        monkeypatch.setattr(scheme, "observe", lambda r, *a, observe=observe, **k: met.append(r) or observe(r, *a, **k))
        parts = losses_of(scheme, carry, images=images)
        bob, eve = met
        snr = -10 * bob.noise_variance.flatten().log10()
        assert torch.equal(eve.noise_variance, bob.noise_variance)  # she hears as well as he does,
        assert not torch.isclose(bob.symbols, eve.symbols).any()  # with noise of her own
        if adaptive:
            assert 6 - 1e-4 <= snr.min() < 7
            assert 17 < snr.max() <= 18 + 1e-4
            assert snr.mean() == pytest.approx(12, abs=0.6)
        else:
            assert torch.allclose(snr, torch.full((400,), 12.0), atol=1e-4)
        hidden = scheme.adversary.bounded(scheme.adversary.decoder.drawing, images)
        weighed = (scheme.weight(bob.noise_variance, 10**-1.2) * hidden).mean()
        gained = parts["task"] - parts["loss"]
        assert float(gained.detach()) == pytest.approx(float(weighed), rel=1e-4)
    heard: list[torch.Tensor] = []
    her = scheme.phases(Optimiser(), carry, 0.0)[1].module
    monkeypatch.setattr(scheme.adversary, "forward", lambda h: heard.append(h) or images[: len(h)].requires_grad_())
    met.clear()
    her(images, None, torch.Generator().manual_seed(0))
    assert met[0].noise_variance.std() > 0.01  # in her own phase too


# The game


@pytest.mark.parametrize(("shape", "kind", "adaptive"), CASES)
def test_each_player_reaches_all_of_its_own_parameters_and_none_of_the_other_s(shape, kind, adaptive):
    scheme = make(shape, kind, uses=16, adaptive=adaptive).train()
    phases = scheme.phases(Optimiser(), awgn, 0.1)
    named = dict(scheme.named_parameters())
    owned = [{name for name, p in named.items() if any(p is q for q in phase.parameters)} for phase in phases]
    assert owned[0] | owned[1] == set(named)
    assert owned[1] == {name for name in named if name.startswith("adversary.")}
    assert not owned[0] & owned[1]
    buffers = {k: v.clone() for k, v in scheme.state_dict().items() if k not in named}
    for phase, mine in zip(phases, owned, strict=True):
        scheme.load_state_dict(buffers, strict=False)
        for name, p in named.items():
            p.grad = None
            p.requires_grad_(name in mine)
        phase.module(images_of(10, shape), targets_of(kind, 10), torch.Generator().manual_seed(2))["loss"].backward()
        for name, p in named.items():
            if name in mine:
                assert p.grad is not None, name
                assert p.grad.isfinite().all(), name
                assert p.grad.ne(0).any(), name
            else:
                assert p.grad is None, name
        moved = {k for k, v in scheme.state_dict().items() if k in buffers and not torch.equal(v, buffers[k])}
        assert all(k.startswith("adversary.") == (phase.name == "adversary") for k in moved)
        assert moved


def test_the_receiver_s_answer_does_not_depend_on_the_adversary():
    scheme = make().eval()
    link, images = Link(scheme, phy.AWGN(), 12.0), images_of()
    generator = torch.Generator()
    before = link.receive(link.channel(link.transmit(images).symbols, generator=generator.manual_seed(0)))
    for module in scheme.adversary.modules():
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            value.data.fill_(7)
    after = link.receive(link.channel(link.transmit(images).symbols, generator=generator.manual_seed(0)))
    assert torch.equal(before, after)
    del scheme.adversary
    assert torch.equal(
        link.receive(link.channel(link.transmit(images).symbols, generator=generator.manual_seed(0))), after
    )


def test_capacity_is_that_of_deepjscc_but_for_the_adversary():
    ours, theirs = make(), schemes["deepjscc"](make().design)
    link_s = sum(p.numel() for name, p in ours.named_parameters() if not name.startswith("adversary."))
    assert link_s == sum(p.numel() for p in theirs.parameters())
    assert isinstance(ours.adversary, Adversary)
    assert ours.adversary.steps == 5
    energy = ours.eval().transmit(images_of(), torch.Generator()).symbols.abs().square().mean(1)
    assert torch.allclose(energy, torch.ones(12), atol=1e-5)


def train(folder, fabric, seed=3, die_after=None):
    torch.manual_seed(seed)
    scheme = IBAL(Design(Task("classify", SMALL, 5), 8, Backbone(16, 16)), adaptive=True, adversary_steps=2, restarts=2)
    scheme.prepare(images_of(40))
    torch.manual_seed(len(folder.name))
    pictures = ImageSet((images_of(40) * 255).to(torch.uint8), torch.arange(40) % 5)
    phases = scheme.phases(Optimiser("sgd", 0.05, schedule="triangle"), awgn, 0.0)
    done = 0

    def validate():
        nonlocal done
        done += 1
        if done - 1 == die_after:
            raise InterruptedError
        return {"restarted": float(scheme.adversary.restarted)}

    history = Fit(scheme, phases, Batches([pictures], 10, None, seed), validate, 3, seed, folder).run(fabric)
    return scheme.state_dict(), [{k: v for k, v in row.items() if k != "epoch_seconds"} for row in history]


def test_a_killed_and_resumed_training_is_bit_identical_and_another_seed_is_another(tmp_path):
    fabric = make_fabric(torch.device("cpu"), "fp32")
    whole, history = train(tmp_path / "whole", fabric)
    assert [row["validation"]["restarted"] for row in history] == [0, 1, 2]
    for epochs in (1, 2):
        folder = tmp_path / f"killed-after-{epochs}"
        with pytest.raises(InterruptedError):
            train(folder, fabric, die_after=epochs)
        resumed, rows = train(folder, fabric)
        assert rows == history
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    other, _ = train(tmp_path / "other", fabric, seed=4)
    assert not torch.equal(other["adversary.decoder.seed.weight"], whole["adversary.decoder.seed.weight"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beta": -1.0}, "beta"),
        ({"privacy_weight": math.inf}, "privacy_weight"),
        ({"privacy_weight": "much"}, "privacy_weight"),
        ({"adaptive": "no"}, "adaptive"),
        ({"adversary_steps": 0}, "adversary_steps"),
        ({"restarts": -1}, "restarts"),
        ({"anneal_start": 0.5, "anneal_end": 0.4}, "anneal_end"),
        ({"snr_low_db": 9.0, "snr_high_db": 8.0}, "snr_high_db"),
        ({"uses": 7}, "7 channel uses"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options, named):
    with pytest.raises(SemlinkError, match=named) as caught:
        make(**options)
    assert "\n" not in str(caught.value)
