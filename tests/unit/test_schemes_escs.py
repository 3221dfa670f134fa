# SPDX-License-Identifier: Apache-2.0
"""The learned cipher: both modes, its game against Eve, and what is left without the key."""

import math

import numpy as np
import pytest
import torch

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone, Optimiser
from semlink.schemes import Design, Key, Task, schemes
from semlink.schemes.escs import SESSION_BITS, session_keys

USER = Key(bytes(range(50, 82)))
CASES = [
    ("classify", (1, 28, 28)),
    ("classify", (3, 32, 32)),
    ("attributes", (3, 64, 64)),
    ("reconstruct", (3, 32, 32)),
]


def make(kind="classify", shape=(1, 28, 28), uses=32, key=USER, scheme="escs", **options):
    torch.manual_seed(0)
    task = Task(kind, shape, 0 if kind == "reconstruct" else 5)
    made = schemes[scheme](Design(task, uses, Backbone(16, 16)), **options)
    if made.secret:
        made.key = key
    return made


def awgn(symbols, generator):
    return phy.AWGN()(symbols, 12.0, generator)


def noiseless(symbols):
    return phy.Received(symbols, None, torch.full((len(symbols), 1), 1e-3))


def images_of(count, seed=2, side=28):
    """Smooth images of five kinds, each with a share of its own, and their kinds."""
    generator = torch.Generator().manual_seed(seed)
    resize = torch.nn.functional.interpolate
    kinds = resize(torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), side, mode="bilinear")
    own = resize(torch.rand(count, 1, 7, 7, generator=generator), side, mode="bilinear")
    labels = torch.randint(0, 5, (count,), generator=generator)
    return 0.7 * kinds[labels] + 0.3 * own, labels


def small(count, seed=2):
    return images_of(count, seed, 8)


@pytest.fixture(scope="module")
def trained():
    """80 rounds of both players on images of 8x8 pixels."""
    scheme = make(shape=(1, 8, 8), uses=16, restarts=1, adversary_steps=3)
    scheme.prepare(small(200)[0])
    players = [
        (phase, phase.optimiser.build(phase.parameters), torch.Generator().manual_seed(i))
        for i, phase in enumerate(scheme.phases(Optimiser(learning_rate=3e-3), awgn, 0.0))
    ]
    scheme.train()
    for step in range(80):
        for phase, optimiser, generator in players:
            mine = set(phase.parameters)
            for parameter in scheme.parameters():
                parameter.requires_grad_(parameter in mine)
            for turn in range(phase.steps):
                phase.optimiser.rate_at(step / 80)
                losses = phase.module(*small(32, 100 + 10 * step + turn), generator)
                optimiser.zero_grad()
                losses["loss"].backward()
                optimiser.step()
    return scheme.eval().requires_grad_(False)


def accuracy(scheme, key, encrypted=True, snr_db=12.0):
    images, labels = small(400, seed=1)
    generator = torch.Generator().manual_seed(3)
    scheme.encrypted, scheme.key = encrypted, USER
    sent = scheme.transmit(images, generator)
    received = phy.AWGN()(sent.symbols, snr_db, generator)
    scheme.key = key
    answer = scheme.receive(received, sent.header).argmax(1)
    scheme.encrypted, scheme.key = True, USER
    return float((answer == labels).double().mean())


def test_both_modes_work_and_a_wrong_key_does_not(trained):
    """400 images, chance 0.2 and standard error 0.02; what a wrong key gives is no better than a biased guess."""
    assert accuracy(trained, USER) > 0.9
    assert accuracy(trained, None, encrypted=False) > 0.9
    assert accuracy(trained, USER, encrypted=False) > 0.9
    for wrong in (None, Key(bytes(32)), Key.for_test(0)):
        assert accuracy(trained, wrong) < 0.45


def test_one_wrong_bit_of_a_session_key_is_not_what_a_wrong_key_is(trained):
    """As the docstring says: near keys give near ciphertexts, so the size of the key space is no argument."""
    bits = session_keys(USER, torch.arange(50), torch.zeros(50, 32))
    near, far = bits.clone(), session_keys(Key.for_test(0), torch.arange(50), torch.zeros(50, 32))
    near[:, 7] *= -1
    features = trained.features(small(50)[0])
    one, close, other = (trained.encryptor(features, trained.key_network(b)) for b in (bits, near, far))
    assert (close - one).square().mean() < 0.2 * (other - one).square().mean()
    assert not torch.equal(close, one)


