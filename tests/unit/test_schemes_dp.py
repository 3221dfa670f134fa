# SPDX-License-Identifier: Apache-2.0
"""Differential privacy of DeepJSCC: the clip, the law of the noise, power, and audits of what is promised."""

import json
import math

import pytest
import torch
from scipy import stats
from torch import nn

from semlink import phy, schemes
from semlink._errors import SemlinkError
from semlink.metrics import balanced_accuracy, correct
from semlink.metrics.privacy import accuracy_ceiling, audited_epsilon, gaussian_delta
from semlink.nn import Backbone, Optimiser
from semlink.schemes import DeepJSCC, DeepJSCCDP, Design, Link, Task
from semlink.schemes.mechanism import MECHANISMS, make_mechanism

SHAPE = (1, 8, 8)
USES = 8
D = 2 * USES
NORMS = {"vector": 1, "coordinate": math.inf, "laplace-scale": 2, "gaussian": 2}
every_mechanism = pytest.mark.parametrize("key", NORMS)
private = pytest.mark.parametrize("key", ["vector", "coordinate", "gaussian"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(key="vector", kind="classify", outputs=5, **options):
    torch.manual_seed(0)
    design = Design(Task(kind, SHAPE, 0 if kind == "reconstruct" else outputs), USES, Backbone(16, 16))
    return DeepJSCCDP(design, mechanism=key, **options)


def mechanism(key, features=D, epsilon=0.9, clip=1.0, **options):
    return make_mechanism(key, features, epsilon, clip, **options)


class Extreme(nn.Module):
    """An encoder that knows nothing of the clip: the first pixel of an image times a million, in ``entries``."""

    def __init__(self, entries):
        super().__init__()
        self.entries = entries

    def forward(self, images):
        latent = torch.zeros(len(images), D)
        latent[:, self.entries] = 1e6 * images[:, 0, 0, :1].expand(-1, len(self.entries))
        return latent.view(-1, 1, 4, 4)


def outputs_of(scheme, entries, value, count, seed):
    """What leaves the transmitter for ``count`` images whose first pixel is ``value``, as features (count, D)."""
    scheme.encoder = Extreme(entries)
    sent = scheme.eval().transmit(torch.full((count, *SHAPE), value), seeded(seed))
    return phy.to_features(sent.symbols)


# The clip


@every_mechanism
def test_the_clip_leaves_what_is_inside_and_brings_the_rest_to_the_edge(key):
    m = mechanism(key, clip=0.7)
    z = torch.randn(50, D, generator=seeded())
    inside = z * (0.99 * m.radius / z.norm(NORMS[key], dim=1, keepdim=True))
    assert torch.equal(m.clipped(inside), inside.double())
    outside = m.clipped(100 * z)
    assert torch.allclose(outside.norm(NORMS[key], dim=1), torch.full((50,), m.radius, dtype=torch.float64), rtol=1e-12)
    assert ((outside * z) >= 0).all()
    assert torch.equal(m.clipped(torch.zeros(3, D)), torch.zeros(3, D).double())


@every_mechanism
def test_the_clip_depends_on_no_data(key):
    """The same image gives the same features alone, among giants, and after a hundred other batches."""
    m = mechanism(key)
    z = torch.randn(6, D, generator=seeded())
    alone = m.clipped(z[:1])
    m.clipped(1e6 * torch.ones(5, D))
    assert torch.equal(m.clipped(torch.cat([z[:1], 1e6 * z[1:]]))[:1], alone)
    before = (m.gain, m.noise_scale, m.radius)
    m.released(m.clipped(1e6 * z), seeded())
    assert (m.gain, m.noise_scale, m.radius) == before


@every_mechanism
def test_no_two_images_lie_further_apart_than_the_sensitivity(key):
    """The norm in which the noise is calibrated, of every pair of very different vectors, and of the two extremes."""
    m = mechanism(key, clip=1.3)
    order = {"laplace-scale": 2}.get(key, NORMS[key])
    z = torch.randn(300, D, generator=seeded()) * 10 ** (6 * torch.rand(300, 1, generator=seeded(1)) - 3)
    spikes = 1e9 * torch.eye(D)
    clipped = m.clipped(torch.cat([z, spikes, -spikes]))
    apart = (clipped[:, None] - clipped[None]).norm(order, dim=2)
    assert apart.max() <= 2 * m.radius * (1 + 1e-12)
    assert apart.max() == pytest.approx(2 * m.radius)
    corners = m.clipped(torch.tensor([[1e9], [-1e9]]).expand(2, D))
    assert max(apart.max(), (corners[0] - corners[1]).norm(order)) <= 2 * m.radius * (1 + 1e-12)
    euclid = max(float((clipped[-1] - clipped[-1 - D]).norm()), float((corners[0] - corners[1]).norm()))
    assert m.l2_diameter == pytest.approx(euclid)


def test_l1_ball_holds_the_cube_of_the_same_noise():
    """Why the vector mechanism clips in L1: at joint sensitivity 2 B d = 2 C, [-B, B]^d lies inside the ball."""
    ball, cube = mechanism("vector", clip=D * 0.25), mechanism("coordinate", clip=0.25)
    corners = cube.clipped(torch.randn(100, D, generator=seeded()).sign() * 9)
    assert torch.equal(ball.clipped(corners), corners)


# The noise


@every_mechanism
def test_the_noise_has_its_exact_law(key):
    """Kolmogorov-Smirnov against scipy over 320,000 draws, variance within 5 standard errors, no correlation."""
    m = mechanism(key, epsilon=0.7, clip=2.0)
    z = m.clipped(torch.randn(20_000, D, generator=seeded()))
    noise = (m.released(z, seeded(1)).double() / m.gain - z).numpy()
    law = stats.norm(scale=m.noise_scale) if key == "gaussian" else stats.laplace(scale=m.noise_scale)
    assert stats.kstest(noise.ravel(), law.cdf).pvalue > 0.01
    kurtosis = 3 if key == "gaussian" else 6
    error = law.var() * math.sqrt((kurtosis - 1) / noise.size)
    assert abs(noise.var() - law.var()) < 5 * error
    assert abs(noise.mean()) < 5 * law.std() / math.sqrt(noise.size)
    unit = noise / law.std()
    for one, other in [(unit[:, 1:], unit[:, :-1]), (unit[1:], unit[:-1]), (unit, z.numpy() / m.radius)]:
        product = one * other
        assert abs(product.mean()) < 5 * product.std() / math.sqrt(product.size)


def test_noise_scales_by_hand():
    assert mechanism("vector", epsilon=0.5, clip=3.0).noise_scale == 12
    assert mechanism("coordinate", epsilon=0.5, clip=3.0).noise_scale == 12
    for epsilon, scale in [(0.05, 1.8), (0.1, 0.9), (0.9, 0.1)]:
        assert mechanism("laplace-scale", epsilon=epsilon).noise_scale == pytest.approx(scale)
    assert mechanism("laplace-scale", epsilon=0.5, nominal_sensitivity=2.0).noise_scale == 4
    m = mechanism("gaussian", epsilon=1.0, clip=3.0, delta=1e-3)
    assert gaussian_delta(6 / m.noise_scale, 1.0) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize(
    ("key", "option", "larger"),
    [
        *((key, "epsilon", -1) for key in NORMS),
        *((key, "clip", 1) for key in ("vector", "coordinate", "gaussian")),
        ("laplace-scale", "clip", 0),
        ("laplace-scale", "nominal_sensitivity", 1),
        ("gaussian", "delta", -1),
    ],
)
def test_every_option_reaches_what_is_sent(key, option, larger):
    """Twice the option: the noise grows, shrinks or stays as it must, and what leaves the antenna differs."""
    value = {"epsilon": 0.9, "clip": 1.0, "nominal_sensitivity": 0.05, "delta": 1e-5}[option]
    one, other = make(key, **{option: value}), make(key, **{option: 2 * value})
    ratio = other.mechanism.noise_scale / one.mechanism.noise_scale
    assert (ratio > 1) - (ratio < 1) == larger
    images = torch.rand(4, *SHAPE, generator=seeded())
    first, second = (scheme.eval().transmit(images, seeded()).symbols for scheme in (one, other))
    assert not torch.allclose(first, second, rtol=1e-3)


@every_mechanism
@pytest.mark.parametrize("training", [True, False])
def test_noise_is_fresh_at_each_call_and_repeats_with_the_generator(key, training):
    scheme = make(key).train(training)
    images = torch.rand(4, *SHAPE, generator=seeded())
    images[1] = images[0]
    generator = seeded(3)
    first, second = scheme.transmit(images, generator), scheme.transmit(images, generator)
    assert torch.equal(first.symbols, scheme.transmit(images, seeded(3)).symbols)
    assert not torch.equal(first.symbols, second.symbols)
    assert not torch.equal(first.symbols[0], first.symbols[1])
    assert first.symbols.dtype == torch.complex64
    assert (first.payload_bits, first.header) == (None, None)


# Power


@every_mechanism
@pytest.mark.parametrize("epsilon", [0.05, 0.9, 30.0])
def test_expected_power_is_1_at_the_largest_features_and_known_at_zero(key, epsilon):
    """Of the symbols themselves, through an encoder; the mean over 40,000 images within 5 standard errors."""
    scheme = make(key, epsilon=epsilon)
    m = scheme.mechanism
    entries = list(range(D)) if key == "coordinate" else [3]  # a corner of the cube, a vertex of the balls
    variance = m.noise_scale**2 * (1 if key == "gaussian" else 2)
    most = {"vector": 1 / D, "gaussian": 1 / D, "coordinate": 1.0, "laplace-scale": 1.0}[key]
    assert m.gain == pytest.approx(1 / math.sqrt(most + variance))
    for value, expected in [(1.0, 1.0), (0.0, variance / (most + variance))]:
        scheme.encoder = Extreme(entries)
        sent = scheme.eval().transmit(torch.full((40_000, *SHAPE), value), seeded())
        power = phy.mean_power(sent.symbols).double()
        assert abs(power.mean() - expected) < 5 * power.std() / 200


@every_mechanism
def test_power_is_not_set_image_by_image(key):
    """With hardly any noise: an image whose features are 0 is sent with hardly any power, one at the clip with all."""
    scheme = make(key, epsilon=1e4).eval()
    scheme.encoder = Extreme(list(range(D)))
    images = torch.tensor([0.0, 1.0]).repeat(32).view(-1, 1, 1, 1).expand(-1, *SHAPE)
    power = phy.mean_power(scheme.transmit(images, seeded()).symbols)
    assert power[::2].max() < 0.1
    assert power[1::2].min() > (0.5 if key != "vector" else 0.5 / D), "a corner's mean square in the L1 ball is 1 / d^2"


# What is promised


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 8.0])
def test_no_output_is_more_than_e_to_the_epsilon_times_likelier_for_one_image_than_for_another(epsilon):
    """The definition itself, for any distinguisher: the largest likelihood ratio of outputs of many feature pairs."""
    m = mechanism("vector", epsilon=epsilon, clip=1.7)
    z = torch.randn(200, D, generator=seeded()) * 10 ** (4 * torch.rand(200, 1, generator=seeded(1)) - 2)
    clipped = m.clipped(torch.cat([z, 1e9 * torch.eye(D), -1e9 * torch.eye(D)]))
    law = torch.distributions.Laplace(clipped, m.noise_scale)
    seen = m.released(clipped, seeded(2)).double() / m.gain
    likelihood = torch.stack([law.log_prob(y).sum(1) for y in seen])
    ratios = likelihood.amax(1) - likelihood.amin(1)
    assert ratios.max() <= epsilon * (1 + 1e-9)
    assert ratios.max() > 0.99 * epsilon


