# SPDX-License-Identifier: Apache-2.0
"""What an attacker sees, that she leaves no trace, and that her decoder can draw what it is given."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import save_file

from semlink import attacks, phy
from semlink._errors import SemlinkError
from semlink.attacks import Inference, Inversion, Tap, Threat, class_means, mean_image
from semlink.bench import attacker, links, make_recipe, preset
from semlink.bench.attacker import fingerprint
from semlink.data import ImageSet, describe
from semlink.nn import Backbone, Optimiser
from semlink.schemes import DeepJSCC, DeepJSCCEncryption, Design, Key, Link, Scheme, Sent, Task

SHAPE = (1, 8, 8)
#: On a link of one user.
EVERY = [key for key in attacks.keys() if not attacks.attacks[key].tapped.of_network]  # noqa: SIM118
every_attack = pytest.mark.parametrize("name", EVERY)
every_black_box = pytest.mark.parametrize("name", [key for key in EVERY if not attacks.attacks[key].sees])


class Pixels(Scheme):
    """Sends the pixels themselves, two to a symbol: there is nothing to break."""

    def transmit(self, images, generator):
        return Sent(phy.to_symbols(images.flatten(1)))

    def receive(self, received, header=None):
        return self.observe(received, header, False).unflatten(1, self.design.task.image_shape)


def link_of(kind=DeepJSCC, shape=SHAPE, uses=8, snr_db=12.0):
    torch.manual_seed(0)
    scheme = kind(Design(Task("classify", shape, 3), uses, Backbone(16, 16)))
    if scheme.secret is not None:
        scheme.key = Key.for_test(0)
    return Link(scheme, phy.AWGN(), snr_db)


def built(name, link):
    """The attack on a link with three classes."""
    kind = attacks.attacks[name]
    sizes = {"kind": "classes", "outputs": 3} if issubclass(kind, Inference) else {"taps": 0}
    return kind(Tap(link, Threat(12.0), kind.sees), width=16, **sizes)


def images_of(count, seed=0, shape=SHAPE):
    """Smooth images: an attacker can learn what such images look like."""
    coarse = torch.rand(count, shape[0], 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear", align_corners=True)


def train(attack, images, steps, batch=32, rate=3e-3):
    """As the training loop does it: train mode, batches, one optimiser a phase, the rate falling along its schedule."""
    (phase,) = attack.phases(Optimiser(learning_rate=rate, schedule="cosine", warm_up=0.1))
    optimiser, generator = phase.optimiser.build(phase.parameters), torch.Generator().manual_seed(1)
    attack.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.optimiser.rate_at(step / steps)
        chosen = images[torch.randint(len(images), (batch,), generator=generator)]
        losses = phase.module(chosen, torch.zeros(batch).long(), generator)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    attack.eval()
    return losses


def psnr(one, other):
    return float(-10 * (one - other).square().flatten(1).mean(1).log10().mean())


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Random weights of VGG16's first tap, where the published ones are looked for."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"heads.0": torch.rand(64, generator=generator)}
    for number, before in ((0, 3), (2, 64)):
        tensors[f"features.{number}.weight"] = torch.randn(64, before, 3, 3, generator=generator) / before
        tensors[f"features.{number}.bias"] = torch.zeros(64)
    (tmp_path / "weights").mkdir()
    save_file(tensors, tmp_path / "weights" / "lpips-vgg16-fp16.safetensors")
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path))


@every_black_box
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
@pytest.mark.parametrize("kind", [DeepJSCC, DeepJSCCEncryption])
def test_every_parameter_of_an_attack_gets_gradient_and_the_victims_get_none(name, shape, kind):
    link = link_of(kind, shape, 16)
    attack = built(name, link)
    (phase,) = attack.phases(Optimiser())
    assert {id(p) for p in phase.parameters} == {id(p) for p in attack.parameters()}
    assert not {id(p) for p in phase.parameters} & {id(p) for p in link.scheme.parameters()}
    attack.train()
    phase.module(torch.rand(6, *shape), torch.arange(6) % 3, torch.Generator().manual_seed(0))["loss"].backward()
    for label, parameter in attack.named_parameters():
        assert parameter.grad is not None, label
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, f"{label}: units without gradient"
    assert all(p.grad is None for p in link.scheme.parameters())


@every_attack
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_attack_trains_and_draws_in_either_precision(name, precision, tmp_path):
    victim = "deepjscc-lbvq" if "codebook" in attacks.attacks[name].sees else "deepjscc"
    recipe = make_recipe(victim, preset="smoke")
    link, sets = links.build(recipe), links.image_sets(recipe)
    few = dataclasses.replace(sets, attacker=sets.attacker.subset(torch.arange(128)))
    plan = attacker.Plan(name, Threat(12.0), "smoke", "none", 0, precision)
    eve = attacker.build(link, plan, describe("digits"))
    history = attacker.fit(eve, few, preset("smoke").grey.attack, plan, tmp_path, torch.device("cpu"))
    assert all(math.isfinite(row["validation"]["loss"]) for row in history)
    with torch.no_grad():
        heard = torch.randn(4, eve.tap.features)
        made = eve.eval().infer(heard, 12.0) if isinstance(eve, Inference) else eve.reconstruct(heard, 12.0)
    assert (made.shape, made.dtype) == ((4, 10) if isinstance(eve, Inference) else (4, 1, 28, 28), torch.float32)


@every_black_box
@pytest.mark.parametrize("kind", [DeepJSCC, DeepJSCCEncryption])
@pytest.mark.parametrize("left_in_training", [False, True])
def test_training_an_attack_leaves_its_victim_byte_identical(name, kind, left_in_training):
    link = link_of(kind)
    link.scheme.train(left_in_training)  # a careless caller: BatchNorm would go on measuring
    before = fingerprint(link.scheme)
    attack = built(name, link)
    own = fingerprint(attack)
    train(attack, images_of(64), 5)
    (attack.infer if isinstance(attack, Inference) else attack.reconstruct)(
        attack.tap.intercept(images_of(3), torch.Generator()), 12.0
    )
    assert fingerprint(link.scheme) == before
    assert fingerprint(attack) != own
    assert not link.scheme.training
    assert all(p.grad is None and p.requires_grad for p in link.scheme.parameters())


def test_the_fingerprint_sees_every_bit_of_weights_and_buffers():
    scheme = link_of().scheme
    seen = {fingerprint(scheme)}
    for name, value in scheme.state_dict().items():
        with torch.no_grad():
            value.view(-1)[0] += 1 if value.dtype == torch.int64 else value.view(-1)[0].abs() * 1e-6 + 1e-30
        assert fingerprint(scheme) not in seen, name
        seen.add(fingerprint(scheme))


@pytest.mark.parametrize(("kind", "uses"), [(DeepJSCC, 8), (DeepJSCC, 24), (DeepJSCCEncryption, 8)])
def test_a_tap_gives_features_and_no_way_back(kind, uses):
    link = link_of(kind, uses=uses)
    tap = Tap(link, Threat(12.0))
    heard = tap.intercept(images_of(5), torch.Generator().manual_seed(0))
    assert heard.shape == (5, 2 * uses) == (5, tap.features)
    assert heard.dtype == torch.float32
    assert heard.grad_fn is None
    assert not heard.requires_grad
    assert tap.image_shape == SHAPE
    assert [name for name in dir(tap) if not name.startswith("_")] == [
        "features",
        "hear",
        "image_shape",
        "intercept",
        "of_network",
        "sees",
        "send",
        "threat",
        "victim",
    ]
    with pytest.raises(RuntimeError, match="does not state"):
        _ = tap.victim
    attack = Inversion(tap, 16, 0)
    assert not any(module is link.scheme for module in attack.modules())
    assert not any("scheme" in name or "encoder" in name for name in attack.state_dict())


def test_no_gradient_comes_through_a_tap_even_where_observing_has_weights():
    class Weighted(Pixels):
        def __init__(self, design):
            super().__init__(design)
            self.gain = torch.nn.Parameter(torch.ones(()))

        def observe(self, received, header, with_secret):
            return self.gain * super().observe(received, header, with_secret)

    heard = Tap(link_of(Weighted, uses=32), Threat(12.0)).intercept(images_of(2), torch.Generator())
    assert not heard.requires_grad


def test_what_is_heard_is_the_code_in_her_own_noise():
    link, images = link_of(uses=64, snr_db=30.0), images_of(400)
    code = link.scheme.features(images).detach()
    for snr_db in (-3.0, 12.0):
        heard = Tap(link, Threat(snr_db)).intercept(images, torch.Generator().manual_seed(2))
        noise = (heard - code).double()
        expected = 10 ** (-snr_db / 10)  # features have unit mean square, as noise of N0 has in both rails
        count = noise.numel()
        assert abs(float(noise.square().mean()) / expected - 1) < 5 * (2 / count) ** 0.5
        assert abs(float(noise.mean())) < 5 * (expected / count) ** 0.5
    tap = Tap(link, Threat(12.0))
    first = tap.intercept(images, torch.Generator().manual_seed(2))
    assert torch.equal(first, tap.intercept(images, torch.Generator().manual_seed(2)))
    assert not torch.equal(first, tap.intercept(images, torch.Generator().manual_seed(3)))


def test_with_the_key_she_hears_the_code_and_without_a_shuffled_one():
    plain, secret = link_of(), link_of(DeepJSCCEncryption)
    images, quiet = images_of(4), 120.0
    code = plain.scheme.features(images).detach()
    with_key = Tap(secret, Threat(quiet, with_secret=True)).intercept(images, torch.Generator().manual_seed(0))
    without = Tap(secret, Threat(quiet)).intercept(images, torch.Generator().manual_seed(0))
    assert torch.allclose(with_key, code, atol=1e-4)
    assert not torch.allclose(without, code, atol=0.1)
    assert torch.allclose(without.sort(1).values, code.sort(1).values, atol=1e-4)


def test_an_attack_with_the_key_of_a_scheme_that_has_none_is_refused():
    tap = Tap(link_of(), Threat(12.0, with_secret=True))
    with pytest.raises(SemlinkError, match="no key") as caught:
        tap.intercept(images_of(2), torch.Generator())
    assert "\n" not in str(caught.value)


def test_a_threat_says_what_it_is():
    assert Threat(7.0, True).describe() == Threat(6.0).describe() | {"snr_db": 7.0, "with_secret": True}


def test_the_loss_is_the_sum_of_mean_squared_error_and_mean_perceptual_distance(weights):
    attack = Inversion(Tap(link_of(shape=(3, 32, 32)), Threat(12.0)), 16, taps=1).eval()
    images = images_of(3, shape=(3, 32, 32))
    with torch.no_grad():
        losses = attack(images, torch.zeros(3).long(), torch.Generator().manual_seed(0))
    drawn = attack.decoder(attack.tap.intercept(images, torch.Generator().manual_seed(0))).detach()
    assert set(losses) == {"loss", "mse", "perceptual"}
    assert float(losses["mse"]) == pytest.approx(float((drawn - images).square().mean()), rel=1e-5)
    distances = [float(attack.perceptual(drawn[i : i + 1], images[i : i + 1])) for i in range(3)]
    assert float(losses["perceptual"]) == pytest.approx(sum(distances) / 3, rel=1e-4)
    assert float(losses["perceptual"]) > 0
    assert float(losses["loss"]) == pytest.approx(float(losses["mse"] + losses["perceptual"]), rel=1e-6)
    assert all(name.startswith("decoder.") for name, _ in attack.named_parameters())
    assert all(name.startswith("decoder.") for name in attack.state_dict())


def test_perceptual_loss_reaches_the_decoder(weights):
    attack = Inversion(Tap(link_of(shape=(3, 32, 32)), Threat(12.0)), 16, taps=1)
    attack(images_of(3, shape=(3, 32, 32)), torch.zeros(3), torch.Generator())["perceptual"].backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in attack.parameters())


def test_without_weights_a_perceptual_loss_is_refused_and_none_is_not(monkeypatch):
    monkeypatch.delenv("SEMLINK_DATA", raising=False)
    tap = Tap(link_of(), Threat(12.0))
    with pytest.raises(SemlinkError, match="perceptual = none"):
        Inversion(tap, 16, taps=1)
    losses = Inversion(tap, 16, taps=0)(images_of(2), torch.zeros(2), torch.Generator())
    assert set(losses) == {"loss", "mse"}
    assert losses["loss"] == losses["mse"]


def test_reconstructions_lie_in_0_1_and_reach_both_ends():
    attack = Inversion(Tap(link_of(), Threat(12.0)), 16, taps=0).eval()
    torch.nn.init.normal_(attack.decoder.draw.weight, std=20.0)
    heard = attack.tap.intercept(images_of(9), torch.Generator().manual_seed(0))
    raw, drawn = attack.decoder(heard), attack.reconstruct(heard, 12.0)
    assert drawn.shape == (9, *SHAPE)
    assert torch.equal(drawn, raw.clamp(0, 1))
    assert (drawn.min(), drawn.max()) == (0, 1)


def test_the_decoder_draws_what_an_identity_code_gives_away():
    """On pixels sent as they are, nearly noise-free, a decoder that works passes 20 dB and the mean image soon."""
    link = link_of(Pixels, uses=32)
    attack = Inversion(Tap(link, Threat(60.0)), 32, taps=0)
    train(attack, images_of(2000), 400)
    test = images_of(200, seed=9)
    drawn = attack.reconstruct(attack.tap.intercept(test, torch.Generator().manual_seed(5)), 12.0).detach()
    floor = psnr(images_of(2000).mean(0).expand_as(test), test)
    reached = psnr(drawn, test)
    assert reached > 20
    assert reached > floor + 6
    shuffled = psnr(drawn.roll(1, 0), test)
    assert shuffled < floor, "each image is drawn from its own code"


def drawn_at(name, snr_db, steps):
    """What an attack, trained on 2,000 images, draws of 200 others that are sent as they are."""
    attack = attacks.attacks[name](Tap(link_of(Pixels, uses=32), Threat(snr_db)), 32, taps=0)
    train(attack, images_of(2000), steps)
    test = images_of(200, seed=9)
    with torch.no_grad():
        return attack.reconstruct(attack.tap.intercept(test, torch.Generator().manual_seed(5)), 12.0), test


@pytest.mark.parametrize("name", ["inversion-plain", "inversion", "inversion-unet"])
def test_without_noise_every_capacity_draws_an_identity_code_beyond_35_db(name):
    assert psnr(*drawn_at(name, 200.0, 600)) > 35


def test_the_better_she_hears_the_better_she_draws():
    reached = [psnr(*drawn_at("inversion", snr_db, 150)) for snr_db in (-20.0, 0.0, 10.0, 20.0)]
    assert reached == sorted(reached)
    assert reached[-1] > reached[0] + 6


def test_capacities_differ_in_size_and_only_in_the_decoder():
    tap = Tap(link_of(shape=(3, 32, 32), uses=64), Threat(12.0))
    sizes = {
        name: sum(p.numel() for p in attacks.attacks[name](tap, 256, taps=0).parameters())
        for name in ("inversion-plain", "inversion", "inversion-unet")
    }
    assert 3 * sizes["inversion-plain"] < sizes["inversion"] < sizes["inversion-unet"] / 2


def test_no_mean_image_is_beaten_where_nothing_is_heard():
    """At -40 dB only the mean is left to learn: an attack that does better reads something it must not."""
    link = link_of(Pixels, uses=32)
    attack = Inversion(Tap(link, Threat(-40.0)), 16, taps=0)
    train(attack, images_of(2000), 100)
    test = images_of(400, seed=9)
    with torch.no_grad():
        drawn = attack.reconstruct(attack.tap.intercept(test, torch.Generator().manual_seed(5)), 12.0)
    assert psnr(drawn, test) < psnr(test.mean(0).expand_as(test), test) + 0.3


def test_mean_images_by_hand():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    images[0], images[1], images[2] = 255, 51, 102
    images[3, 0, 0, 1] = 204
    known = ImageSet(images, torch.tensor([0, 2, 2, 0]))
    mean = mean_image(known)
    assert mean.dtype == torch.float32
    assert mean.shape == (1, 2, 2)
    assert torch.allclose(mean, torch.tensor([[[0.4, 0.6], [0.4, 0.4]]]))
    means = class_means(known, 4)
    assert means.shape == (4, 1, 2, 2)
    assert torch.allclose(means[0], torch.tensor([[[0.5, 0.9], [0.5, 0.5]]]))
    assert torch.allclose(means[2], torch.full((1, 2, 2), 0.3))
    assert torch.equal(means[1], mean), "a class without images gets the overall mean"
    assert torch.equal(means[3], mean)


def test_the_mean_image_has_the_least_squared_error_of_all_constants():
    known = ImageSet((images_of(50) * 255).round().to(torch.uint8), torch.zeros(50).long())
    mean, images = mean_image(known), known.batch(torch.arange(50))[0]
    assert torch.allclose(mean, images.double().mean(0).float(), atol=1e-6)
    least = (images - mean).square().mean()
    for seed in range(5):
        other = mean + 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        assert (images - other).square().mean() > least


def test_unknown_attacks_are_refused_with_the_nearest_name():
    with pytest.raises(SemlinkError, match="unknown attack 'invertion'; did you mean 'inversion'"):
        attacks.attacks["invertion"]


@pytest.mark.parametrize("scheme", ["vl-vfe", "deepjscc-lbvq"])
def test_she_learns_from_what_the_victim_sends_whatever_arithmetic_she_trains_in(scheme):
    link = links.build(make_recipe(scheme, preset="smoke"))
    tap, images = Tap(link, Threat(12.0)), torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    plain = tap.intercept(images, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tap.intercept(images, torch.Generator().manual_seed(0)), plain)