def test_in_the_clear_it_is_deepjscc_and_the_header_tells_the_mode(trained):
    plain = make(shape=(1, 8, 8), uses=16, scheme="deepjscc").eval()
    plain.load_state_dict({k: v for k, v in trained.state_dict().items() if k in plain.state_dict()})
    images = small(6)[0]
    trained.encrypted = False
    sent = trained.transmit(images, torch.Generator())
    trained.encrypted = True
    assert sent.header is None
    assert torch.equal(sent.symbols, plain.transmit(images, torch.Generator()).symbols)
    received = awgn(sent.symbols, torch.Generator().manual_seed(0))
    assert torch.equal(trained.receive(received, None), plain.receive(received))

    secret = trained.transmit(images, torch.Generator())
    assert secret.header.shape == (6,)
    assert not torch.equal(secret.symbols, sent.symbols)
    assert (phy.mean_power(secret.symbols) - 1).abs().max() < 1e-6
    heard = phy.to_features(secret.symbols)
    assert torch.equal(trained.observe(noiseless(secret.symbols), secret.header, False), heard)
    assert torch.equal(
        trained.observe(noiseless(secret.symbols), secret.header, True), trained.decrypt(heard, secret.header)
    )


@pytest.mark.parametrize("held", [None, Key(bytes(32)), Key.for_test(0)])
def test_no_key_is_a_wrong_key_and_nothing_is_raised(trained, held):
    images = small(4)[0]
    sent = trained.transmit(images, torch.Generator().manual_seed(1))
    received = awgn(sent.symbols, torch.Generator().manual_seed(0))
    right = trained.receive(received, sent.header)
    trained.key = held
    for header in (sent.header, None):
        output = trained.receive(received, header)
        assert output.shape == (4, 5)
        assert output.isfinite().all()
        assert not torch.allclose(output, right, atol=1e-2)
    trained.key = USER


