# SPDX-License-Identifier: Apache-2.0
"""AES over quantised features: the standard's vectors, what one bit error costs, and what the code saves."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone, Optimiser
from semlink.schemes import Design, Key, Task, deepjscc_aes, schemes
from semlink.schemes.deepjscc_aes import aes

USER = Key(bytes(range(50, 82)))
CASES = [
    ("classify", (1, 28, 28)),
    ("classify", (3, 32, 32)),
    ("attributes", (3, 64, 64)),
    ("reconstruct", (3, 32, 32)),
]
CHAINS = [(cipher, code) for cipher in ("none", "ctr", "cbc") for code in ("none", "ldpc")]


def make(kind="classify", shape=(1, 28, 28), uses=64, key=USER, **options):
    torch.manual_seed(0)
    task = Task(kind, shape, 0 if kind == "reconstruct" else 5)
    scheme = schemes["deepjscc-aes"](Design(task, uses, Backbone(16, 16)), **options)
    scheme.key = key
    return scheme


def noiseless(symbols):
    return phy.Received(symbols, None, torch.full((len(symbols), 1), 1e-3))


def sent_bits(scheme, count, seed=0):
    """Features with their bits, sent under fresh nonces."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, scheme.feature_count, generator=generator)
    nonces = torch.randint(2**63 - 1, (count,), generator=generator)
    return scheme.quantise(features), scheme.send(features, nonces)


