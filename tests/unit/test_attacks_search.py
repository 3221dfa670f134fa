# SPDX-License-Identifier: Apache-2.0
"""Search as a trained attack: rules that choose its numbers, answers that are known, victims that it must refuse."""

import pytest
import torch
from torch import nn

from semlink import phy
from semlink._errors import SemlinkError
from semlink.attacks import Explained, LearnedSearch, SmoothSearch, Tap, Threat, encoder_of, search
from semlink.attacks.search import Centred
from semlink.bench.attacker import fingerprint
from semlink.nn import Backbone, Optimiser
from semlink.schemes import DeepJSCC, DeepJSCCEncryption, Design, Key, Link, Scheme, Sent, Task, schemes

SHAPE = (1, 8, 8)
both = pytest.mark.parametrize("kind", [SmoothSearch, LearnedSearch])


class Linear(Scheme):
    """Sends 64 random projections of the image, scaled to unit power on average; a weight with gradient inside."""

    def __init__(self, design):
        super().__init__(design)
        self.matrix = nn.Parameter(torch.randn(64, 64, generator=seeded(5)) / 8 * 5)

    def transmit(self, images, generator):
        return Sent(phy.to_symbols((images - 0.5).flatten(1) @ self.matrix))

    def receive(self, received, header=None):
        return received.symbols


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def link_of(kind=DeepJSCC, uses=32, medium=phy.AWGN, **options):
    torch.manual_seed(0)
    scheme = kind(Design(Task("classify", SHAPE, 3), uses, Backbone(16, 16)), **options)
    if scheme.secret is not None:
        scheme.key = Key.for_test(0)
    return Link(scheme, medium(), 12.0)


def images_of(count, seed=0):
    coarse = torch.rand(count, 1, 3, 3, generator=seeded(seed))
    return nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear", align_corners=True)


def attack_on(link, kind, threat=None):
    torch.manual_seed(0)
    return kind(Tap(link, threat or Threat(12.0), kind.sees), 16, taps=0)


def train(attack, steps, images=None):
    images, generator = images_of(2000) if images is None else images, seeded(1)
    (phase,) = attack.phases(Optimiser(learning_rate=3e-3, schedule="cosine", warm_up=0.1))
    optimiser = phase.optimiser.build(phase.parameters)
    attack.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.optimiser.rate_at(step / steps)
        chosen = images[torch.randint(len(images), (64,), generator=generator)]
        optimiser.zero_grad()
        phase.module(chosen, torch.zeros(64), generator)["loss"].backward()
        optimiser.step()
    return attack.eval()


def psnr(one, other):
    return float(-10 * (one - other).square().flatten(1).mean(1).log10().mean())


def test_the_weight_of_total_variation_is_that_of_maximum_likelihood():
    images = images_of(64)
    attack = train(attack_on(link_of(), SmoothSearch), 300, images)
    weight, centre = attack.log_weight.exp().item(), attack.centre.detach()
    edged = nn.functional.pad(images - centre, (1, 1, 1, 1)).double()
    variation = edged.diff(dim=2).abs().sum((1, 2, 3)) + edged.diff(dim=3).abs().sum((1, 2, 3))
    # Batches are drawn at random, and log t follows the mean of those of late steps, about 30 of 64 images.
    error = variation.std() / variation.mean() / (30 * 64) ** 0.5
    assert weight == pytest.approx(64 / variation.mean().item(), rel=4 * error.item())
    losses = attack(images, torch.zeros(64), seeded())
    for name, other in (("t", 1.1), ("t", 0.9), ("c", 0.05), ("c", -0.05)):
        moved = Centred(SHAPE, weight * (other if name == "t" else 1), centre + (other if name == "c" else 0))
        nats = moved.nats(images, images).mean() / 64 - torch.tensor(moved.weight).log()
        assert nats > losses["loss"], (name, other)


