# SPDX-License-Identifier: Apache-2.0
"""Encryption by shuffling: the same utility, nothing without the key, and what a fixed nonce gives away."""

import io
import math
import pickle

import pytest
import torch

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone, Optimiser
from semlink.schemes import DeepJSCC, DeepJSCCEncryption, Design, Key, Link, Task
from semlink.schemes.key import permutations

SHAPE = (1, 28, 28)
DESIGN = Design(Task("classify", SHAPE, 5), 32, Backbone(16, 16))
D = 2 * DESIGN.channel_uses
USER = Key(bytes(range(50, 82)))


def images_of(count, seed=2, own_share=0.4):
    """Smooth images of five kinds, each with a share of its own, and their kinds."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.nn.functional.interpolate(
        torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 28, mode="bilinear"
    )
    own = torch.nn.functional.interpolate(torch.rand(count, 1, 7, 7, generator=generator), 28, mode="bilinear")
    labels = torch.randint(0, 5, (count,), generator=generator)
    return (1 - own_share) * kinds[labels] + own_share * own, labels


@pytest.fixture(scope="module")
def twins():
    """A plain link trained for a second, and an encrypted one of the same weights."""
    torch.manual_seed(0)
    plain, shuffled = DeepJSCC(DESIGN), DeepJSCCEncryption(DESIGN)
    plain.prepare(images_of(200)[0])
    (phase,) = plain.phases(Optimiser(learning_rate=1e-2), lambda x, g: phy.AWGN()(x, 12.0, g), 0.0)
    optimiser, generator = phase.optimiser.build(phase.parameters), torch.Generator().manual_seed(1)
    for step in range(40):
        loss = phase.module(*images_of(32, 100 + step), generator)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    shuffled.load_state_dict(plain.state_dict())
    shuffled.key = USER
    return plain.eval().requires_grad_(False), shuffled.eval().requires_grad_(False)


def noiseless(symbols):
    return phy.Received(symbols, None, torch.zeros(len(symbols), 1))


def test_ciphertext_is_a_permutation_of_the_code_and_the_key_undoes_it_exactly(twins):
    plain, shuffled = twins
    images = images_of(9)[0]
    code = phy.to_features(plain.transmit(images, torch.Generator()).symbols)
    sent = shuffled.transmit(images, torch.Generator().manual_seed(0))
    ciphertext = phy.to_features(sent.symbols)
    assert not torch.equal(ciphertext, code)
    assert torch.equal(ciphertext.sort(dim=1).values, code.sort(dim=1).values)
    order = permutations(USER, sent.header, D)
    for row in range(9):
        assert torch.equal(ciphertext[row], code[row][order[row]])
    received = noiseless(sent.symbols)
    assert torch.equal(shuffled.observe(received, sent.header, True), code)
    assert torch.equal(shuffled.observe(received, sent.header, False), ciphertext)
    assert torch.equal(shuffled.observe(received, sent.header, False), plain.observe(received, None, False))


@pytest.mark.parametrize("snr_db", [0.0, 12.0])
def test_permuted_noise_gives_the_logits_of_the_plain_link_to_the_bit(twins, snr_db):
    plain, shuffled = twins
    images = images_of(16)[0]
    sent = shuffled.transmit(images, torch.Generator().manual_seed(0))
    order = permutations(USER, sent.header, D)
    noise = torch.randn(16, D, generator=torch.Generator().manual_seed(3)) * 10 ** (-snr_db / 20)
    open_symbols = plain.transmit(images, torch.Generator()).symbols
    expected = plain.receive(noiseless(open_symbols + phy.to_symbols(noise)))
    found = shuffled.receive(noiseless(sent.symbols + phy.to_symbols(noise.gather(1, order))), sent.header)
    assert torch.equal(found, expected)
    unpermuted = shuffled.receive(noiseless(sent.symbols + phy.to_symbols(noise)), sent.header)
    assert not torch.equal(unpermuted, expected)


@pytest.mark.parametrize(("channel", "snr_db"), [(phy.AWGN(), -5.0), (phy.Rayleigh("image"), 0.0)])
def test_utility_is_the_same_in_distribution(twins, channel, snr_db):
    """Accuracy and moments of the logits, over 250 noise draws of 8 images on each link."""
    plain, shuffled = twins
    draws, (images, labels) = 250, images_of(8)
    generator = torch.Generator().manual_seed(6)
    values = []
    for scheme in (plain, shuffled):
        sent = scheme.transmit(images.repeat(draws, 1, 1, 1), generator)
        output = scheme.receive(channel(sent.symbols, snr_db, generator), sent.header).double()
        right = (output.argmax(1) == labels.repeat(draws)).double()
        values.append(torch.cat([right[:, None], output, output.square()], 1).unflatten(0, (draws, 8)))
    one, other = (v.mean(dim=0) for v in values)  # (image, statistic)
    errors = sum(v.var(dim=0) / draws for v in values).sqrt()
    assert ((one - other).abs() <= 5 * errors).all()
    difference = values[0][..., 0].mean() - values[1][..., 0].mean()
    assert abs(float(difference)) <= 5 * float(errors[:, 0].square().sum().sqrt() / 8)
    assert 0.3 < float(values[0][..., 0].mean()) < 0.95, "noise costs accuracy here"
    blind = plain.receive(channel(sent.symbols, snr_db, generator)).argmax(1) == labels.repeat(draws)
    assert blind.double().mean() < values[0][..., 0].mean() - 0.1


def test_a_fresh_nonce_for_each_message_and_one_for_all_if_fixed(twins):
    _, shuffled = twins
    images = images_of(1)[0].repeat(40, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    sent, again = shuffled.transmit(images, generator), shuffled.transmit(images, generator)
    nonces = torch.cat([sent.header, again.header])
    assert nonces.dtype == torch.int64
    assert len(nonces.unique()) == 80
    assert nonces.min() >= 0
    assert nonces.double().log2().max() > 60
    assert len(torch.view_as_real(sent.symbols).flatten(1).unique(dim=0)) == 40

    fixed = DeepJSCCEncryption(DESIGN, fresh=False).eval()
    fixed.key = USER
    first, second = (fixed.transmit(images, generator) for _ in range(2))
    assert torch.equal(first.header, second.header)
    assert first.header.unique().tolist() == [0]
    assert torch.equal(first.symbols, second.symbols)
    assert torch.equal(first.symbols[:1].expand(40, -1), first.symbols)


def test_explicit_nonces_are_used(twins):
    plain, shuffled = twins
    images, nonces = images_of(4)[0], torch.tensor([5, 0, 5, 2**62])
    sent = shuffled.transmit(images, torch.Generator().manual_seed(0), nonces)
    again = shuffled.transmit(images, torch.Generator().manual_seed(99), nonces)
    assert torch.equal(sent.header, nonces)
    assert torch.equal(sent.symbols, again.symbols)
    code = plain.features(images)
    expected = code.gather(1, permutations(USER, nonces, D))
    assert torch.equal(sent.symbols, phy.to_symbols(expected))


@pytest.mark.parametrize(
    "nonces", [torch.arange(3), torch.arange(5), torch.arange(4).float(), torch.zeros(4, 1).long()]
)
def test_nonces_that_are_not_one_whole_number_for_each_message_are_refused(twins, nonces):
    """Three nonces for four images would otherwise send three of them and say nothing."""
    _, shuffled = twins
    sent = shuffled.transmit(images_of(4)[0], torch.Generator())
    with pytest.raises(SemlinkError, match="one int64 for each of 4 images"):
        shuffled.transmit(images_of(4)[0], torch.Generator(), nonces)
    with pytest.raises(SemlinkError, match="one int64 for each of 4 images"):
        shuffled.receive(noiseless(sent.symbols), nonces)
    with pytest.raises(SemlinkError, match="nonce -1"):
        shuffled.transmit(images_of(4)[0], torch.Generator(), torch.tensor([1, 2, 3, -1]))


def test_nothing_is_sent_without_a_key():
    scheme = DeepJSCCEncryption(DESIGN).eval()
    for nonces in (None, torch.arange(2)):
        with pytest.raises(SemlinkError, match="cannot transmit without its key"):
            scheme.transmit(images_of(2)[0], torch.Generator(), nonces)
    with pytest.raises(SemlinkError, match="cannot transmit without its key"):
        Link(scheme, phy.AWGN(), 12.0).transmit(images_of(2)[0])


@pytest.mark.parametrize("value", ["no", "true", 0, None])
@pytest.mark.parametrize("name", ["fresh", "sign_flips"])
def test_options_are_true_or_false(name, value):
    with pytest.raises(SemlinkError, match=rf"option {name} is .*true or false"):
        DeepJSCCEncryption(DESIGN, **{name: value})


def correlation(one, other):
    """Pearson's, over all entries, each position centred over the messages."""
    one, other = ((x - x.mean()).double().flatten() for x in (one, other))
    return float((one * other).sum() / (one.norm() * other.norm()))