def audit(scheme, entries, *events, delta=0.0, n=50_000):
    """Lower bound on epsilon, at 99.9 %, from how ``events`` tell the two extreme images apart, ``n`` times each."""
    one, other = (outputs_of(scheme, entries, value, n, seed) for seed, value in enumerate([1.0, -1.0]))
    counts = [(int(event(one).sum()), int(event(other).sum())) for event in events]
    level = 1 - 0.001 / len(events)  # all bounds hold at once
    return max(audited_epsilon(hits, n, false_hits, n, delta, level) for hits, false_hits in counts)


def audited(key, factor=1.0):
    """Audit a claim of epsilon = 1 (delta = 0.05 for Gaussian noise) on the link, its noise ``factor`` times as large.

    The event is the most telling one: a likelihood ratio of e^epsilon or more, fixed by the claim and not by the data.
    Under Gaussian noise of half the deviation that event is rarer than delta; a second one is telling there.
    """
    delta = {"delta": 0.05} if key == "gaussian" else {}
    scheme = make(key, epsilon=1.0, **delta)
    m = scheme.mechanism
    thresholds = [m.clip]
    if key == "gaussian":
        thresholds = [m.noise_scale**2 / (2 * m.clip), m.noise_scale**2 / (8 * m.clip)]
    if factor != 1:
        weaker = type("Weaker", (type(m),), {"noise_scale": property(lambda self: factor * m.noise_scale)})
        scheme.mechanism = make_weaker(weaker, m)
    gain = scheme.mechanism.gain
    events = [lambda y, t=t: y[:, 0].double() > gain * t for t in thresholds]
    return audit(scheme, [0], *events, **delta, n=200_000 if key == "gaussian" else 50_000)


