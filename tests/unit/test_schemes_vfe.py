# SPDX-License-Identifier: Apache-2.0
"""VFE: the rate of what is sent, its weight and annealing, pruning, and two conventions of power."""

import json
import math

import pytest
import torch

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone, Optimiser
from semlink.nn.variational import log_uniform_kl
from semlink.schemes import VFE, Design, Link, Sent, Task, schemes
from semlink.schemes.task import KINDS
from semlink.schemes.vfe import peak_to_average_db

SHAPES = {"mnist, fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32), "celeba": (3, 64, 64)}
POWERS = ("average", "peak")
D = 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind="classify", shape=(1, 8, 8), uses=8, outputs=5, seed=0, **options):
    torch.manual_seed(seed)
    task = Task(kind, shape, 0 if kind == "reconstruct" else outputs)
    return VFE(Design(task, uses, Backbone(16, 16)), **options)


def batch_of(kind, shape, count=16, outputs=5):
    images = torch.rand(count, *shape, generator=seeded(1))
    if kind == "classify":
        return images, torch.arange(count) % outputs
    return images, torch.randint(0, 2, (count, outputs), generator=seeded(2)).float()


IMAGES = batch_of("classify", (1, 8, 8))[0]


def awgn(snr_db):
    return lambda symbols, generator: phy.AWGN()(symbols, snr_db, generator)


def phase_of(scheme, carry=None, optimiser=None):
    (phase,) = scheme.phases(optimiser or Optimiser(), carry or awgn(12.0), 0.0)
    return phase


def two_classes(count, generator):
    """Images of two classes that cannot be confused."""
    targets = torch.arange(count) % 2
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    images[targets == 1, :, :4] += 0.5
    return images, targets


def trained(steps, seed=0, optimiser=None, **options):
    scheme, generator = make(outputs=2, seed=seed, **options), seeded(seed)
    phase = phase_of(scheme.train(), optimiser=optimiser or Optimiser("sgd", 0.1))
    stepper, rows = phase.optimiser.build(phase.parameters), []
    for step in range(steps):
        phase.optimiser.rate_at(step / steps)
        losses = phase.module(*two_classes(64, generator), generator)
        stepper.zero_grad()
        losses["loss"].backward()
        stepper.step()
        rows.append({name: value.item() for name, value in losses.items()})
    return scheme.eval(), rows


# Gradient and the loss


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_parameter_gets_gradient(kind, shape, power):
    scheme = make(kind, shape, power=power)
    scheme.prepare(torch.rand(20, *shape, generator=seeded()))
    losses = phase_of(scheme.train()).module(*batch_of(kind, shape), seeded(2))
    assert set(losses) == {"loss", "task", "rate_nats", "active_dimensions"}
    losses["loss"].backward()
    for name, parameter in scheme.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, name


@pytest.mark.parametrize("medium", [phy.AWGN(), phy.Rayleigh("symbol"), phy.Rician(3.0)])
@pytest.mark.parametrize("power", POWERS)
def test_the_rate_is_that_of_the_noisy_features_as_they_are_received(medium, power):
    """Feature by feature: f is a rail of what was sent times sqrt(2), sigma^2 the noise after zero forcing."""
    scheme = make(power=power)
    sent = scheme.transmit(IMAGES, seeded())
    received = medium(sent.symbols, 9.0, seeded(1))
    rails = torch.view_as_real(sent.symbols).double()
    gain = torch.ones(16, 1) if received.csi is None else received.csi.abs().square()
    slow = torch.zeros(16, dtype=torch.float64)
    for use in range(8):
        variance = (10**-0.9 / gain[:, min(use, gain.shape[1] - 1)]).double()
        for rail in range(2):
            slow += log_uniform_kl((math.sqrt(2) * rails[:, use, rail]) ** 2 / variance)
    assert torch.allclose(scheme.rate(sent, received).double(), slow, rtol=1e-4)
    noisier = medium(sent.symbols, 3.0, seeded(1))
    assert (scheme.rate(sent, noisier) < scheme.rate(sent, received)).all()