@pytest.mark.parametrize("held", [None, Key(bytes(32)), Key.for_test(0)])
def test_a_receiver_with_no_key_or_a_wrong_one_answers_near_chance_and_raises_nothing(twins, held):
    plain, shuffled = twins
    images = images_of(60)[0]
    code = plain.features(images)
    sent = shuffled.transmit(images, torch.Generator().manual_seed(0))
    received = phy.AWGN()(sent.symbols, 15.0, torch.Generator().manual_seed(1))
    other = DeepJSCCEncryption(DESIGN).eval()
    other.load_state_dict(shuffled.state_dict())
    other.key = held
    output = other.receive(received, sent.header)
    assert output.shape == (60, 5)
    assert torch.isfinite(output).all()
    # A random permutation of d values, centred per message, has correlation of variance 1 / (d - 1).
    error = 1 / math.sqrt(60 * (D - 1))
    centred = code - code.mean(1, keepdim=True)
    seen = other.observe(received, sent.header, True)
    assert abs(correlation(centred, seen - seen.mean(1, keepdim=True))) < 5 * error
    right = shuffled.observe(received, sent.header, True)
    assert correlation(centred, right - right.mean(1, keepdim=True)) > 0.9
    assert not torch.equal(output, shuffled.receive(received, sent.header))