def make_weaker(kind, m):
    return kind(m.features, m.epsilon, m.clip, **({"delta": m.delta} if hasattr(m, "delta") else {}))


@private
def test_an_audit_of_the_two_extreme_vectors_confirms_the_claim_and_comes_near_it(key):
    """100,000 transmissions or more: the bound is at most the claim of 1 and at least 90 % of it.

    The claim of ``coordinate`` is that of one feature.
    """
    assert 0.9 <= audited(key) <= 1.0


@private
def test_the_same_audit_refutes_the_claim_when_the_noise_is_halved(key):
    assert audited(key, factor=0.5) > 1.5


@private
def test_the_same_audit_notices_noise_that_is_a_tenth_too_small(key):
    assert audited(key, factor=0.9) > 1.0


def test_the_image_has_more_than_the_epsilon_of_one_feature():
    """All features tell the same bit: the sum of d of them refutes epsilon = 1 for the image and not d epsilon."""
    scheme = make("coordinate", epsilon=1.0)
    bound = audit(scheme, list(range(D)), lambda y: y.sum(1) > D * scheme.mechanism.gain)
    assert 2.0 < bound < D
    assert scheme.describe()["privacy"]["per_image"][0]["epsilon"] == D


def test_nominal_epsilon_is_refuted():
    scheme = make("laplace-scale", epsilon=0.05)
    bound = audit(scheme, list(range(D)), lambda y: y.sum(1) > 0)
    assert bound > 20 * 0.05  # what was drawn refutes a claim of 0.05 twenty times over
    assert bound < scheme.describe()["privacy"]["per_image"][0]["loss_bounded_by_the_clip"]