@pytest.mark.parametrize("power", POWERS)
def test_the_rate_changes_with_what_is_sent_and_with_nothing_else(power):
    scheme = make(power=power).train()

    def rate():
        sent = scheme.transmit(IMAGES, seeded())
        return scheme.rate(sent, awgn(12.0)(sent.symbols, seeded()))

    before = rate()
    with torch.no_grad():
        for part in (scheme.decoder, scheme.inlet):
            for parameter in part.parameters():
                parameter.normal_()
    assert torch.equal(rate(), before), "the receiver"
    with torch.no_grad():
        scheme.encoder.stages[-1].weight *= 3
        scheme.encoder.stages[-1].bias *= 3
    assert torch.allclose(rate(), before, rtol=1e-3), "how large the encoder's output is"
    with torch.no_grad():
        scheme.scale.weight[: D // 2] *= 0.1
    assert rate().mean() < 0.9 * before.mean(), "the scales"


def test_the_encoder_cannot_evade_the_rate_by_sending_fewer_directions():
    """With all its energy in one direction every dimension still has the variance that its scale says."""
    scheme = make(power="peak").train()
    sent = []
    for share in (1.0, 0.01):
        with torch.no_grad():
            scheme.encoder.stages[-1].weight[1:] *= share
            scheme.encoder.stages[-1].bias[1:] *= share
        sent.append(torch.view_as_real(scheme.transmit(IMAGES, seeded()).symbols).flatten(1))
    for symbols in sent:
        assert symbols.square().mean(0).min() > 0.1, "of at most 1/2"


@pytest.mark.parametrize("snr_db", [0.0, 12.5])
def test_the_loss_is_the_task_and_the_weighted_annealed_rate(snr_db):
    scheme = make(beta=0.03, anneal_start=0.2, anneal_end=0.6).train()
    phase = phase_of(scheme, awgn(snr_db))
    targets = torch.arange(16) % 5
    for progress, share in [(0.0, 0.0), (0.2, 0.0), (0.3, 0.25), (0.5, 0.75), (0.6, 1.0), (1.0, 1.0)]:
        phase.optimiser.rate_at(progress)
        losses = phase.module(IMAGES, targets, seeded())
        weight = share * 0.03 * 0.1 / 10 ** (-snr_db / 20)
        expected = losses["task"].item() + weight * losses["rate_nats"].item()
        assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)
        assert losses["rate_nats"] > 1


def test_progress_reaches_the_objective_and_leaves_the_learning_rate_as_it_is():
    plain = Optimiser("sgd", 0.2, 5e-4, schedule="triangle")
    phase = phase_of(make(), optimiser=plain)
    for progress in (0.0, 0.1, 0.5, 1.0):
        assert phase.optimiser.rate_at(progress) == plain.rate_at(progress)
        assert phase.module.progress == progress
    assert vars(phase.optimiser) | vars(plain) == vars(phase.optimiser)


@pytest.mark.parametrize("power", POWERS)
def test_the_rate_part_prunes_and_the_task_part_keeps_what_it_needs(power):
    """Two classes need few of 16 dimensions; without the rate none is given up."""
    scheme, rows = trained(100, power=power, beta=0.1, anneal_start=0.1, anneal_end=0.2)
    without, free = trained(100, power=power, beta=0.0)
    assert without.active_dimensions() == D
    assert 1 <= scheme.active_dimensions() <= D // 2
    assert (
        rows[-1]["active_dimensions"] <= 3 * D // 4 < free[-1]["active_dimensions"]
    )  # while training still moves them
    assert rows[-1]["rate_nats"] < 0.5 * free[-1]["rate_nats"]
    link, (images, targets) = Link(scheme, phy.AWGN(), 12.0), two_classes(500, seeded(7))
    output = link.receive(link.channel(link.transmit(images).symbols, generator=seeded(8)))
    assert (output.argmax(1) == targets).float().mean() > 0.95


# What is sent