def test_a_lost_header_is_answered_like_a_wrong_key(twins):
    _, shuffled = twins
    sent = shuffled.transmit(images_of(3)[0], torch.Generator())
    received = noiseless(sent.symbols)
    assert torch.equal(shuffled.observe(received, None, True), phy.to_features(sent.symbols))
    assert shuffled.receive(received).shape == (3, 5)


def test_the_key_is_in_no_weight_no_text_and_no_pickle(twins):
    _, shuffled = twins
    secret = bytes(range(50, 82))
    state = shuffled.state_dict()
    assert not any("key" in name for name in state)
    stored = io.BytesIO()
    torch.save(state, stored)
    assert secret not in stored.getvalue()
    for text in (repr(shuffled), str(vars(shuffled)), str(shuffled.key)):
        assert secret.hex() not in text
        assert str(secret)[2:-1] not in text
    for serialise in (pickle.dumps, lambda scheme: torch.save(scheme, io.BytesIO())):
        with pytest.raises(TypeError):
            serialise(shuffled)


@pytest.fixture
def flipping(twins):
    """The encrypted link with sign flips, of the same weights."""
    scheme = DeepJSCCEncryption(DESIGN, sign_flips=True).eval().requires_grad_(False)
    scheme.load_state_dict(twins[0].state_dict())
    scheme.key = USER
    return scheme


