# SPDX-License-Identifier: Apache-2.0
"""An encoder of somebody else's on a link: how it is scaled, and what is refused."""

import pytest
import torch
from torch import nn

from semlink import SemlinkError, channels, phy
from semlink.bench.attacker import fingerprint
from semlink.schemes import Link, Task
from semlink.schemes.foreign import Foreign

TASK = Task("reconstruct", (1, 8, 8), 0)
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Sends(nn.Module):
    """An encoder of one line."""

    def __init__(self, code):
        super().__init__()
        self.code = code

    def forward(self, images):
        return self.code(images)


class Counts(nn.Module):
    """An encoder that remembers how often it was used."""

    def __init__(self, persistent):
        super().__init__()
        self.register_buffer("uses", torch.zeros(()), persistent=persistent)

    def forward(self, images):
        self.uses += 1
        return images.flatten(1)


def noise(images):
    return images.flatten(1) + torch.randn(len(images), 64)


def foreign(code) -> Foreign:
    return Foreign(Sends(code), TASK, IMAGES)


def test_real_numbers_ride_two_on_a_symbol_at_mean_energy_one():
    scheme = foreign(lambda x: 7 * x.flatten(1))
    symbols = Link(scheme, channels["awgn"](), 12.0).transmit(IMAGES).symbols
    assert symbols.shape == (40, 32) == (40, scheme.design.channel_uses)
    assert float(phy.mean_power(symbols).mean()) == pytest.approx(1, rel=1e-5)
    pairs = torch.view_as_complex(IMAGES.reshape(40, 32, 2).contiguous())
    ratio = symbols / pairs
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4, atol=0)  # one constant, no other change
    told = scheme.describe()
    assert told["energy"] == pytest.approx(float(phy.mean_power(7 * pairs / 2**0.5).mean()), rel=1e-5)
    assert told["scale"] == pytest.approx(told["energy"] ** -0.5)
    powers = phy.mean_power(symbols)
    assert (told["least"], told["most"]) == pytest.approx((float(powers.min()), float(powers.max())), rel=1e-4)


def test_an_odd_number_is_padded_by_a_zero():
    scheme = foreign(lambda x: x.flatten(1)[:, :15])
    symbols = Link(scheme, channels["awgn"](), 12.0).transmit(IMAGES).symbols
    assert symbols.shape == (40, 8)
    assert not symbols[:, -1].imag.any()
    assert symbols[:, -1].real.all()


def test_complex_numbers_are_symbols():
    scheme = foreign(lambda x: torch.complex(x.flatten(1), -x.flatten(1)))
    symbols = Link(scheme, channels["awgn"](), 12.0).transmit(IMAGES).symbols
    assert symbols.shape == (40, 64)
    torch.testing.assert_close(symbols.imag, -symbols.real)
    assert float(phy.mean_power(symbols).mean()) == pytest.approx(1, rel=1e-5)


def test_power_is_frozen():
    scheme = foreign(lambda x: x.flatten(1))
    bright = scheme.transmit(torch.ones(2, 1, 8, 8), torch.Generator())
    assert float(phy.mean_power(bright.symbols).mean()) == pytest.approx(1 / float(IMAGES.square().mean()), rel=1e-4)


def test_images_come_as_a_view_expects_them_and_in_full_precision():
    scheme = foreign(lambda x: x.view(len(x), -1) @ torch.eye(64))
    images = IMAGES.to(memory_format=torch.channels_last)
    plain = scheme.transmit(images, torch.Generator()).symbols
    with torch.autocast("cpu", torch.bfloat16):
        mixed = scheme.transmit(images.expand(-1, 1, 8, 8), torch.Generator()).symbols
    assert torch.equal(plain, mixed)


def test_a_gradient_reaches_the_image():
    images = IMAGES[:2].clone().requires_grad_()
    foreign(lambda x: x.flatten(1).sin()).transmit(images, torch.Generator()).symbols.abs().sum().backward()
    assert images.grad is not None
    assert images.grad.all()


def test_randomness_of_its_own_follows_the_generator_and_leaves_torch_alone():
    scheme = foreign(noise)
    assert scheme.random
    assert not foreign(lambda x: x.flatten(1)).random
    before = torch.get_rng_state()
    sent = [scheme.transmit(IMAGES, torch.Generator().manual_seed(seed)).symbols for seed in (1, 1, 2)]
    assert torch.equal(sent[0], sent[1])
    assert not torch.equal(sent[0], sent[2])
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(scheme.transmit(IMAGES, generator).symbols, scheme.transmit(IMAGES, generator).symbols)
    assert torch.equal(before, torch.get_rng_state())


def test_it_is_used_in_evaluation_mode_and_left_as_it_was():
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5))
    before = fingerprint(encoder)
    scheme = Foreign(encoder, TASK, IMAGES)
    scheme.transmit(IMAGES, torch.Generator())
    assert not scheme.random
    assert fingerprint(encoder) == before


def test_it_delivers_nothing():
    link = Link(foreign(lambda x: x.flatten(1)), channels["awgn"](), 12.0)
    with pytest.raises(SemlinkError, match="an encoder alone delivers nothing"):
        link.receive(link.channel(link.transmit(IMAGES).symbols))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (lambda x: x, r"returns shape \(16, 1, 8, 8\).*nn.Flatten"),
        (lambda x: x.flatten(1)[:, :0], r"returns shape \(16, 0\)"),
        (lambda x: x.flatten(1)[:3], "returns 3 rows for 16 images"),
        (lambda x: x.flatten(1).long(), "returns torch.int64: real"),
        (lambda x: x.flatten(1).tolist(), "returns list: a tensor"),
        (lambda x: x.flatten(1) / 0, "of the 1024 numbers that the encoder returns are not finite"),
        (lambda x: 0 * x.flatten(1), "mean energy 0, which no constant can bring to 1"),
        (lambda x: x.flatten(1) @ torch.ones(3, 2), r"fails on images of shape \(16, 1, 8, 8\): RuntimeError"),
        (lambda x: x.flatten(1) / x.std(), "another code of an image when other images are beside it"),
    ],
)
def test_what_is_no_encoder_is_refused_in_a_line(code, said):
    with pytest.raises(SemlinkError, match=said) as caught:
        foreign(code)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("persistent", [True, False])
def test_an_encoder_that_changes_while_it_is_used_is_refused(persistent):
    with pytest.raises(SemlinkError, match="changes 'uses' while it is used"):
        Foreign(Counts(persistent), TASK, IMAGES)


def test_weights_whose_shape_was_left_open_are_made_alike_each_time():
    made = [Foreign(nn.Sequential(nn.Flatten(), nn.LazyLinear(6)), TASK, IMAGES) for _ in range(2)]
    assert fingerprint(made[0].encoder) == fingerprint(made[1].encoder)
    assert made[0].design.channel_uses == 3