def pruned(kept, **options):
    """A link that sends the dimensions ``kept`` alone."""
    scheme = make(**options).eval()
    with torch.no_grad():
        scheme.scale.weight.fill_(0.005)
        scheme.scale.weight[kept] = torch.linspace(0.5, 1.5, len(kept))
    return scheme


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("kept", [[3], [0, 15], [1, 4, 5], list(range(D))])
def test_active_dimensions_ride_first_and_the_rest_of_the_block_is_silent(kept, power):
    scheme = pruned(kept, power=power)
    with torch.no_grad():
        sent = scheme.transmit(IMAGES, seeded())
        z = (scheme.scale(None) * scheme.level(scheme.mix(scheme.features(IMAGES)))).tanh()[:, kept]
    rails = torch.view_as_real(sent.symbols).flatten(1)
    assert sent.symbols.shape == (16, 8)
    assert (rails[:, : len(kept)] != 0).all()
    assert (rails[:, len(kept) :] == 0).all()
    ratio = rails[:, : len(kept)] / z
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4), "in their order, all scaled alike"
    if power == "peak":
        assert torch.allclose(ratio, torch.full_like(ratio, 1 / math.sqrt(2)), rtol=1e-4)
        assert phy.peak_power(sent.symbols).max() <= 1
    else:
        assert torch.allclose(phy.mean_power(sent.symbols), torch.ones(16), atol=1e-6)
    assert scheme.active_dimensions() == len(kept)
    assert scheme.describe() == json.loads(json.dumps({"active_dimensions": len(kept)}))


def test_the_receiver_puts_dimensions_where_they_belong_and_ignores_the_silent_ones(monkeypatch):
    kept = [1, 4, 5]
    scheme, seen = pruned(kept), {}
    sent = scheme.transmit(IMAGES, seeded())
    received = awgn(12.0)(sent.symbols, seeded())
    output = scheme.receive(received)
    noisy = received.symbols.clone()
    noisy[:, 2:] += 100
    noisy[:, 1] += 100j
    jammed = phy.Received(noisy, None, received.noise_variance)
    assert torch.equal(scheme.receive(jammed), output)
    monkeypatch.setattr(scheme.inlet, "forward", lambda features, level: seen.setdefault("features", features))
    scheme.receive(received)
    others = [i for i in range(D) if i not in kept]
    assert (seen["features"][:, others] == 0).all()
    assert torch.equal(seen["features"][:, kept], phy.to_features(received.symbols)[:, :3])


def test_the_largest_dimension_is_never_pruned():
    scheme = make().eval()
    with torch.no_grad():
        scheme.scale.weight.copy_(-torch.arange(1.0, D + 1))
    assert scheme.active_dimensions() == 1
    sent = scheme.transmit(IMAGES, seeded())
    assert torch.allclose(phy.mean_power(sent.symbols), torch.ones(16), atol=1e-6)


