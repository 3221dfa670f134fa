# SPDX-License-Identifier: Apache-2.0
"""Layers over any scheme: undone exactly, gains included; worth what they say and no more."""

import math

import pytest
import torch
from scheme_keys import SINGLE_USER

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone, Optimiser
from semlink.schemes import Design, Key, Task, schemes
from semlink.schemes.key import permutations

USER = Key(bytes(range(50, 82)))
CASES = [
    ("classify", (1, 28, 28)),
    ("classify", (3, 32, 32)),
    ("attributes", (3, 64, 64)),
    ("reconstruct", (3, 32, 32)),
]
LAYERS = [{"shuffle": a, "sign_flips": b} for a in (False, True) for b in (False, True)]
BASES = [key for key in SINGLE_USER if schemes[key].secret is None]
SYMMETRIES = [  # of the square, each as (u, mirrored): x -> u x or u conj(x)
    (u, mirrored) for u in (1, 1j, -1, -1j) for mirrored in (False, True)
]


def make(kind="classify", shape=(1, 28, 28), uses=64, key=USER, scheme="layered", **options):
    torch.manual_seed(0)
    task = Task(kind, shape, 0 if kind == "reconstruct" else 5)
    made = schemes[scheme](Design(task, uses, Backbone(16, 16)), **options)
    if made.secret:
        made.key = key
    return made