def signs_by_hand(nonces):
    """The bits of the keystream behind the 64-bit words of the permutation, 1 for a flip."""
    streams = [USER.keystream(nonce, 8 * D + D // 8)[8 * D :] for nonce in nonces.tolist()]
    return torch.tensor([[1.0 - 2 * (byte >> place & 1) for byte in s for place in range(7, -1, -1)] for s in streams])


def test_sign_flips_are_the_keystreams_and_the_key_undoes_them_exactly(twins, flipping):
    plain, shuffled = twins
    images = images_of(9)[0]
    sent = flipping.transmit(images, torch.Generator().manual_seed(0))
    unflipped = shuffled.transmit(images, torch.Generator().manual_seed(0))
    signs = signs_by_hand(sent.header)
    assert torch.equal(sent.header, unflipped.header)
    assert torch.equal(phy.to_features(sent.symbols), phy.to_features(unflipped.symbols) * signs)
    code = phy.to_features(plain.transmit(images, torch.Generator()).symbols)
    assert torch.equal(flipping.observe(noiseless(sent.symbols), sent.header, True), code)
    seen = flipping.observe(noiseless(sent.symbols), sent.header, False)
    assert torch.equal(seen, phy.to_features(sent.symbols))
    assert abs(float(signs.mean())) < 5 / math.sqrt(9 * D)  # 5 standard errors of fair coins
    assert float(signs_by_hand(torch.arange(500)).mean(0).abs().max()) < 5 / math.sqrt(500)


def test_flipped_noise_gives_the_logits_of_the_plain_link_to_the_bit(twins, flipping):
    plain, _ = twins
    images = images_of(16)[0]
    sent = flipping.transmit(images, torch.Generator().manual_seed(0))
    noise = torch.randn(16, D, generator=torch.Generator().manual_seed(3))
    on_air = noise.gather(1, permutations(USER, sent.header, D)) * signs_by_hand(sent.header)
    expected = plain.receive(noiseless(plain.transmit(images, torch.Generator()).symbols + phy.to_symbols(noise)))
    found = flipping.receive(noiseless(sent.symbols + phy.to_symbols(on_air)), sent.header)
    assert torch.equal(found, expected)
    # Over fading they are undone behind the equaliser, which is odd in y.
    gains = phy.noise((16, D // 2), 1.0, torch.Generator().manual_seed(5), torch.device("cpu"))
    faded = phy.Received(gains * sent.symbols, gains, torch.full((16, 1), 1e-9))
    assert torch.allclose(flipping.observe(faded, sent.header, True), plain.features(images), atol=1e-3)


@pytest.mark.parametrize("held", [None, Key(bytes(32))])
def test_sign_flips_under_a_wrong_key_or_none_or_with_a_lost_header_raise_nothing(twins, flipping, held):
    code = twins[0].features(images_of(60)[0])
    sent = flipping.transmit(images_of(60)[0], torch.Generator().manual_seed(0))
    flipping.key = held
    for header in (sent.header, None):
        seen = flipping.observe(noiseless(sent.symbols), header, True)
        assert abs(float((code * seen).mean())) < 5 / math.sqrt(60 * D)  # unrelated signs: 5 standard errors
        assert torch.isfinite(flipping.receive(noiseless(sent.symbols), header)).all()
    flipping.key = USER
    with pytest.raises(SemlinkError, match="one int64 for each of 60 images"):
        flipping.receive(noiseless(sent.symbols), sent.header[:5])


def recovered(plaintexts, ciphertexts):
    """Return for each position of the ciphertext the plaintext position that it correlates with most, either sign."""
    a, b = ((x - x.mean(0)) / x.std(0) for x in (plaintexts, ciphertexts))
    return (b.T @ a).abs().argmax(1)


@pytest.mark.parametrize("sign_flips", [False, True])
def test_thirty_known_plaintexts_break_a_fixed_nonce_and_not_fresh_ones(twins, sign_flips):
    plain, _ = twins
    images, generator = images_of(30, own_share=1.0)[0], torch.Generator().manual_seed(8)
    code = plain.features(images)
    share = {}
    for fresh in (False, True):
        scheme = DeepJSCCEncryption(DESIGN, fresh, sign_flips).eval()
        scheme.load_state_dict(plain.state_dict())
        scheme.key = USER
        sent = scheme.transmit(images, generator)
        heard = scheme.observe(phy.AWGN()(sent.symbols, 20.0, generator), sent.header, False)
        order = permutations(USER, sent.header, D)[-1]
        share[fresh] = float((recovered(code, heard) == order).float().mean())
    assert share[False] > 0.95
    assert share[True] < 1 / D + 5 * math.sqrt(1 / D / D)