@pytest.mark.parametrize("epsilon", [0.9, 3.0])
def test_the_best_possible_classifier_of_the_best_code_stays_below_the_ceiling(epsilon):
    """One vertex of the L1 ball for each of ten classes, and maximum likelihood, which no distinguisher beats."""
    m, classes, n = mechanism("vector", epsilon=epsilon), 10, 20_000
    code = m.clipped(1e9 * torch.eye(D)[:classes])
    labels = torch.arange(classes).repeat_interleave(n)
    seen = m.released(code[labels], seeded()).double() / m.gain
    likelihood = -torch.cdist(seen, code, p=1) / m.noise_scale
    found = balanced_accuracy(correct(likelihood, labels), labels)
    assert found.low <= accuracy_ceiling(epsilon, classes)
    assert found.low > 1 / classes + 0.05, "the code does carry the class"
    halved = m.released(code[labels] * 8, seeded()).double() / m.gain  # eight times the sensitivity: epsilon no longer
    cheat = balanced_accuracy(correct(-torch.cdist(halved, 8 * code, p=1), labels), labels)
    assert cheat.low > accuracy_ceiling(epsilon, classes)


def trained_accuracy(epsilon):
    """Train a link on two classes that cannot be confused; return its balanced accuracy on 2,000 new images."""
    scheme, generator = make("vector", outputs=2, epsilon=epsilon), seeded()
    (phase,) = scheme.phases(Optimiser(learning_rate=3e-3), lambda x, g: phy.AWGN()(x, 12.0, g), 0.0)
    optimiser = phase.optimiser.build(phase.parameters)

    def batch(count):
        targets = torch.arange(count) % 2
        images = 0.3 * torch.rand(count, *SHAPE, generator=generator)
        images[targets == 1, :, :4] += 0.5
        return images, targets

    for _ in range(100):
        loss = phase.module(*batch(64), generator)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    link, (images, targets) = Link(scheme, phy.AWGN(), 12.0), batch(2000)
    output = link.receive(link.channel(link.transmit(images, generator).symbols, generator=generator))
    return balanced_accuracy(correct(output, targets), targets)