@pytest.mark.parametrize("power", POWERS)
def test_the_code_of_an_image_is_its_own_in_evaluation(power):
    scheme, _ = trained(5, power=power)
    images = two_classes(8, seeded())[0]
    before = {name: value.clone() for name, value in scheme.state_dict().items()}
    together = scheme.transmit(images, seeded(0)).symbols
    alone = torch.cat([scheme.transmit(image[None], seeded(1)).symbols for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1
    assert all(torch.equal(value, before[name]) for name, value in scheme.state_dict().items())


# Conventions of SNR


def test_usage_by_hand():
    """Two images of four symbols: one silent symbol, one half used."""
    symbols = torch.tensor([[1 + 1j, 0.5j, 0, 0], [-1 - 1j, 2.0, 1j, 0]], dtype=torch.complex64) / 2
    found = make(uses=8).usage(Sent(symbols), 10.0)
    assert found.active_dimensions == 3.5
    assert found.channel_uses == 2.5
    energies = [(2 + 0.25) / 4, (2 + 4 + 1) / 4]
    assert found.average_snr_db == pytest.approx(10 + 10 * math.log10(sum(energies) / 2 / 4))
    assert found.active_snr_db == pytest.approx(10 + 10 * math.log10((energies[0] / 2 + energies[1] / 3) / 2))
    assert found.peak_snr_db == pytest.approx(10 + 10 * math.log10(2 * 1.0))
    assert make(power="peak").usage(Sent(symbols), 10.0).peak_snr_db == 10
    assert peak_to_average_db(symbols) == pytest.approx(10 * math.log10(1.0 / (sum(energies) / 16)))


def test_the_snr_of_an_average_link_is_its_average_snr_and_of_a_peak_link_less():
    images = torch.rand(200, 1, 8, 8, generator=seeded(3))
    found = {}
    for power in POWERS:
        scheme, _ = trained(5, power=power)
        sent = scheme.transmit(images, seeded())
        found[power] = scheme.usage(sent, 12.5), peak_to_average_db(sent.symbols)
    usage, above = found["average"]
    assert usage.average_snr_db == pytest.approx(12.5, abs=1e-5)
    assert usage.peak_snr_db == pytest.approx(12.5 + above, abs=1e-5)
    usage, above = found["peak"]
    assert usage.average_snr_db < 12.5
    assert usage.average_snr_db + above <= 12.5 + 1e-5


def test_peak_snr_means_noise_of_that_deviation_on_each_feature():
    """The authors' channel: y = z + sigma n, |z| <= 1, and peak SNR -20 log10 sigma; 12.5 dB is sigma = 0.2371."""
    scheme = make(power="peak").eval()
    with torch.no_grad():
        scheme.scale.weight.fill_(1e4)  # every feature at its peak
        sent = scheme.transmit(torch.rand(2000, 1, 8, 8, generator=seeded()), seeded())
    z = phy.to_features(sent.symbols)
    assert z.abs().max() <= 1 + 1e-6
    assert (z.abs() > 0.999).float().mean() > 0.99
    noise = phy.to_features(awgn(12.5)(sent.symbols, seeded(1)).symbols) - z
    assert noise.std().item() == pytest.approx(0.2371, rel=0.02)


# The whole


def test_training_repeats_with_its_seed_and_not_with_another():
    (one, rows), (same, again), (other, others) = (trained(4, seed=seed) for seed in (0, 0, 1))
    assert rows == again
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    assert rows != others
    assert not torch.equal(one.mix.weight, other.mix.weight)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_link_for_every_task_on_every_shape(kind, shape):
    link = Link(make(kind, shape), phy.Rayleigh(), 12.0)
    images = batch_of(kind, shape, 4)[0]
    sent = link.transmit(images)
    assert (sent.payload_bits, sent.header) == (None, None)
    output = link.receive(link.channel(sent.symbols))
    assert output.shape == (images.shape if kind == "reconstruct" else (4, 5))
    assert output.isfinite().all()


def test_it_costs_little_more_than_deepjscc():
    design = Design(Task("classify", (3, 32, 32), 10), 64, Backbone(256, 640))
    plain, ours = (sum(p.numel() for p in schemes[key](design).parameters()) for key in ("deepjscc", "vfe"))
    assert 1 < ours / plain < 1.03


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"power": "mean"}, "unknown power convention 'mean'; .*known: average, peak"),
        ({"beta": -1e-3}, "option beta is -0.001: a finite number of at least 0 is expected"),
        ({"beta": math.inf}, "option beta is inf"),
        ({"beta": "high"}, "option beta is 'high'"),
        ({"beta": True}, "option beta is True"),
        ({"threshold": 1.5}, "option threshold is 1.5: a number from 0 to 1 is expected"),
        ({"threshold": math.nan}, "option threshold is nan"),
        ({"anneal_start": -0.1}, "option anneal_start is -0.1: a number from 0 to 1"),
        ({"anneal_start": 0.5, "anneal_end": 0.4}, "option anneal_end is 0.4: a number from 0.5 to 1"),
        ({"anneal_end": 2}, "option anneal_end is 2: "),
        ({"uses": 12}, "^12 channel uses: .*multiple of 8"),
        ({"uses": 0}, "^0 channel uses: .*multiple of 8"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(options, said):
    with pytest.raises(SemlinkError, match=said) as caught:
        make(**options)
    assert "\n" not in str(caught.value)