def symbols_of(count, uses=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return phy.noise((count, uses), 1.0, generator, torch.device("cpu"))


def received_of(symbols, csi=None, n0=1e-9):
    return phy.Received(symbols, csi, torch.full((len(symbols), 1), n0))


def turned(x, symmetry):
    u, mirrored = symmetry
    return u * (x.conj() if mirrored else x)


@pytest.mark.parametrize("layers", LAYERS)
def test_undone_without_noise_to_the_bit(layers):
    scheme, x, nonces = make(**layers), symbols_of(20), torch.arange(20)
    on_air = scheme.cover(x, nonces, torch.Generator())
    assert torch.equal(scheme.uncover(received_of(on_air), nonces).symbols, x)
    changed = layers["shuffle"] or layers["sign_flips"]
    assert torch.equal(on_air, x) != changed
    assert torch.equal(phy.mean_power(on_air).round(decimals=5), phy.mean_power(x).round(decimals=5))


def test_turns_are_the_eight_symmetries_of_the_square_all_alike():
    """12,800 symbols: each of eight an eighth of the time, within 5 standard errors."""
    scheme, x = make(shuffle=False, sign_flips=True), symbols_of(200)
    on_air = scheme.cover(x, torch.arange(200), torch.Generator())
    found = torch.stack([on_air == turned(x, s) for s in SYMMETRIES])
    assert (found.sum(0) == 1).all()
    counts = found.flatten(1).sum(1)
    assert ((counts - 1600).abs() < 5 * math.sqrt(12800 * 7 / 64)).all()
    # The choices of neighbours, and of the same symbol in the next message, are independent: 1/8 agree.
    which = found.int().argmax(0)
    for one, other in [(which[:, 1:], which[:, :-1]), (which[1:], which[:-1])]:
        share = (one == other).double().mean()
        assert abs(share - 1 / 8) < 5 * math.sqrt(7 / 64 / one.numel())


def test_turns_come_from_the_keystream_behind_the_words_of_the_permutation():
    x, nonce = symbols_of(1), 12345
    stream = USER.keystream(nonce, 8 * 64 + 3 * 64 // 8)[8 * 64 :]
    bits = [byte >> place & 1 for byte in stream for place in range(7, -1, -1)]
    expected = []
    for i, (re, im) in enumerate(torch.view_as_real(x[0]).tolist()):
        swap, negate_re, negate_im = bits[3 * i : 3 * i + 3]
        re, im = (im, re) if swap else (re, im)
        expected.append(complex(-re if negate_re else re, -im if negate_im else im))
    on_air = make(shuffle=False, sign_flips=True).cover(x, torch.tensor([nonce]), torch.Generator())
    assert on_air[0].tolist() == expected
    both = make(sign_flips=True).cover(x, torch.tensor([nonce]), torch.Generator())
    order = permutations(USER, torch.tensor([nonce]), 64)
    turned_first = make(shuffle=False, sign_flips=True).cover(
        x.gather(1, order), torch.tensor([nonce]), torch.Generator()
    )
    assert torch.equal(both, turned_first)


@pytest.mark.parametrize("order", [4, 16, 64])
def test_a_square_constellation_maps_to_itself(order):
    scheme, points = make(shuffle=True, sign_flips=True), phy.qam(order).points
    indices = torch.randint(order, (30, 64), generator=torch.Generator().manual_seed(0))
    on_air = scheme.cover(points[indices], torch.arange(30), torch.Generator())
    assert ((on_air[..., None] - points).abs().amin(-1) == 0).all()
    assert not torch.equal(on_air, points[indices])


def shuffled_and_turned(scheme, x, nonces):
    """What the key does to each message, found out by sending marked symbols: source and symmetry of each position."""
    marks = (1 + torch.arange(x.shape[1]).float() + 0.3j).expand(x.shape).to(torch.complex64)
    on_air = scheme.cover(marks.contiguous(), nonces, torch.Generator())
    images = torch.stack([turned(marks[0], s) for s in SYMMETRIES])  # (8, n)
    same = on_air[:, :, None, None] == images
    return same.any(2).int().argmax(-1), same.any(3).int().argmax(-1)


@pytest.mark.parametrize("block", ["image", "symbol"])
@pytest.mark.parametrize("noise", ["none", "gaussian"])
def test_exact_over_fading_by_hand(block, noise):
    """y_p = h_p (T(x_s) + w) / c + n_p, undone: h' x_s + n', h' = h_p or its conjugate, at one noise variance."""
    scheme, snr_db = make(sign_flips=True, noise=noise), torch.tensor([5.0, 10.0, 0.0])
    x, nonces = symbols_of(3, seed=1), torch.tensor([5, 9, 2**62])
    source, symmetry = shuffled_and_turned(make(sign_flips=True), x, nonces)
    on_air = scheme.cover(x, nonces, torch.Generator().manual_seed(4))
    received = phy.Rayleigh(block)(on_air, snr_db, torch.Generator().manual_seed(3))
    undone = scheme.uncover(received, nonces)
    h, got_h = (c.expand(3, 64) for c in (received.csi, undone.csi))
    v = scheme.noise_power
    for row in range(3):
        assert sorted(source[row].tolist()) == list(range(64))
        own = 10 ** (-float(snr_db[row]) / 10) * (1 + v)
        assert undone.noise_variance[row].tolist() == pytest.approx([own + v] * undone.noise_variance.shape[1])
        for p in range(64):
            s, (u, mirrored) = int(source[row, p]), SYMMETRIES[int(symmetry[row, p])]
            there, y = complex(h[row, p]), complex(received.symbols[row, p]) * math.sqrt(1 + v)
            level = math.sqrt((own + v) / (own + v * abs(there) ** 2))
            at = there.conjugate() if mirrored else there
            assert abs(complex(got_h[row, s]) - level * at) < 1e-5
            extra = y - there * complex(turned(x[row, s], (u, mirrored)))  # h w + n c, of variance own + |h|^2 V
            turned_back = u * extra.conjugate() if mirrored else complex(u).conjugate() * extra
            assert abs(complex(undone.symbols[row, s]) - level * (at * complex(x[row, s]) + turned_back)) < 1e-5


def test_noise_variances_of_their_own_travel_with_their_symbols():
    scheme, x, nonces = make(), symbols_of(2), torch.arange(2)
    source, _ = shuffled_and_turned(scheme, x, nonces)
    n0 = torch.rand(2, 64)
    undone = scheme.uncover(phy.Received(scheme.cover(x, nonces, torch.Generator()), None, n0), nonces)
    assert torch.equal(undone.noise_variance.gather(1, source), n0)


def warmed(scheme):
    scheme.train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _ in range(5):
            sent = scheme.transmit(torch.rand(16, *scheme.design.task.image_shape, generator=generator), generator)
            scheme.receive(phy.AWGN()(sent.symbols, 12.0, generator), sent.header)
    return scheme.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def twins():
    layered = warmed(make(sign_flips=True))
    return layered.base, layered


def test_turned_noise_gives_the_logits_of_the_base_to_the_bit(twins):
    plain, layered = twins
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    sent, open_ = layered.transmit(images, torch.Generator().manual_seed(0)), plain.transmit(images, torch.Generator())
    noise = 0.3 * symbols_of(6, seed=2)
    turned_noise = layered.cover(noise, sent.header[:, 0], torch.Generator())
    found = layered.receive(received_of(sent.symbols + turned_noise), sent.header)
    assert torch.equal(found, plain.receive(received_of(open_.symbols + noise)))
    assert not torch.equal(layered.receive(received_of(sent.symbols + noise), sent.header), found)


@pytest.mark.parametrize("channel", [phy.AWGN(), phy.Rayleigh("image"), phy.Rayleigh("symbol")])
def test_utility_is_the_same_in_distribution(twins, channel):
    """Mean and mean square of each logit of 6 images over 400 draws, within 5 standard errors."""
    plain, layered = twins
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    open_ = plain.transmit(images, torch.Generator()).symbols.repeat(400, 1)
    generator, nonces, values = torch.Generator().manual_seed(7), torch.arange(2400), []
    for received in (
        channel(open_, 0.0, generator),
        layered.uncover(channel(layered.cover(open_, nonces, generator), 0.0, generator), nonces),
    ):
        output = plain.receive(received).double()
        values.append(torch.cat([output, output.square()], 1).unflatten(0, (400, 6)))
    one, other = (v.mean(0) for v in values)
    assert ((one - other).abs() <= 5 * sum(v.var(0) / 400 for v in values).sqrt()).all()


@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
@pytest.mark.parametrize("channel", [phy.AWGN(), phy.Rayleigh("symbol")])
def test_noise_has_its_law_its_power_and_a_constant_that_keeps_the_mean_energy(noise, channel):
    """64,000 symbols of unit energy; 5 standard errors."""
    scheme = make(shuffle=False, noise=noise, noise_scale=0.8)
    assert scheme.noise_power == pytest.approx(0.64)
    x = torch.polar(torch.ones(1000, 64), 6.28 * torch.rand(1000, 64, generator=torch.Generator().manual_seed(1)))
    generator, nonces = torch.Generator().manual_seed(2), torch.arange(1000)
    on_air = scheme.cover(x, nonces, generator)
    energy = phy.mean_power(on_air).double()
    assert abs(energy.mean() - 1) < 5 * energy.std() / math.sqrt(1000)
    w = torch.view_as_real(on_air * math.sqrt(1.64) - x).double().flatten()
    fourth, squares = w**4, w.square()
    assert abs(squares.mean() - 0.32) < 5 * squares.std() / math.sqrt(len(w))
    kurtosis = {"laplace": 6, "gaussian": 3}[noise] * 0.32**2
    assert abs(fourth.mean() - kurtosis) < 5 * fourth.std() / math.sqrt(len(w))
    assert abs((w[::2] * w[1::2]).mean()) < 5 * 0.32 / math.sqrt(len(w) / 2)

    undone = scheme.uncover(channel(on_air, 6.0, generator), nonces)
    h = 1 if undone.csi is None else undone.csi
    error = torch.view_as_real(undone.symbols - h * x).double().square().sum(-1) - undone.noise_variance
    assert abs(error.mean()) < 5 * error.std() / math.sqrt(error.numel())
    assert undone.noise_variance.flatten().tolist() == pytest.approx([1.64 * 10**-0.6 + 0.64] * 1000)


def test_noise_is_drawn_anew_from_the_generator_and_known_to_no_receiver():
    scheme = make(shuffle=False, noise="laplace", key=None)
    images = torch.rand(2, 1, 28, 28)
    sent, again, other = (scheme.eval().transmit(images, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(sent.symbols, again.symbols)
    assert not torch.equal(sent.symbols, other.symbols)
    assert torch.equal(
        scheme.observe(received_of(sent.symbols), sent.header, True),
        scheme.observe(received_of(sent.symbols), sent.header, False),
    )


@pytest.mark.parametrize("base", BASES)
def test_any_scheme_without_a_key_trains_and_answers_inside(base):
    scheme = make(shape=(3, 32, 32), base=base, sign_flips=True, noise="gaussian", noise_scale=0.1)
    scheme.prepare(torch.rand(20, 3, 32, 32))
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6) % 5
    for phase in scheme.phases(Optimiser(), lambda x, g: phy.AWGN()(x, 12.0, g), 0.1):
        mine = set(phase.parameters)
        for parameter in scheme.parameters():
            parameter.grad = None
            parameter.requires_grad_(parameter in mine)
        losses = phase.module(images, labels, torch.Generator().manual_seed(2))
        assert math.isfinite(float(losses["loss"].detach()))
        losses["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in mine)
        phase.optimiser.rate_at(0.5)
    scheme.eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        sent = scheme.transmit(images, generator)
        assert sent.channel_uses == 64
        assert sent.payload_bits == scheme.base.transmit(images, generator).payload_bits
        received = phy.Rayleigh("symbol")(sent.symbols, 12.0, generator)
        assert scheme.receive(received, sent.header).shape == (6, 5)
        assert scheme.observe(received, sent.header, True).shape == (6, 128)
        assert scheme.observe(received, sent.header, False).shape == (6, 128)
        scheme.key = None
        assert scheme.receive(received, sent.header).shape == scheme.receive(received).shape == (6, 5)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_every_parameter_gets_gradient(kind, shape):
    scheme = make(kind, shape, sign_flips=True, noise="laplace")
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(6) % 5 if kind == "classify" else torch.ones(6, 5)
    (phase,) = scheme.phases(Optimiser(), lambda x, g: phy.Rayleigh()(x, 12.0, g), 0.1)
    phase.module(images, targets, torch.Generator().manual_seed(2))["loss"].backward()
    assert {id(p) for p in phase.parameters} == {id(p) for p in scheme.parameters()}
    for name, parameter in scheme.named_parameters():
        assert parameter.grad is not None, name
        reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad
        assert (reached != 0).float().mean() > 0.9, name


def test_over_a_silent_channel_the_layers_train_as_the_base_does():
    scheme = make(sign_flips=True).eval()
    images, labels = torch.rand(6, 1, 28, 28), torch.arange(6) % 5
    grads = []
    for owner in (scheme, scheme.base):
        scheme.zero_grad()
        (phase,) = owner.phases(Optimiser(), lambda x, g: received_of(x), 0.1)
        loss = phase.module(images, labels, torch.Generator().manual_seed(2))["loss"]
        loss.backward()
        grads.append([loss.detach(), *(p.grad.clone() for p in scheme.parameters())])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("held", [None, Key(bytes(32)), Key.for_test(0)])
def test_without_the_key_symbols_are_unrelated_and_nothing_is_raised(held):
    """Correlation of 40 x 64 symbols of mean 0 with what is undone: 5 standard errors."""
    scheme, x, nonces = make(sign_flips=True), symbols_of(40), torch.arange(40)
    on_air = received_of(scheme.cover(x, nonces, torch.Generator()))
    scheme.key = held
    seen = scheme.uncover(on_air, nonces).symbols
    assert abs((seen * x.conj()).mean()) < 5 / math.sqrt(40 * 64)
    assert scheme.eval().receive(on_air, nonces[:, None]).isfinite().all()
    assert torch.equal(scheme.uncover(on_air, None).symbols, on_air.symbols)
    scheme.key = USER
    assert (scheme.uncover(on_air, nonces).symbols * x.conj()).mean().real > 0.9


def explained(clear, seen, split):
    """Fit seen -> clear, linear over the reals, on the first ``split`` messages; share of variance in the rest."""
    clear, seen = (torch.view_as_real(v).flatten(1).double() for v in (clear, seen))
    fitted = torch.linalg.lstsq(seen[:split], clear[:split]).solution
    residual = clear[split:] - seen[split:] @ fitted
    return 1 - float(residual.square().mean() / clear[split:].square().mean())


def test_known_plaintexts_break_a_fixed_nonce_and_not_fresh_ones():
    x, generator = symbols_of(200, 16), torch.Generator().manual_seed(3)
    share = {}
    for fresh in (False, True):
        scheme = make(uses=16, sign_flips=True, fresh=fresh).eval()
        sent = scheme.transmit(torch.rand(200, 1, 28, 28, generator=generator), generator)
        nonces = sent.header[:, 0]
        assert len(nonces.unique()) == (200 if fresh else 1)
        share[fresh] = explained(x, scheme.cover(x, nonces, generator), 150)
    assert share[False] > 0.999
    assert share[True] < 0.1


def test_what_is_still_seen_without_the_key():
    x, nonces = symbols_of(10), torch.arange(10)
    shuffled = make().cover(x, nonces, torch.Generator())
    assert torch.equal(shuffled.real.sort(1).values, x.real.sort(1).values)
    both = make(sign_flips=True).cover(x, nonces, torch.Generator())
    magnitudes = [torch.view_as_real(v).abs().sort(-1).values.amax(-1).sort(1).values for v in (both, x)]
    assert torch.equal(*magnitudes)
    alone = make(shuffle=False, sign_flips=True).cover(x, nonces, torch.Generator())
    assert torch.equal(*(torch.view_as_real(v).abs().sort(-1).values for v in (alone, x)))


def test_observe_with_and_without_the_key(twins):
    plain, layered = twins
    images = torch.rand(4, 1, 28, 28)
    sent = layered.transmit(images, torch.Generator())
    code = plain.transmit(images, torch.Generator()).symbols
    received = received_of(sent.symbols)
    assert torch.equal(layered.observe(received, sent.header, True), phy.to_features(code))
    assert torch.equal(layered.observe(received, sent.header, False), phy.to_features(sent.symbols))
    noisy = make(noise="gaussian", noise_scale=0.5)
    without = noisy.observe(received, sent.header, False)
    assert torch.allclose(without, phy.to_features(sent.symbols) * math.sqrt(1.25)), "the constant is public"


@pytest.mark.parametrize(
    "header",
    [None, torch.rand(3), torch.rand(3, 1), torch.rand(3, 4).double(), torch.tensor([2**62 + 1, -5, 0])],
)
def test_a_header_of_the_base_travels_with_the_nonces(header):
    from semlink.schemes.layered import _pack, _unpack

    nonces = torch.tensor([0, 2**63 - 1, 7])
    packed = _pack(nonces, header)
    assert packed.dtype == torch.int64
    assert len(packed) == 3
    found, of_base = _unpack(packed, torch.device("cpu"))
    assert torch.equal(found, nonces)
    if header is None:
        assert of_base is None
    else:
        assert of_base.dtype == header.dtype
        assert torch.equal(of_base, header)


def test_vl_vfe_inside_reads_its_own_header():
    scheme = warmed(make(base="vl-vfe", sign_flips=True))
    scheme.base.told_snr_db = 4.0
    images = torch.rand(3, 1, 28, 28)
    sent, own = scheme.transmit(images, torch.Generator()), scheme.base.transmit(images, torch.Generator())
    assert sent.header.shape == (3, 3)
    expected = scheme.base.receive(received_of(own.symbols), own.header)
    assert torch.equal(scheme.receive(received_of(sent.symbols), sent.header), expected)


def test_the_same_seed_sends_the_same_and_nonces_may_be_given():
    scheme, images = make(sign_flips=True, noise="laplace").eval(), torch.rand(3, 1, 28, 28)
    sent, again, other = (scheme.transmit(images, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(sent.symbols, again.symbols)
    assert len(torch.cat([sent.header, other.header]).unique()) == 6
    plain = make(sign_flips=True).eval()
    given = [plain.transmit(images, torch.Generator().manual_seed(s), torch.arange(3)).symbols for s in (0, 1)]
    assert torch.equal(*given)


def test_bad_input_is_refused_in_one_line():
    for options, message in [
        ({"base": "deepjsc"}, "unknown scheme 'deepjsc'; did you mean 'deepjscc'"),
        ({"base": "deepjscc-encryption"}, "base is 'deepjscc-encryption', which has a key of its own"),
        ({"base": 7}, "unknown scheme '7'"),
        ({"base": "layered"}, "base is 'layered', which has a key of its own"),
        ({"shuffle": "no"}, "option shuffle is 'no': true or false"),
        ({"sign_flips": 1}, "option sign_flips is 1: true or false"),
        ({"fresh": None}, "option fresh is None: true or false"),
        ({"noise": "laplase"}, "unknown noise 'laplase'; did you mean 'laplace'"),
        ({"noise": "laplace", "noise_scale": -0.5}, "option noise_scale is -0.5: a finite number above 0"),
        ({"noise": "gaussian", "noise_scale": math.inf}, "option noise_scale is inf"),
        ({"noise_scale": 0.5}, "option noise_scale has no meaning without noise"),
        ({"beta": 1.0}, "unknown option of deepjscc 'beta'; known: none"),
        ({"base": "vfe", "beta": -1.0}, "option beta is -1.0"),
        ({"uses": 12}, r"^12 channel uses: .*multiple of 8"),
    ]:
        with pytest.raises(SemlinkError, match=message) as caught:
            make(**options)
        assert "\n" not in str(caught.value)
    images, generator = torch.rand(2, 1, 28, 28), torch.Generator()
    for layers in LAYERS[1:]:
        with pytest.raises(SemlinkError, match="layered cannot transmit without its key"):
            make(key=None, **layers).transmit(images, generator)
    scheme = make().eval()
    for nonces in (torch.arange(3), torch.arange(2.0), torch.zeros(2, 1).long()):
        with pytest.raises(SemlinkError, match="one int64 for each of 2 images"):
            scheme.transmit(images, generator, nonces)
    with pytest.raises(SemlinkError, match="nonce -1"):
        scheme.transmit(images, generator, torch.tensor([1, -1]))
    received = received_of(symbols_of(2))
    for header in (torch.arange(2), torch.rand(2, 1), torch.zeros(2, 0).long()):
        with pytest.raises(SemlinkError, match=r"header of shape .*what transmit returned"):
            scheme.receive(received, header)
    for code in ([9, 9], [0, 1], [-1, -1]):
        with pytest.raises(SemlinkError, match="hand the header on as it came"):
            scheme.receive(received, torch.tensor([[0, code[0], 0], [1, code[1], 0]]))