def test_session_keys_are_the_keystream_of_key_and_nonce():
    nonces = torch.tensor([3, 2**63 - 1, 3])
    found = session_keys(USER, nonces, torch.zeros(3, 8))
    for row, nonce in zip(found, nonces.tolist(), strict=True):
        stream = np.frombuffer(USER.keystream(nonce, SESSION_BITS // 8), dtype=np.uint8)
        assert row.tolist() == (1 - 2 * np.unpackbits(stream).astype(float)).tolist()
    many = session_keys(USER, torch.arange(500), torch.zeros(500, 8))
    assert many.mean().abs() < 5 / math.sqrt(many.numel())  # 5 standard errors of fair coins


def test_training_starts_from_a_cipher_that_its_key_undoes_and_no_other():
    """Correlation of features with those deciphered; 5 standard errors of unrelated ones, 100 messages of 64."""
    scheme = make().eval().requires_grad_(False)
    features = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    heard = phy.to_features(scheme.encrypt(features, torch.arange(100)))

    def agreement(other):
        return float(torch.corrcoef(torch.stack([features.flatten(), other.flatten()]))[0, 1])

    assert agreement(scheme.decrypt(heard, torch.arange(100))) > 0.8
    assert abs(agreement(heard)) < 5 / 80 + 0.05  # a fixed part of the map may be seen; none of weight
    scheme.key = Key.for_test(0)
    assert abs(agreement(scheme.decrypt(heard, torch.arange(100)))) < 5 / 80 + 0.05


def test_eve_of_training_is_in_no_part_of_the_link(trained):
    images = small(4)[0]
    answers = []
    for _ in range(2):
        sent = trained.transmit(images, torch.Generator().manual_seed(1))
        received = awgn(sent.symbols, torch.Generator().manual_seed(0))
        answers += [sent.symbols, trained.receive(received, sent.header), trained.observe(received, None, False)]
        before = {k: v.clone() for k, v in trained.adversary.state_dict().items()}
        for tensor in trained.adversary.state_dict().values():
            tensor.copy_(torch.randint(0, 3, tensor.shape))
    trained.adversary.load_state_dict(before)
    assert all(torch.equal(a, b) for a, b in zip(answers[:3], answers[3:], strict=True))
    assert any(name.startswith("adversary.decoder") for name in trained.state_dict()), "or she could not be resumed"
    others = {name.split(".")[0] for name in trained.state_dict()} - {"adversary"}
    assert others == {"encoder", "decoder", "key_network", "encryptor", "decryptor"}


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_every_parameter_gets_gradient_from_its_own_player_and_no_other(kind, shape):
    scheme = make(kind, shape)
    scheme.prepare(torch.rand(20, *shape))
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(6) % 5 if kind == "classify" else torch.ones(6, 5)
    phases = scheme.phases(Optimiser(), awgn, 0.1)
    assert [(phase.name, phase.steps) for phase in phases] == [("transceiver", 1), ("adversary", 5)]
    assert sorted(id(p) for phase in phases for p in phase.parameters) == sorted(map(id, scheme.parameters()))
    hers = set(scheme.adversary.parameters())
    for phase in phases:
        mine = set(phase.parameters)
        assert mine == hers or not mine & hers
        for parameter in scheme.parameters():
            parameter.grad = None
            parameter.requires_grad_(parameter in mine)
        phase.module(images, targets, torch.Generator().manual_seed(2))["loss"].backward()
        for name, parameter in scheme.named_parameters():
            if parameter not in mine:
                assert parameter.grad is None, name
                continue
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
            assert (reached != 0).float().mean() > 0.9, name


def test_the_transceivers_loss_by_hand():
    images, labels = images_of(8)
    for weight in (0.0, 2.5):
        scheme, sent, heard = make(privacy_weight=weight), [], []

        def carry(symbols, generator, sent=sent, heard=heard):
            sent.append(symbols)
            heard.append(awgn(symbols, generator))
            return heard[-1]

        scheme.prepare(images_of(50)[0])
        scheme.eval()
        with torch.no_grad():  # she beats a mean image as far off as this, so the bound is not all that there is
            scheme.adversary.mean_image.fill_(1.0)
        phase = scheme.phases(Optimiser(), carry, 0.0)[0]
        losses = phase.module(images, labels, torch.Generator().manual_seed(2))
        bob, plain, eve = heard
        assert not torch.equal(bob.symbols, eve.symbols), "Eve's noise is her own"
        nonces = torch.randint(2**63 - 1, (8,), generator=torch.Generator().manual_seed(2))
        features = scheme.features(images)
        assert torch.equal(sent[0], scheme.encrypt(features, nonces))
        assert torch.equal(sent[1], phy.to_symbols(features))
        assert torch.equal(sent[2], sent[0])
        task = torch.nn.functional.cross_entropy
        expected = [task(scheme.receive(bob, nonces), labels), task(scheme.receive(plain), labels)]
        drawn = scheme.adversary(scheme.observe(eve, nonces, False))
        bounded = ((drawn - images).square().mean((1, 2, 3)) / (1 - images).square().mean((1, 2, 3))).clamp_max(1)
        expected.append(bounded.mean())
        assert 0 < float(bounded.mean().detach()) < 1
        found = [losses[name] for name in ("encrypted", "plain", "privacy")]
        assert torch.allclose(torch.stack(found), torch.stack(expected), atol=1e-5)
        total = expected[0] + expected[1] + weight * (1 - expected[2])
        assert torch.allclose(losses["loss"], total, atol=1e-5)


def test_eve_listens_to_encrypted_symbols_and_moves_nothing_of_the_transceiver():
    scheme, carried = make(encrypted=False), []

    def carry(symbols, generator):
        carried.append(symbols)
        return awgn(symbols, generator)

    scheme.train()
    eve = scheme.phases(Optimiser(), carry, 0.0)[1]
    before = {k: v.clone() for k, v in scheme.state_dict().items() if not k.startswith("adversary")}
    images, labels = images_of(10)
    eve.module(images, labels, torch.Generator().manual_seed(2))["loss"].backward()
    assert all(torch.equal(v, scheme.state_dict()[k]) for k, v in before.items())
    share = len(carried[0])
    nonces = torch.randint(2**63 - 1, (share,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        scheme.eval()
        assert torch.equal(carried[0], scheme.encrypt(scheme.features(images[:share]), nonces))


def test_the_same_seed_sends_the_same_and_nonces_may_be_given(trained):
    images = small(3)[0]
    sent, again, other = (trained.transmit(images, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(sent.symbols, again.symbols)
    assert len(torch.cat([sent.header, other.header]).unique()) == 6
    assert torch.equal(trained.transmit(images, torch.Generator(), sent.header).symbols, sent.symbols)


def test_bad_input_is_refused_in_one_line():
    for options, message in [
        ({"encrypted": "yes"}, "option encrypted is 'yes': true or false"),
        ({"privacy_weight": -1.0}, "option privacy_weight is -1.0"),
        ({"privacy_weight": math.nan}, "option privacy_weight is nan"),
        ({"adversary_steps": 0}, "option adversary_steps is 0: a whole number of at least 1"),
        ({"restarts": -1}, "option restarts is -1: a whole number of at least 0"),
        ({"uses": 12}, r"^12 channel uses: .*multiple of 8"),
    ]:
        with pytest.raises(SemlinkError, match=message) as caught:
            make(**options)
        assert "\n" not in str(caught.value)
    images, generator = torch.rand(2, 1, 28, 28), torch.Generator()
    scheme = make().eval()
    for nonces in (torch.arange(3), torch.arange(2.0), torch.zeros(2, 1).long()):
        with pytest.raises(SemlinkError, match="one int64 for each of 2 images"):
            scheme.transmit(images, generator, nonces)
        with pytest.raises(SemlinkError, match="one int64 for each of 2 images"):
            scheme.receive(noiseless(torch.zeros(2, 32, dtype=torch.complex64)), nonces)
    with pytest.raises(SemlinkError, match="nonce -1"):
        scheme.transmit(images, generator, torch.tensor([1, -1]))
    with pytest.raises(SemlinkError, match="escs cannot encrypt without its key"):
        make(key=None).transmit(images, generator)
    with pytest.raises(SemlinkError, match="nonces have no meaning in unencrypted mode"):
        make(encrypted=False).transmit(images, generator, torch.arange(2))
    assert make(key=None, encrypted=False).transmit(images, generator).symbols.shape == (2, 32)
