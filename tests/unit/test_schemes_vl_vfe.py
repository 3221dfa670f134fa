# SPDX-License-Identifier: Apache-2.0
"""VL-VFE: a length that follows the noise, what transmitter and receiver must agree on, and training over a range."""

import itertools
import json
import math

import pytest
import torch
from scipy import stats

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone, Optimiser
from semlink.schemes import VFE, VLVFE, Design, Link, Task, schemes
from semlink.schemes.task import KINDS
from semlink.schemes.vl_vfe import carried_at

SHAPES = {"mnist, fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32), "celeba": (3, 64, 64)}
GRID = (4.0, 8.0, 12.0, 16.0, 20.0)
D = 32


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind="classify", shape=(1, 8, 8), uses=16, outputs=5, seed=0, **options):
    torch.manual_seed(seed)
    task = Task(kind, shape, 0 if kind == "reconstruct" else outputs)
    return VLVFE(Design(task, uses, Backbone(16, 16)), **options)


def batch_of(kind, shape, count=32, outputs=5):
    images = torch.rand(count, *shape, generator=seeded(1))
    if kind == "classify":
        return images, torch.arange(count) % outputs
    return images, torch.randint(0, 2, (count, outputs), generator=seeded(2)).float()


IMAGES = batch_of("classify", (1, 8, 8))[0]


def awgn(snr_db):
    return lambda symbols, generator: phy.AWGN()(symbols, snr_db, generator)


def phase_of(scheme, carry=None):
    (phase,) = scheme.phases(Optimiser("sgd", 0.05), carry or awgn(12.0), 0.0)
    return phase


def stepped(**options):
    """A link whose scales are lowered so far that its length depends on the SNR."""
    scheme = make(**options).eval()
    with torch.no_grad():
        scheme.scale.layers[-1].bias -= torch.linspace(0, 14, D)
    return scheme


def lengths(scheme):
    return [scheme.active_dimensions(snr_db) for snr_db in GRID]


# Scales


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("low", "high"), [(4.0, 20.0), (10.0, 26.0), (-5.0, 0.0)])
def test_scales_start_spread_over_the_whole_range_of_snrs(seed, low, high):
    """From a few tenths where it is quiet to a few units where it is loud: no SNR at which nothing or all is alike."""
    scheme = make(seed=seed, snr_low_db=low, snr_high_db=high)
    sigma = torch.linspace(10 ** (-high / 20), 10 ** (-low / 20), 9)[:, None]  # as training draws it
    scales = scheme._scales(sigma.square()).detach()
    assert (scales.diff(dim=0) >= 0).all()
    middle = scales.median(1).values
    assert middle[0] < 1
    assert middle[-1] > middle[4] + 0.5 > middle[0] + 1
    assert scheme.active_dimensions(low) == D
    assert scheme.active_dimensions(high) > D / 4


def test_more_is_sent_when_it_is_noisier_and_what_is_sent_in_quiet_is_always_among_it():
    scheme = stepped()
    counts = lengths(scheme)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[-1] >= 1
    active = [scheme.active(scheme._scales(torch.tensor([[10 ** (-snr_db / 10)]])))[0] for snr_db in GRID]
    for noisier, quieter in itertools.pairwise(active):
        assert not (quieter & ~noisier).any()
    assert scheme.describe() == json.loads(json.dumps(scheme.describe()))
    said = scheme.describe()["active_dimensions"]
    assert [said[f"{snr_db:g} dB"] for snr_db in GRID] == counts
    assert len(said) == 17


@pytest.mark.parametrize("power", ["average", "peak"])
def test_where_every_scale_is_0_one_dimension_is_sent(power):
    scheme = make(power=power).eval()
    with torch.no_grad():
        scheme.scale.layers[-1].bias.fill_(-1e3)
        sent = scheme.transmit(IMAGES, seeded())
    assert lengths(scheme) == [1] * 5
    assert ((torch.view_as_real(sent.symbols) != 0).flatten(1).sum(1) == 1).all()
    if power == "average":
        assert torch.allclose(phy.mean_power(sent.symbols), torch.ones(32), atol=1e-6)


# What both ends know