def test_a_trained_link_learns_through_the_noise_and_obeys_the_ceiling():
    assert trained_accuracy(epsilon=60.0).low > 0.95
    for epsilon in (0.1, 2.0):
        assert trained_accuracy(epsilon).low <= accuracy_ceiling(epsilon, 2)
    assert trained_accuracy(epsilon=8.0).low > 0.55, "what little the budget allows is used"


def test_features_that_are_no_numbers_are_sent_as_noise():
    """In evaluation: a NaN that went through would mark its image. In training it must reach the loss."""
    scheme = make().eval()
    for value in (math.nan, math.inf, -math.inf):
        sent = scheme.transmit(torch.full((2, *SHAPE), value), seeded())
        assert torch.view_as_real(sent.symbols).isfinite().all()
    assert (
        torch.view_as_real(scheme.train().transmit(torch.full((2, *SHAPE), math.nan), seeded()).symbols).isnan().any()
    )


# Relation to DeepJSCC, and the record


def test_weights_are_those_of_deepjscc_and_with_hardly_any_noise_so_is_the_code():
    plain = DeepJSCC(make().design).eval()
    scheme = make("laplace-scale", clip=1e-3, nominal_sensitivity=1e-9).eval()
    scheme.load_state_dict(plain.state_dict())
    images = torch.rand(5, *SHAPE, generator=seeded())
    sent = scheme.transmit(images, seeded()).symbols
    assert torch.allclose(sent, plain.transmit(images, seeded()).symbols, atol=1e-4)


@every_mechanism
def test_the_clip_passes_gradient_to_the_encoder(key):
    scheme = make(key).train()
    (phase,) = scheme.phases(Optimiser(), lambda x, g: phy.AWGN()(x, 12.0, g), 0.0)
    phase.module(torch.rand(8, *SHAPE), torch.arange(8) % 5, seeded())["loss"].backward()
    for name, parameter in scheme.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_mechanism