def test_the_density_of_total_variation_scales_as_its_weight_to_minus_the_pixels():
    """On two pixels between edges, sum over a grid: the integral of exp(-t TV) is a constant times 1 / t^2."""
    grid = torch.linspace(-20, 20, 801, dtype=torch.float64)
    pixels = torch.cartesian_prod(grid, grid).reshape(-1, 1, 1, 2)
    integrals = [
        (-Centred((1, 1, 2), t, torch.zeros(1, 1, 2)).nats(pixels, pixels)).exp().sum().item() for t in (0.5, 1.0)
    ]
    assert integrals[0] / integrals[1] == pytest.approx(2**2, rel=0.01)


@pytest.mark.parametrize("snr_db", [0.0, 12.0])
@pytest.mark.parametrize("receptions", [(1, 1), (2, 2)])
def test_the_noise_that_is_measured_is_that_of_the_channel(snr_db, receptions):
    """N0 for each real feature, for features are sqrt(2) times the rails; 500 pictures of 64 features."""
    antennas, transmissions = receptions
    threat = Threat(12.0, antennas=antennas, transmissions=transmissions)
    attack = attack_on(link_of(), SmoothSearch, threat)
    n0 = 10 ** (-snr_db / 10) / (antennas * transmissions)
    assert attack.noise_variance(snr_db, torch.device("cpu")) == pytest.approx(n0, rel=4 * (2 / 32000) ** 0.5)


def test_what_an_equaliser_leaves_of_fading_counts_as_noise():
    """With CSI: the mean squared error of the linear estimate, N0 / (|h|^2 + N0), h fixed over an image."""
    attack = attack_on(link_of(medium=phy.Rayleigh), SmoothSearch)
    gains = torch.distributions.Exponential(torch.tensor(1.0)).expand((200000,)).sample()
    n0 = 10**-1.2
    errors = n0 / (gains + n0)
    wanted, error = errors.mean().item(), (errors.var() + 2 * errors.square().mean() / 64).sqrt().item() / 500**0.5
    assert attack.noise_variance(12.0, torch.device("cpu")) == pytest.approx(wanted, abs=4 * error)


def test_through_a_linear_code_a_quadratic_prior_gives_ridge_regression(monkeypatch):
    """The search hands the right noise to explain: the known prior of normal pixels has a closed form."""

    class Normal(SmoothSearch):
        learning_rate = 0.02

        def prior(self):
            return Pixels()

    class Pixels:
        def begin(self, count, generator):
            return torch.randn(count, *SHAPE, generator=generator) * 0.1 + 0.5

        def images(self, variables):
            return variables

        def nats(self, variables, images):
            return (images - 0.5).square().flatten(1).sum(1) / (2 * 0.05**2)

    monkeypatch.setattr(search, "STEPS", 1500)
    link = link_of(Linear)
    attack, images = attack_on(link, Normal, Threat(6.0)), 0.5 + 0.05 * torch.randn(10, *SHAPE, generator=seeded(3))
    heard = attack.tap.intercept(images, seeded(4))
    variance, matrix = attack.noise_variance(6.0, heard.device), link.scheme.matrix.detach()
    normal = matrix @ matrix.T / variance + torch.eye(64) / 0.05**2
    ridge = 0.5 + torch.linalg.solve(normal, matrix @ heard.T / variance).T
    assert (attack.reconstruct(heard, 6.0).flatten(1) - ridge).abs().max() < 1e-3


@both
def test_it_draws_what_a_code_that_keeps_much_gives_away(kind):
    attack = train(attack_on(link_of(Linear), kind), 400)
    test = images_of(50, seed=9)
    floor = psnr(images_of(2000).mean(0).expand_as(test), test)
    reached = []
    for snr_db in (0.0, 12.0, 24.0):
        with torch.no_grad():  # as attacks are judged
            drawn = attack.reconstruct(attack.tap.hear(attack.tap.send(test, seeded(5)), seeded(6), snr_db), snr_db)
        assert drawn.shape == test.shape
        assert 0 <= drawn.min() <= drawn.max() <= 1
        reached.append(psnr(drawn, test))
    assert reached == sorted(reached)
    assert reached[-1] > floor + 3