def test_the_transmitter_follows_what_it_is_told():
    scheme = stepped()
    for snr_db in GRID:
        scheme.told_snr_db = snr_db
        sent = scheme.transmit(IMAGES, seeded())
        dimensions = (torch.view_as_real(sent.symbols) != 0).flatten(1).sum(1)
        assert (dimensions == scheme.active_dimensions(snr_db)).all()
        assert torch.allclose(sent.header, torch.full((32, 1), 10 ** (-snr_db / 10)))
        assert torch.allclose(phy.mean_power(sent.symbols), torch.ones(32), atol=1e-6)
        assert scheme.usage(sent, snr_db).active_dimensions == scheme.active_dimensions(snr_db)
    scheme.told_snr_db = torch.tensor(GRID).repeat(7)[:32]
    sent = scheme.transmit(IMAGES, seeded())
    dimensions = (torch.view_as_real(sent.symbols) != 0).flatten(1).sum(1)
    assert dimensions.tolist() == (lengths(scheme) * 7)[:32]
    for i in (0, 4):
        scheme.told_snr_db = GRID[i]
        alone = scheme.transmit(IMAGES[i : i + 1], seeded())
        assert torch.allclose(alone.symbols[0], sent.symbols[i], atol=1e-5)
    scheme.told_snr_db = torch.tensor([4.0, 8.0])
    with pytest.raises(SemlinkError, match="snr_db holds 2 values for 32 images"):
        scheme.transmit(IMAGES, seeded())


def test_told_nothing_it_sends_for_the_snr_that_it_was_trained_for_and_its_weights_keep_that():
    scheme, other = stepped(), make()
    phase_of(scheme, awgn(7.0))
    assert scheme.design_snr_db.item() == pytest.approx(7, abs=1e-4)
    assert scheme.active_dimensions() == scheme.active_dimensions(7.0)
    other.load_state_dict(scheme.state_dict())
    assert torch.allclose(other.transmit(IMAGES, seeded()).header, torch.full((32, 1), 10**-0.7))


def test_the_receiver_believes_the_header_and_without_one_its_own_estimate():
    scheme = stepped()
    scheme.told_snr_db = 4.0
    sent = scheme.transmit(IMAGES, seeded())
    received = awgn(4.0)(sent.symbols, seeded())
    with_header = scheme.receive(received, sent.header)
    assert torch.allclose(scheme.receive(received), with_header, atol=1e-4)
    quieter = awgn(20.0)(sent.symbols, seeded())
    assert not torch.allclose(scheme.receive(quieter), scheme.receive(quieter, sent.header), atol=1e-3)
    noisy = quieter.symbols.clone()
    noisy[:, -1] += 100  # silent at 20 dB, and at 4 dB if any is
    jammed = phy.Received(noisy, None, quieter.noise_variance)
    assert torch.equal(scheme.receive(jammed), scheme.receive(quieter))


def test_the_receiver_knows_how_noisy_it_is():
    """The same symbols and length, another noise level: the inlet adapts."""
    scheme = make().eval()
    sent = scheme.transmit(IMAGES, seeded())
    quiet, loud = (phy.Received(sent.symbols, None, torch.full((32, 1), n0)) for n0 in (0.01, 0.5))
    assert not torch.allclose(scheme.receive(quiet, sent.header), scheme.receive(loud, sent.header), atol=1e-5)


# Training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_parameter_gets_gradient(kind, shape):
    scheme = make(kind, shape)
    scheme.prepare(torch.rand(20, *shape, generator=seeded()))
    phase = phase_of(scheme.train())
    phase.optimiser.rate_at(1.0)
    phase.module(*batch_of(kind, shape, 64), seeded(2))["loss"].backward()
    for name, parameter in scheme.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, name