def test_the_record_says_what_is_promised(key):
    said = make(key, outputs=10, epsilon=0.5).describe()["privacy"]
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["mechanism"] == key
    rows = said["per_image"]
    assert [row["transmissions"] for row in rows] == [1, 10, 100]
    if key == "laplace-scale":
        assert said["promise"].startswith("none")
        assert [row["epsilon"] for row in rows] == [None] * 3
        assert not any("balanced_accuracy_ceiling" in row for row in rows)
        assert rows[1]["loss_bounded_by_the_clip"] == pytest.approx(10 * 2 * D / (0.09 / 0.5))
        return
    releases = D if key == "coordinate" else 1
    for row in rows:
        assert row["epsilon"] == pytest.approx(0.5 * releases * row["transmissions"])
        assert row["delta"] == pytest.approx(1e-5 * row["transmissions"] if key == "gaussian" else 0)
        assert row["composed_epsilon"] <= row["epsilon"]
        assert row["composed_delta"] == 1e-5
        ceiling = accuracy_ceiling(row["composed_epsilon"], 10, 1e-5)
        assert row["balanced_accuracy_ceiling"] <= ceiling
        assert row["balanced_accuracy_ceiling"] >= accuracy_ceiling(row["composed_epsilon"], 10) - 1e-9
    assert rows[2]["composed_epsilon"] < 0.75 * rows[2]["epsilon"]
    if key == "coordinate":
        assert [row["epsilon_of_one_feature"] for row in rows] == [0.5, 5.0, 50.0]
    if key == "gaussian":
        assert gaussian_delta(rows[2]["mu"], rows[2]["composed_epsilon"]) == pytest.approx(1e-5, rel=1e-6)
        assert rows[2]["mu"] == pytest.approx(10 * 2 / said["noise_scale"])


def test_ceilings_follow_the_task():
    def ceiling(**options):
        return make(**options).describe()["privacy"]["per_image"][0].get("balanced_accuracy_ceiling")

    assert ceiling(outputs=10) == pytest.approx(accuracy_ceiling(0.9, 10))
    assert ceiling(kind="attributes", outputs=40) == pytest.approx(accuracy_ceiling(0.9, 2))
    assert ceiling(kind="reconstruct") is None


def test_what_the_channel_gives_for_free():
    """Distance of the extreme vectors as sent, over the deviation of the channel's noise in a feature."""
    for key in NORMS:
        scheme = make(key, epsilon=2.0)
        entries = list(range(D)) if key == "coordinate" else [0]
        one, other = (outputs_of(scheme, entries, value, 1, seed=0) for value in (1.0, -1.0))  # the same noise
        mu = float((one - other).norm()) / 10 ** (-6 / 20)
        free = scheme.channel_guarantee(6.0)
        assert free["mu"] == pytest.approx(mu, rel=1e-5)
        assert gaussian_delta(free["mu"], free["epsilon"]) == pytest.approx(free["delta"], rel=1e-6)


@pytest.mark.parametrize("option", ["epsilon", "clip", "nominal_sensitivity", "delta"])
@pytest.mark.parametrize("bad", [0, -0.1, math.nan, math.inf, True, "small"])
def test_options_that_make_no_sense_are_refused(option, bad):
    key = {"nominal_sensitivity": "laplace-scale", "delta": "gaussian"}.get(option, "vector")
    with pytest.raises(SemlinkError, match=rf"^option {option} is .* is expected$") as caught:
        make(key, **{option: bad})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "option"),
    [("vector", "delta"), ("coordinate", "delta"), ("laplace-scale", "delta"), ("vector", "nominal_sensitivity")],
)
def test_an_option_of_another_mechanism_is_refused(key, option):
    with pytest.raises(SemlinkError, match=f"option {option} has no meaning with mechanism '{key}'; leave it out"):
        make(key, **{option: 0.1})


def test_unknown_mechanisms_are_refused_and_the_known_ones_are_four():
    with pytest.raises(SemlinkError, match="unknown mechanism 'vectr'; did you mean 'vector'"):
        make("vectr")
    with pytest.raises(SemlinkError, match="unknown mechanism '3'"):
        make(3)
    assert set(MECHANISMS) == set(NORMS)
    assert schemes.schemes["deepjscc-dp"] is DeepJSCCDP
    with pytest.raises(SemlinkError, match="transmissions is 0"):
        mechanism("laplace-scale").guarantee([1, 0])