def test_what_the_autoencoder_cannot_draw_is_counted_as_noise():
    attack, images = train(attack_on(link_of(Linear), LearnedSearch), 300), images_of(64, seed=3)
    with torch.no_grad():
        redrawn = attack.autoencoder.redrawn(images)  # in evaluation mode, as it is searched
        gap = (attack.encode(redrawn) - attack.encode(images)).square().mean().item()
    known = attack.gap.item()
    assert known == pytest.approx(gap, rel=0.5)  # BatchNorm's statistics, of few images, move it by tenths
    attack(images, torch.zeros(64), seeded())
    assert attack.gap.item() == known  # validation measures nothing
    attack.train()(images, torch.zeros(64), seeded())
    assert attack.gap.item() == pytest.approx(0.95 * known + 0.05 * gap, rel=1e-5)
    given = []
    attack.eval().noise_variance = lambda snr_db, device: 0.25
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search, "explain", lambda *a, **k: given.append(a[3]) or Explained(images, gap, gap, 0.0))
        attack.reconstruct(torch.zeros(64, 64), 6.0)
    assert given == [pytest.approx(0.25 + attack.gap.item())]
    assert attack_on(link_of(), SmoothSearch).gap == 0


@both
def test_training_and_searching_leave_the_victim_byte_identical_and_results_repeat(kind, monkeypatch):
    monkeypatch.setattr(search, "STEPS", 5)
    drawn = []
    for _ in range(2):
        link = link_of()
        link.scheme.train()
        before = fingerprint(link.scheme)
        attack = train(attack_on(link, kind), 3)
        own = fingerprint(attack)
        heard = attack.tap.intercept(images_of(4), seeded(2))
        drawn += [attack.reconstruct(heard, 12.0), attack.reconstruct(heard, 12.0)]
        assert fingerprint(link.scheme) == before
        assert fingerprint(attack) == own
        assert all(p.grad is None and p.requires_grad for p in link.scheme.parameters())
        assert not {id(p) for p in attack.parameters()} & {id(p) for p in link.scheme.parameters()}
        assert not any(name.startswith("encode.") for name in attack.state_dict())
    assert all(torch.equal(drawn[0], each) for each in drawn[1:])


@both
def test_every_parameter_gets_gradient(kind):
    attack = attack_on(link_of(), kind).train()
    attack(images_of(9), torch.zeros(9), seeded())["loss"].backward()
    for name, parameter in attack.named_parameters():
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, name


@both
def test_a_perceptual_loss_is_refused(kind):
    with pytest.raises(SemlinkError, match="no perceptual loss; use it with perceptual 'none'"):
        kind(Tap(link_of(), Threat(12.0), kind.sees), 16, taps=2)


@both
@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("deepjscc-lbvq", {}, "carries no gradient"),
        ("deepjscc-dp", {}, "sends the same image in other ways"),
        ("deepjscc-encryption", {}, "sends the same image in other ways"),
        ("deepjscc-encryption", {"fresh": False}, "under a key that is not given"),
        ("layered", {"fresh": False, "sign_flips": True}, "under a key that is not given"),
    ],
)
def test_victims_that_no_search_can_follow_are_refused(kind, scheme, options, message):
    with pytest.raises(SemlinkError, match=message) as caught:
        attack_on(link_of(schemes[scheme], **options), kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"fresh": False, "sign_flips": True}])
def test_who_holds_the_key_searches_in_the_codes_own_order(options):
    plain, secret = link_of(), link_of(DeepJSCCEncryption, **options)
    images = images_of(4)
    assert torch.allclose(encoder_of(secret, with_secret=True)(images), plain.scheme.features(images), atol=1e-6)
    attack = attack_on(secret, SmoothSearch, Threat(12.0, with_secret=True))
    assert attack.noise_variance(12.0, torch.device("cpu")) == pytest.approx(10**-1.2, rel=4 * (2 / 32000) ** 0.5)