KEY_256 = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
PLAIN = (
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
VECTORS = {  # NIST SP 800-38A, F.5.5 and F.2.5
    "ctr": (
        "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6",
    ),
    "cbc": (
        "000102030405060708090a0b0c0d0e0f",
        "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"
        "39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b",
    ),
}


@pytest.mark.parametrize("mode", ["ctr", "cbc"])
def test_vectors_of_the_standard(mode):
    block, cipher = VECTORS[mode]
    secret, block, plain = bytes.fromhex(KEY_256), bytes.fromhex(block), bytes.fromhex(PLAIN)
    assert aes(mode, secret, block, plain, decrypt=False).hex() == cipher
    assert aes(mode, secret, block, bytes.fromhex(cipher), decrypt=True) == plain


@pytest.mark.parametrize("cipher", ["none", "ctr", "cbc"])
def test_what_is_on_the_air_is_the_ciphertext_by_hand(cipher):
    """AES as the library does it, key and first block as the docstring says, Gray labels read off the symbols."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    scheme = make(cipher=cipher)
    bits, sent = sent_bits(scheme, 3)
    axis = {-3: (0, 0), -1: (0, 1), 1: (1, 1), 3: (1, 0)}  # 4 Gray levels of a rail
    secret = bytes(32) if cipher == "none" else USER.keystream(2**64 - 1, 32)
    for row in range(3):
        rails = (torch.view_as_real(sent.symbols[row]) * math.sqrt(10)).round().long()
        air = [bit for re, im in rails.tolist() for bit in (*axis[im], *axis[re])]
        cipher_bytes = bytes(int("".join(map(str, air[i : i + 8])), 2) for i in range(0, 256, 8))
        counter = int(sent.header[row]).to_bytes(8, "big") + bytes(8)
        ecb = Cipher(algorithms.AES(secret), modes.ECB()).encryptor()
        stream = ecb.update(counter + int.to_bytes(int.from_bytes(counter, "big") + 1, 16, "big"))
        plain = bytes(int("".join(map(str, bits[row, i : i + 8].tolist())), 2) for i in range(0, 256, 8))
        if cipher != "cbc":
            assert cipher_bytes == bytes(a ^ b for a, b in zip(plain, stream, strict=True))
        else:
            first = ecb.update(bytes(a ^ b for a, b in zip(plain[:16], stream[:16], strict=True)))
            second = ecb.update(bytes(a ^ b for a, b in zip(plain[16:], first, strict=True)))
            assert cipher_bytes == first + second


@pytest.mark.parametrize(("cipher", "code"), CHAINS)
@pytest.mark.parametrize("order", [4, 16, 64])
def test_without_noise_every_bit_arrives(cipher, code, order):
    scheme = make(cipher=cipher, code=code, order=order, uses=128)
    bits, sent = sent_bits(scheme, 5)
    assert torch.equal(scheme.heard_bits(noiseless(sent.symbols), sent.header), bits)
    for block in ("image", "symbol") if code == "none" else ("symbol",):
        faded = phy.Rayleigh(block)(sent.symbols, 100.0, torch.Generator().manual_seed(0))
        assert torch.equal(scheme.heard_bits(faded, sent.header), bits)


def flipped(symbols, position):
    """Move one symbol over the decision threshold of its real rail's last bit: -3 <-> -1, 1 <-> 3."""
    symbols, step = symbols.clone(), 2 / math.sqrt(10)
    level = float(symbols[0, position].real)
    outward = 1 if abs(level) < step / 2 + 0.1 else -1
    symbols[:, position] += math.copysign(step, level) * outward
    return symbols


def test_ctr_one_wrong_bit_stays_one_wrong_bit():
    scheme = make(cipher="ctr")
    bits, sent = sent_bits(scheme, 1)
    for position in range(64):
        heard = scheme.heard_bits(noiseless(flipped(sent.symbols, position)), sent.header)
        assert (heard != bits).flatten().nonzero().flatten().tolist() == [4 * position + 3]


def test_cbc_one_wrong_bit_garbles_its_block_and_flips_one_bit_of_the_next():
    scheme = make(cipher="cbc", uses=96)  # three blocks
    bits, sent = sent_bits(scheme, 1)
    garbled = []
    for position in range(96):
        wrong = (scheme.heard_bits(noiseless(flipped(sent.symbols, position)), sent.header) != bits)[0].reshape(3, 128)
        block, place = divmod(4 * position + 3, 128)
        garbled.append(int(wrong[block].sum()))
        for other in range(3):
            if other == block + 1:
                assert wrong[other].nonzero().flatten().tolist() == [place]
            elif other != block:
                assert not wrong[other].any()
    # Bits of a garbled block are wrong with probability 1/2: 96 blocks of 128, 5 standard errors.
    assert abs(sum(garbled) / 96 - 64) < 5 * math.sqrt(128 / 4 / 96)
    assert min(garbled) > 64 - 6 * math.sqrt(32)


def rail_errors(snr_db):
    """Rates over AWGN of a wrong 4-level rail, and of a wrong bit of Gray 16-QAM (closed form)."""
    q = [phy.q_function(k * math.sqrt(10 ** (snr_db / 10) / 5)) for k in (1, 3, 5)]
    return 1.5 * q[0], 0.75 * q[0] + 0.5 * q[1] - 0.25 * q[2]


@pytest.mark.parametrize("cipher", ["none", "ctr", "cbc"])
@pytest.mark.parametrize("snr_db", [12.0, 16.0])
def test_bit_errors_uncoded_are_those_of_the_closed_form(cipher, snr_db):
    """2,000 messages of two blocks; a message's share of wrong bits is the unit; within 5 standard errors."""
    scheme = make(cipher=cipher)
    bits, sent = sent_bits(scheme, 2000)
    received = phy.AWGN()(sent.symbols, snr_db, torch.Generator().manual_seed(1))
    wrong = (scheme.heard_bits(received, sent.header) != bits).double().unflatten(1, (2, 128)).mean(2)
    rail, bit = rail_errors(snr_db)
    hit = 1 - (1 - rail) ** 64  # a block lies on 64 rails
    expected = [hit / 2, hit / 2 + (1 - hit) * bit] if cipher == "cbc" else [bit, bit]
    error = wrong.std(0) / math.sqrt(2000)
    assert ((wrong.mean(0) - torch.tensor(expected)).abs() < 5 * error).all()
    if snr_db == 12.0:
        assert 0.02 < bit < 0.03
        assert hit > 0.9, "at 12 dB uncoded CBC lets nothing through"


@pytest.mark.parametrize("cipher", ["ctr", "cbc"])
def test_the_code_saves_both_modes_above_its_threshold(cipher):
    scheme = make(cipher=cipher, code="ldpc", uses=128)
    bits, sent = sent_bits(scheme, 20)
    received = phy.AWGN()(sent.symbols, 12.0, torch.Generator().manual_seed(1))
    assert torch.equal(scheme.heard_bits(received, sent.header), bits)
    broken = sent.symbols.clone()
    broken[:, 10] *= -1  # a wrong symbol, four bits or fewer, is repaired
    assert torch.equal(scheme.heard_bits(phy.Received(broken, None, torch.full((20, 1), 0.5)), sent.header), bits)


def test_what_the_decoder_leaves_wrong_stays_under_ctr_and_spreads_under_cbc():
    """Below the threshold, 256 coded bits: the same noise on the same code, so decoded ciphertexts err alike."""
    shares = {}
    for cipher in ("ctr", "cbc"):
        scheme = make(cipher=cipher, code="ldpc", uses=128)
        bits, sent = sent_bits(scheme, 80)
        received = phy.AWGN()(sent.symbols, 6.0, torch.Generator().manual_seed(1))
        shares[cipher] = (scheme.heard_bits(received, sent.header) != bits).double().unflatten(1, (2, 128)).mean(2)
    hit, some = shares["cbc"] > 0.25, shares["ctr"] > 0
    for share in (hit, some):
        assert 0.05 < share.double().mean() < 0.95
    assert 0.02 < shares["ctr"][some].mean() < 0.3, "a failed decoding leaves some bits wrong"
    garbled = shares["cbc"][hit]
    assert abs(garbled.mean() - 0.5) < 5 * math.sqrt(0.25 / 128 / len(garbled))
    # As many blocks are hit: two samples of 160 blocks in 80 messages, 5 standard errors with whole messages as units.
    assert abs(hit.double().mean() - some.double().mean()) < 5 * math.sqrt(2 * 0.25 / 80)


@pytest.mark.parametrize(
    ("cipher", "code", "held"),
    [
        ("ctr", "none", None),
        ("ctr", "none", Key.for_test(0)),
        ("cbc", "none", None),
        ("cbc", "none", Key(bytes(32))),
        ("ctr", "ldpc", None),
        ("cbc", "ldpc", Key(bytes(32))),
    ],
)
def test_without_the_key_bits_are_coin_flips_and_nothing_is_raised(cipher, code, held):
    """5 standard errors of fair coins."""
    scheme = make(cipher=cipher, code=code)
    bits, sent = sent_bits(scheme, 20)
    scheme.key = held
    received = noiseless(sent.symbols)
    wrong = (scheme.heard_bits(received, sent.header) != bits).double().mean()
    assert abs(wrong - 0.5) < 5 * 0.5 / math.sqrt(bits.numel())
    for header in (sent.header, None):
        output = scheme.eval().receive(received, header)
        assert output.shape == (20, 5)
        assert torch.isfinite(output).all()
    scheme.key = USER
    lost = (scheme.heard_bits(received, None) != bits).double().mean()
    # Under CBC a lost nonce spoils the first block alone: of one or two blocks.
    spoiled = 1.0 if cipher == "ctr" else 128 / scheme.cipher_bits
    assert abs(lost - spoiled / 2) < 5 * 0.5 / math.sqrt(bits.numel())


def test_a_nonce_that_serves_twice_under_ctr_gives_away_where_messages_differ_and_fresh_ones_do_not():
    scheme = make()
    features = torch.randn(2, scheme.feature_count, generator=torch.Generator().manual_seed(0))
    bits = scheme.quantise(features)

    def ciphertext(nonces):
        symbols = scheme.send(features, torch.tensor(nonces)).symbols
        return scheme.constellation.bits[scheme.constellation.demodulate(symbols)].flatten(1)

    one, other = ciphertext([7, 7])
    assert torch.equal(one ^ other, bits[0] ^ bits[1])
    one, other = ciphertext([7, 8])
    agreeing = ((one ^ other) == (bits[0] ^ bits[1])).double().mean()
    assert abs(agreeing - 0.5) < 5 * 0.5 / 16


@pytest.mark.parametrize("cipher", ["none", "ctr", "cbc"])
def test_symbols_are_uniform_and_of_unit_energy_on_average_whatever_the_image(cipher):
    """One image 600 times: counts of 16 points and the mean energy within 5 standard errors."""
    scheme = make(cipher=cipher, uses=32)
    features = torch.full((600, scheme.feature_count), 0.3)
    sent = scheme.send(features, torch.arange(600))
    counts = torch.bincount(scheme.constellation.demodulate(sent.symbols).flatten(), minlength=16)
    total = 600 * 32
    assert ((counts - total / 16).abs() < 5 * math.sqrt(total * 15 / 256)).all()
    energy = phy.mean_power(sent.symbols)
    assert abs(energy.mean() - 1) < 5 * math.sqrt(0.32 / total)  # |x|^2 of 16-QAM has variance 0.32
    assert energy.std() > 0.03, "a single message varies"


def test_observe_with_and_without_the_key():
    for cipher in ("none", "ctr", "cbc"):
        scheme = make(cipher=cipher, code="ldpc")
        bits, sent = sent_bits(scheme, 4)
        received = noiseless(sent.symbols)
        features = F.pad(scheme.dequantise(bits), (0, 128 - scheme.feature_count))
        assert torch.equal(scheme.observe(received, sent.header, True), features)
        seen = scheme.observe(received, sent.header, False)
        assert torch.equal(seen, features if cipher == "none" else phy.to_features(sent.symbols))


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_quantiser_by_hand(bits):
    scheme = make(feature_bits=bits, clip=1.5, uses=128)
    step = 3.0 / 2**bits
    levels = -1.5 + step * (torch.arange(2**bits) + 0.5)
    words = [[int(b) for b in format(i, f"0{bits}b")] for i in range(2**bits)]
    assert torch.allclose(scheme.dequantise(torch.tensor(words, dtype=torch.uint8)).flatten(), levels)
    features = torch.linspace(-1.4999, 1.4999, 501)[:, None].repeat(1, scheme.feature_count)
    found = scheme.dequantise(scheme.quantise(features))
    assert ((found - features).abs() <= step / 2 + 1e-6).all()
    assert torch.equal(scheme.dequantise(scheme.quantise(found)), found)
    outside = torch.tensor([[-1e9, -1.5, 1.5, 1e9, math.inf, -math.inf, math.nan]])
    nearest = scheme.dequantise(scheme.quantise(outside))[0]
    assert nearest[:6].tolist() == pytest.approx([float(levels[i]) for i in (0, 0, -1, -1, -1, 0)])
    assert nearest.isfinite().all()


@pytest.mark.parametrize(
    ("uses", "options", "features", "cipher_bits"),
    [
        (8, {}, 16, 32),
        (64, {}, 128, 256),
        (64, {"cipher": "cbc"}, 128, 256),
        (40, {"cipher": "cbc"}, 64, 128),
        (40, {}, 80, 160),
        (64, {"feature_bits": 3}, 80, 240),
        (64, {"feature_bits": 3, "cipher": "cbc"}, 80, 256),
        (64, {"feature_bits": 1}, 128, 128),  # at most two features a channel use
        (64, {"order": 64, "feature_bits": 3}, 128, 384),
        (64, {"code": "ldpc"}, 64, 128),
        (64, {"code": "ldpc", "cipher": "cbc"}, 64, 128),
        (64, {"code": "ldpc", "code_rate": 0.75}, 96, 192),
        (128, {"code": "ldpc", "cipher": "cbc", "feature_bits": 4, "code_rate": 0.75}, 96, 384),
    ],
)
def test_channel_uses_are_those_asked_for_and_the_payload_is_what_fits(uses, options, features, cipher_bits):
    scheme = make(uses=uses, **options).eval()
    sent = scheme.transmit(torch.rand(2, 1, 28, 28), torch.Generator().manual_seed(0))
    assert sent.channel_uses == uses
    assert sent.payload_bits == scheme.payload_bits == features * options.get("feature_bits", 2)
    assert (scheme.feature_count, scheme.cipher_bits) == (features, cipher_bits)
    assert scheme.features(torch.rand(2, 1, 28, 28)).shape == (2, features)


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize(("cipher", "code"), [("ctr", "none"), ("cbc", "none"), ("ctr", "ldpc")])
def test_every_parameter_gets_gradient(kind, shape, cipher, code):
    scheme = make(kind, shape, cipher=cipher, code=code)
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(6) % 5 if kind == "classify" else torch.ones(6, 5)
    (phase,) = scheme.phases(Optimiser(), lambda x, g: phy.AWGN()(x, 12.0, g), 0.1)
    losses = phase.module(images, targets, torch.Generator().manual_seed(2))
    losses["loss"].backward()
    assert {id(p) for p in phase.parameters} == {id(p) for p in scheme.parameters()}
    for name, parameter in scheme.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, name
    if code == "ldpc":
        assert losses["bit_errors"] == 0
    else:
        assert (losses["bit_errors"] > 0.2) == (cipher == "cbc")


def test_training_runs_the_real_chain_and_passes_gradient_straight_through():
    scheme = make(cipher="cbc").eval()
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    (phase,) = scheme.phases(Optimiser(), lambda x, g: phy.AWGN()(x, 12.0, g), 0.0)
    losses = phase.module(images, labels, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    sent = scheme.transmit(images, generator)
    received = phy.AWGN()(sent.symbols, 12.0, generator)
    assert torch.allclose(losses["loss"], F.cross_entropy(scheme.receive(received, sent.header), labels), atol=1e-6)
    bits = scheme.heard_bits(received, sent.header)
    wrong = (bits != scheme.quantise(scheme.features(images))).float().mean()
    assert losses["bit_errors"] == wrong > 0.1

    heard = scheme.dequantise(bits).requires_grad_()
    (outer,) = torch.autograd.grad(F.cross_entropy(scheme.answer(heard), labels), heard)
    weight = scheme.encoder.stages[-1].weight
    (expected,) = torch.autograd.grad((scheme.features(images) * outer).sum(), weight)
    (found,) = torch.autograd.grad(losses["loss"], weight)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_same_seed_sends_the_same_and_nonces_may_be_given():
    scheme, images = make().eval(), torch.rand(3, 1, 28, 28)
    sent, again, other = (scheme.transmit(images, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(sent.symbols, again.symbols)
    assert torch.equal(sent.header, again.header)
    assert len(torch.cat([sent.header, other.header]).unique()) == 6
    given = scheme.transmit(images, torch.Generator().manual_seed(5), sent.header)
    assert torch.equal(given.symbols, sent.symbols)


def test_bad_input_is_refused_in_one_line():
    for options, message in [
        ({"cipher": "cfb"}, "unknown cipher 'cfb'"),
        ({"cipher": 3}, "unknown cipher '3'"),
        ({"code": "turbo"}, "unknown code 'turbo'"),
        ({"code_rate": 1.0}, r"option code_rate is 1.0: a number from 0.2 to 0.92"),
        ({"code_rate": "half"}, r"option code_rate is 'half'"),
        ({"order": 32}, r"option order is 32: .*even power of two"),
        ({"order": "16"}, r"option order is '16'"),
        ({"feature_bits": 0}, r"option feature_bits is 0"),
        ({"feature_bits": 17}, r"option feature_bits is 17: at most 16"),
        ({"feature_bits": True}, r"option feature_bits is True"),
        ({"clip": -1.0}, r"option clip is -1.0: a finite number above 0"),
        ({"uses": 12}, r"^12 channel uses: .*multiple of 8"),
        ({"uses": -8}, r"^-8 channel uses: .*multiple of 8"),
        ({"uses": 16, "cipher": "cbc"}, r"^16 channel uses carry 64 bits: .*128 in whole blocks.*at least 32 channel"),
        ({"uses": 8, "feature_bits": 4}, r"^8 channel uses carry 32 bits: .*takes 64; use at least 16 channel uses"),
        ({"uses": 8, "code": "ldpc"}, r"^8 channel uses carry 16 bits: .*takes 32; use at least 16 channel uses"),
        ({"order": 4096, "feature_bits": 1, "code": "ldpc"}, r"128 bits cannot be coded into 768 .*change code_rate"),
    ]:
        with pytest.raises(SemlinkError, match=message) as caught:
            make(**options)
        assert "\n" not in str(caught.value)
    scheme = make()
    images, generator = torch.rand(2, 1, 28, 28), torch.Generator()
    for nonces in (torch.arange(3), torch.arange(2.0), torch.zeros(2, 1).long()):
        with pytest.raises(SemlinkError, match="one int64 for each of 2 images"):
            scheme.transmit(images, generator, nonces)
        with pytest.raises(SemlinkError, match="one int64 for each of 2 images"):
            scheme.receive(noiseless(torch.zeros(2, 64, dtype=torch.complex64)), nonces)
    with pytest.raises(SemlinkError, match="nonce -1"):
        scheme.transmit(images, generator, torch.tensor([1, -1]))
    for cipher in ("ctr", "cbc"):
        with pytest.raises(SemlinkError, match="deepjscc-aes cannot transmit without its key"):
            make(cipher=cipher, key=None).transmit(images, generator)
    assert make(cipher="none", key=None).transmit(images, generator).symbols.shape == (2, 64)


def test_a_missing_sionna_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sionna.phy.fec.ldpc", None)
    deepjscc_aes._ldpc.cache_clear()
    with pytest.raises(SemlinkError, match=r"pip install 'semlink\[sionna\]'"):
        make(code="ldpc")
    assert make().transmit(torch.rand(1, 1, 28, 28), torch.Generator()).channel_uses == 64


def test_the_key_and_the_code_are_in_no_weight():
    names = set(make(code="ldpc").state_dict())
    assert names - set(make(cipher="cbc", uses=32).state_dict()) == set()
    assert not any("key" in name or "ldpc" in name for name in names)