def test_every_image_is_sent_at_an_snr_of_its_own_uniform_in_sigma():
    scheme = make(snr_low_db=3.0, snr_high_db=17.0)
    images = IMAGES[:1].expand(2000, -1, -1, -1)
    with torch.no_grad():
        sent, received = scheme.send(images, awgn(12.0), seeded())
    sigma = received.noise_variance.sqrt().squeeze(1)
    assert torch.allclose(sent.header, received.noise_variance, rtol=1e-5)
    low, high = 10 ** (-17 / 20), 10 ** (-3 / 20)
    assert stats.kstest(sigma.numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.01
    noise = (received.symbols - sent.symbols).abs().square().mean(1)
    ratio = noise / received.noise_variance.squeeze(1)
    assert abs(ratio.mean().item() - 1) < 5 * ratio.std().item() / math.sqrt(2000)
    loud, quiet = sigma > sigma.median(), sigma <= sigma.median()
    assert ratio[loud].mean().item() == pytest.approx(ratio[quiet].mean().item(), abs=0.05)


@pytest.mark.parametrize("medium", [phy.AWGN(), phy.Rayleigh(), phy.Rician(3.0, "symbol")])
def test_carried_at_is_the_channel_at_another_noise(medium):
    """Draw for draw: the same gains, and the design's noise times the ratio of the deviations."""
    symbols = torch.randn(6, 4, dtype=torch.complex64, generator=seeded())
    sigma = torch.linspace(0.1, 2.0, 6)[:, None]
    design = torch.full((1, 1), 10 ** (-12 / 20))

    def carry(x, generator):
        return medium(x, 12.0, generator)

    found = carried_at(carry, symbols, sigma, design, seeded(1))
    expected = medium(symbols, -20 * sigma.squeeze(1).log10(), seeded(1))
    assert torch.allclose(found.symbols, expected.symbols, atol=1e-5)
    assert torch.allclose(found.noise_variance, expected.noise_variance, rtol=1e-4)
    assert (found.csi is None) == (expected.csi is None)
    assert found.csi is None or torch.equal(found.csi, expected.csi)


def test_the_loss_weights_every_image_by_its_own_noise():
    scheme = make(beta=0.05).train()
    phase = phase_of(scheme)
    phase.optimiser.rate_at(1.0)
    images, targets = batch_of("classify", (1, 8, 8))
    losses = phase.module(images, targets, seeded())
    again = make(beta=0.05).train()
    phase_of(again)
    sent, received = again.send(images, awgn(12.0), seeded())
    rate = again.rate(sent, received)
    shares = [0.1 / float(n0) ** 0.5 * float(nats) for n0, nats in zip(sent.header, rate.detach(), strict=True)]
    weighted = 0.05 * sum(shares) / 32
    assert losses["loss"].item() == pytest.approx(losses["task"].item() + weighted, rel=1e-4)
    assert losses["rate_nats"].item() == pytest.approx(rate.mean().item(), rel=1e-5)


def trained(steps, seed=0, beta=0.0):
    scheme, generator, rows = make(outputs=2, seed=seed, beta=beta), seeded(seed), []
    phase = phase_of(scheme.train())
    optimiser = phase.optimiser.build(phase.parameters)
    for step in range(steps):
        phase.optimiser.rate_at(step / steps)
        targets = torch.arange(64) % 2
        images = 0.3 * torch.rand(64, 1, 8, 8, generator=generator)
        images[targets == 1, :, :4] += 0.5
        losses = phase.module(images, targets, generator)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        rows.append({name: value.item() for name, value in losses.items()})
    return scheme.eval(), rows


def test_the_rate_shortens_and_nothing_else_does():
    rows = {beta: trained(40, beta=beta)[1] for beta in (0.0, 0.2)}
    assert rows[0.2][-1]["active_dimensions"] < 0.7 * rows[0.0][-1]["active_dimensions"]
    assert rows[0.2][-1]["rate_nats"] < 0.7 * rows[0.0][-1]["rate_nats"]
    assert rows[0.0][-1]["task"] < 0.2


def test_training_repeats_with_its_seed_and_not_with_another():
    (one, rows), (same, again), (_, others) = (trained(3, seed=seed) for seed in (0, 0, 1))
    assert rows == again
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    assert rows != others


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_link_for_every_task_on_every_shape(kind, shape):
    link = Link(make(kind, shape), phy.Rayleigh(), 12.0)
    images = batch_of(kind, shape, 4)[0]
    sent = link.transmit(images)
    assert sent.header.shape == (4, 1)
    output = link.receive(link.channel(sent.symbols), sent.header)
    assert output.shape == (images.shape if kind == "reconstruct" else (4, 5))
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"snr_low_db": 20.0, "snr_high_db": 4.0}, "snr_low_db = 20 and snr_high_db = 4: the first must be the lower"),
        ({"snr_low_db": 8, "snr_high_db": 8}, "the first must be the lower"),
        ({"snr_low_db": math.nan}, "option snr_low_db is nan"),
        ({"snr_high_db": math.inf}, "option snr_high_db is inf: a number from -300 to 300"),
        ({"snr_high_db": True}, "option snr_high_db is True"),
        ({"power": "mean"}, "unknown power convention 'mean'"),
        ({"beta": -1}, "option beta is -1: a finite number of at least 0"),
        ({"uses": 12}, "^12 channel uses: .*multiple of 8"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(options, said):
    with pytest.raises(SemlinkError, match=said) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_it_is_registered_beside_vfe():
    assert schemes["vl-vfe"] is VLVFE
    assert issubclass(VLVFE, VFE)
