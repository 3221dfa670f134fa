# SPDX-License-Identifier: Apache-2.0
"""Schemes of K users on one interference channel: who may know what, and what each front end computes.

Statistical tests use fixed seeds and allow four standard errors.
"""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from scheme_keys import NETWORKS
from scipy.special import exp1

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone, Optimiser
from semlink.schemes import Design, Network, Task, adaptive_precoding, schemes
from semlink.schemes.network import State, user_losses
from semlink.schemes.semi_conventional import Precoded, extended

CPU = torch.device("cpu")
SHAPE, USES = (1, 6, 6), 8
SILENT = 300.0  # dB: the noise vanishes
PRECODED = [key for key in NETWORKS if issubclass(schemes[key], Precoded)]
every_network = pytest.mark.parametrize("key", NETWORKS)
every_precoded = pytest.mark.parametrize("key", PRECODED)
some_users = pytest.mark.parametrize("users", [1, 2, 3, 5])
#: Whose blocks have the energy that equation 2 asks for exactly; precoders may leave some of it unused.
EXACT = [key for key in NETWORKS if key not in PRECODED]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Designs that are half done: nothing here asks how good they are."""
    monkeypatch.setattr(adaptive_precoding, "ITERATIONS", 15)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(key, users=2, kind="reconstruct", uses=USES, seed=0, **options):
    torch.manual_seed(seed)
    task = Task(kind, SHAPE, 0 if kind == "reconstruct" else 5)
    if issubclass(schemes[key], Precoded):
        options = {"bank": 6} | options
    return schemes[key](Design(task, uses, Backbone(16, 16)), users=users, **{"width": 16} | options)


def groups(count, users, seed=1):
    return torch.rand(count, users, *SHAPE, generator=seeded(seed))


def states(scheme, count, snr_db=10.0, seed=2):
    return scheme.prepared(scheme.draw(count, snr_db, seeded(seed), CPU))


def complex_normal(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.complex64, generator=seeded(seed))


def energy(z):
    return torch.view_as_real(z).double().square().sum(-1)


def assert_means(samples, expected):
    """Means over the first axis, all within four standard errors."""
    samples, expected = samples.double(), torch.as_tensor(expected).double()
    error = samples.std(0) / math.sqrt(len(samples))
    off = ((samples.mean(0) - expected).abs() / error).max()
    assert off < 4, f"{float(off):.1f} standard errors off"


# What every scheme of several users keeps


@every_network
@some_users
def test_shapes_and_that_delivery_is_encode_send_receive(key, users):
    scheme = make(key, users).eval()
    images, state = groups(3, users), states(scheme, 3)
    with torch.no_grad():
        sent = scheme.transmit(images, seeded(0), state)
        assert (sent.symbols.shape, sent.symbols.dtype) == ((3, users, 2, USES), torch.complex64)
        assert (sent.channel_uses, sent.payload_bits, sent.header) == (USES, None, None)
        received = scheme.carry(sent.symbols, state, seeded(4))
        assert received.symbols.shape == (3, users, 2, USES)
        output = scheme.receive(received, sent.header, state)
        assert output.shape == images.shape
        assert output.isfinite().all()
        assert torch.equal(output, scheme.deliver(images, state, seeded(4)))
    assert scheme.group_shape == images.shape[1:]


@pytest.mark.parametrize("key", [key for key in NETWORKS if key != "interference-free"])
@pytest.mark.parametrize(("transmit", "receive"), [(1, 1), (3, 2), (2, 4)])
def test_any_number_of_antennas(key, transmit, receive):
    scheme = make(key, 2, transmit_antennas=transmit, receive_antennas=receive).eval()
    state = states(scheme, 2)
    with torch.no_grad():
        sent = scheme.transmit(groups(2, 2), seeded(0), state)
        assert sent.symbols.shape == (2, 2, transmit, USES)
        assert scheme.carry(sent.symbols, state, seeded(0)).symbols.shape == (2, 2, receive, USES)
        assert scheme.deliver(groups(2, 2), state, seeded(0)).shape == (2, 2, *SHAPE)


@pytest.mark.parametrize(("transmit", "receive"), [(3, 2), (2, 4)])
def test_the_bound_takes_any_number_of_antennas(transmit, receive):
    scheme = make("interference-free", 2, transmit_antennas=transmit, receive_antennas=receive)
    assert scheme.deliver(groups(2, 2), states(scheme, 2), seeded(0)).shape == (2, 2, *SHAPE)


@every_network
@some_users
@pytest.mark.parametrize("options", [{}, {"transmit_antennas": 3, "receive_antennas": 3}])
def test_the_energy_of_each_users_block(key, users, options):
    scheme = make(key, users, **options).eval()
    images = groups(4, users)
    images[0] *= 1e-3
    images[1, 0] = 1
    state = states(scheme, 4, torch.tensor([-5.0, 0.0, 5.0, 20.0]))
    with torch.no_grad():
        spent = energy(scheme.transmit(images, seeded(0), state).symbols).sum((2, 3))
    allowed = scheme.medium.transmit_antennas * USES
    if key in EXACT:
        assert (spent / allowed - 1).abs().max() < 1e-5
    else:
        assert spent.max() < allowed * (1 + 1e-5)
        assert spent.min() > 0


@every_precoded
def test_two_streams_never_spend_more_either_not_even_alike_ones(key):
    scheme = make(key, 2, streams=2).eval()
    state = states(scheme, 3)
    with torch.no_grad():
        spent = energy(scheme.transmit(groups(3, 2), seeded(0), state).symbols).sum((2, 3))
        assert spent.max() < 2 * USES * (1 + 1e-5)
        one = torch.randn(3, 2, 1, 2 * USES, generator=seeded(3))
        opposite = torch.cat([one, -one], 2).flatten(2)
        alike = torch.cat([one, one], 2).flatten(2)
        spent = torch.stack([energy(scheme.precode(reals, state)).sum((2, 3)) for reals in (alike, opposite)])
        # V s and V s' of the two together spend what the columns of V do: one of them is cut to the limit.
        whole = 2 * energy(state.precoders).sum((2, 3)) * USES
    assert spent.max() < 2 * USES * (1 + 1e-5)
    assert (spent.sum(0) <= whole * (1 + 1e-5)).all()
    assert (spent.amax(0) > 2 * USES * (1 - 1e-5)).any()


@every_network
@pytest.mark.parametrize("kind", ["reconstruct", "classify", "attributes"])
@pytest.mark.parametrize("users", [1, 3])
def test_every_weight_of_every_user_gets_gradient(key, kind, users):
    scheme = make(key, users, kind)
    scheme.prepare(groups(4, users))
    scheme.train()
    (phase,) = scheme.phases(Optimiser(), lambda symbols, generator: pytest.fail("the channel is its own"), 0.1)
    assert {id(p) for p in phase.parameters} == {id(p) for p in scheme.parameters()}
    targets = torch.arange(16 * users).reshape(16, users) % 5
    if kind == "attributes":
        targets = torch.randint(0, 2, (16, users, 5), generator=seeded(2)).float()
    losses = phase.module(groups(16, users), targets, seeded(2))
    assert set(losses) == {"loss", "best_user", "worst_user"}
    losses["loss"].backward()
    for name, parameter in scheme.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert len(parameter) == users, name
        for k, own in enumerate(parameter.grad):
            # All but weights between units that no image of these switches on
            assert (own != 0).float().mean() > 0.25, f"{name} of user {k}"


@every_network
def test_users_share_no_weights(key):
    """The loss of one user moves its transmitter and receiver, and of the others nothing but transmitters."""
    scheme = make(key, 3).eval()
    images, state = groups(8, 3), states(scheme, 8)
    scheme.user_losses_of(scheme.deliver(images, state, seeded(0)), images, images, 0.0)[1].backward()
    for name, parameter in scheme.named_parameters():
        moved = [bool((own != 0).any()) for own in parameter.grad]
        assert moved[1], name
        if "decoder" in name:
            assert moved == [False, True, False], name


@every_network
def test_what_is_known_of_the_channels_is_all_that_anybody_looks_at(key):
    scheme = make(key, 2).eval()
    images, drawn = groups(3, 2), scheme.draw(3, 10.0, seeded(2), CPU)
    state = scheme.prepared(drawn)
    blind = scheme.prepared(replace(drawn, gains=torch.full_like(drawn.gains, torch.nan)))
    with torch.no_grad():
        sent = scheme.transmit(images, seeded(0), state)
        assert torch.equal(scheme.transmit(images, seeded(0), blind).symbols, sent.symbols)
        received = scheme.carry(sent.symbols, state, seeded(1))
        assert torch.equal(scheme.receive(received, None, blind), scheme.receive(received, None, state))


@pytest.mark.parametrize(
    ("key", "transmitter", "receiver"),
    [
        ("csi-free", False, False),
        ("irsc-csir", False, True),
        ("irsc-csitr", True, True),
        ("interference-free", False, False),
        ("dispersion", False, True),
        ("semi-conventional", True, True),
        ("adaptive-precoding", True, True),
    ],
)
def test_who_is_told_the_channels(key, transmitter, receiver):
    scheme = make(key, 2).eval()
    images, one, other = groups(4, 2), states(scheme, 4, seed=2), states(scheme, 4, seed=3)
    with torch.no_grad():
        sent = [scheme.transmit(images, seeded(0), state).symbols for state in (one, other)]
        assert (not torch.equal(*sent)) == transmitter
        if not transmitter:
            assert torch.equal(scheme.transmit(images, seeded(0)).symbols, sent[0])
        heard = scheme.carry(sent[0], one, seeded(1))
        told = [replace(heard, csi=state.known) for state in (one, other)]
        outputs = [scheme.receive(each, None, state) for each, state in zip(told, (one, other), strict=True)]
        assert (not torch.equal(*outputs)) == receiver
        if not receiver:
            assert torch.equal(scheme.receive(phy.Received(heard.symbols, None, heard.noise_variance)), outputs[0])
    assert scheme.feedback == transmitter
    assert scheme.describe() == {
        "users": 2,
        "antennas": [2, 2],
        "pilot_uses": 4 if receiver else 0,
        "feedback_reals": 32 if transmitter else 0,
        "user_weights": [0.5, 0.5],
    } | ({"streams": 1, "span": 1, "alignment_feasible": True} if key in PRECODED else {})


@pytest.mark.parametrize(
    ("key", "users", "options", "said"),
    [
        ("semi-conventional", 3, {}, (1, 1, True)),
        ("semi-conventional", 4, {}, (1, 1, False)),
        ("semi-conventional", 2, {"streams": 2}, (2, 1, False)),
        ("adaptive-precoding", 5, {}, (2, 4, True)),
        ("adaptive-precoding", 5, {"streams": 3, "span": 4}, (3, 4, False)),
    ],
)
def test_a_precoding_scheme_says_whether_alignment_is_feasible(key, users, options, said):
    described = make(key, users, **options).describe()
    assert (described["streams"], described["span"], described["alignment_feasible"]) == said


@pytest.mark.parametrize("key", ["irsc-csir", "irsc-csitr"])
def test_every_gain_of_the_whole_network_is_fed_to_every_decoder(key):
    scheme = make(key, 3).eval()
    images, state = groups(1, 3), states(scheme, 1)
    known = state.known.clone().requires_grad_()
    told = replace(state, known=known)
    received = scheme.carry(scheme.transmit(images, seeded(0), state).symbols, state, seeded(1))
    for k in range(3):
        (slope,) = torch.autograd.grad(scheme.receive(received, None, told)[:, k].sum(), known)
        assert (torch.view_as_real(slope) != 0).all()
    assert scheme.csi_features == 2 * 9 * 4


def test_the_neighbour_of_a_receiver_that_is_told_its_own_gains_knows_no_others():
    scheme = make("irsc-csir", 3, local=True).eval()
    images, state = groups(2, 3), states(scheme, 2)
    received = scheme.carry(scheme.transmit(images, seeded(0), state).symbols, state, seeded(1))
    heard = scheme.listen(received, state)
    assert heard.shape == (2, 3, 2 * 2 * USES + 2 * 3 * 4)
    for k in range(3):  # the receiver before user k
        assert torch.equal(heard[:, k, -24:], torch.view_as_real(state.known[:, k - 1]).flatten(1))


@every_network
def test_the_same_channel_for_all_where_it_never_fades(key):
    scheme = make(key, 2, fading="never")
    gains = torch.cat([states(scheme, 3, seed=seed).gains for seed in (1, 2)])
    assert torch.equal(gains, gains[:1].expand_as(gains))
    scheme.prepare(groups(2, 2))
    trained = scheme.training_state(5, seeded(3), CPU)
    assert torch.equal(trained.gains, gains[:1].expand(5, -1, -1, -1, -1))
    assert len(trained.snr_db.unique()) > 1
    assert scheme.deliver(groups(5, 2), trained, seeded(4)).isfinite().all()


@every_network
def test_one_channel_a_batch_is_another_in_the_next(key):
    if key in PRECODED:
        with pytest.raises(SemlinkError, match=r"^fading is 'batch': this scheme designs for each channel of a bank"):
            make(key, 2, fading="batch")
        return
    scheme, source = make(key, 2, fading="batch"), seeded(1)
    one, other = (scheme.training_state(3, source, CPU).gains for _ in range(2))
    assert torch.equal(one, one[:1].expand_as(one))
    assert not torch.equal(one[0], other[0])
    error = make(key, 2, fading="batch", csi_error=0.1).draw(3, 10.0, source, CPU)
    assert not torch.equal(error.known[0], error.known[1])  # pilots are heard anew each time


def test_the_bound_hears_what_was_sent_and_nobody_else():
    scheme = make("interference-free", 3).eval()
    images, one, other = groups(4, 3), states(scheme, 4, -20.0, seed=2), states(scheme, 4, 20.0, seed=3)
    with torch.no_grad():
        output = scheme.deliver(images, one, seeded(0))
        assert torch.equal(output, scheme.deliver(images, other, seeded(1)))
        images[:, 1:] = torch.rand(images[:, 1:].shape, generator=seeded(7))
        changed = scheme.deliver(images, one, seeded(0))
    assert torch.equal(output[:, 0], changed[:, 0])
    assert not torch.equal(output[:, 1:], changed[:, 1:])


@every_network
def test_delivery_repeats_under_a_generator(key):
    network = Network(make(key, 2), 5.0)
    images = groups(3, 2)
    one, again, other = (network.deliver(images, 5.0, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (key == "interference-free")
    assert one.shape == images.shape
    assert not one.requires_grad
    assert (one >= 0).all()
    assert (one <= 1).all()


@pytest.mark.parametrize("csi_error", [0.0, 0.2])
def test_all_schemes_meet_the_same_channels_and_the_same_noise(csi_error):
    """Comparisons between them are paired."""
    met = []
    for key in NETWORKS:
        scheme = make(key, 3, csi_error=csi_error).eval()
        generator = seeded(5)
        state = scheme.prepared(scheme.draw(4, 10.0, generator, CPU))
        symbols = scheme.transmit(groups(4, 3), generator, state).symbols
        follows = torch.rand(3, generator=generator.clone_state())
        heard = phy.Interference(3, 2, 2)(symbols, state.gains, SILENT, seeded(0))
        met.append((state.gains, state.known, follows, scheme.carry(symbols, state, generator).symbols - heard))
    for (gains, known, follows, noise), key in zip(met, NETWORKS, strict=True):
        assert torch.equal(gains, met[0][0])
        assert torch.equal(known, met[0][1])
        assert torch.equal(follows, met[0][2]), f"{key} transmits with the generator of the channels"
        if key != "interference-free":
            assert torch.allclose(noise, met[0][3], atol=1e-4)


@every_network
def test_the_channels_of_a_network_are_those_of_the_medium(key):
    scheme = make(key, 3, cross_gain_db=-6.0)
    level = torch.linspace(-5, 20, 200)
    state = scheme.draw(200, level, seeded(0), CPU)
    assert torch.equal(state.gains, phy.Interference(3, 2, 2, -6.0).draw(200, seeded(0)))
    assert state.known is state.gains
    assert torch.equal(state.snr_db, level)
    assert torch.allclose(state.noise_variance[:, 0], 10 ** (-level / 10))
    part = state.of(torch.tensor([5, 3]))
    assert torch.equal(part.gains, state.gains[[5, 3]])
    assert torch.equal(part.snr_db, level[[5, 3]])
    assert part.precoders is None


@pytest.mark.parametrize("key", EXACT)
def test_training_draws_its_snr_uniformly_in_decibels(key):
    scheme = make(key, 2, snr_low_db=-10.0, snr_high_db=30.0)
    found = scheme.training_state(4000, seeded(0), CPU)
    assert -10 <= found.snr_db.min() < -9.8
    assert 29.8 < found.snr_db.max() <= 30
    assert_means(found.snr_db, 10.0)
    assert_means((found.snr_db - 10).square(), 40**2 / 12)
    assert_means(energy(found.gains).flatten(1), torch.ones(16))
    assert make(key, snr_low_db=3.0, snr_high_db=3.0).training_state(5, seeded(0), CPU).snr_db.tolist() == [3.0] * 5


@every_network
@pytest.mark.parametrize("kind", ["classify", "attributes"])
def test_other_tasks_have_logits_for_every_user(key, kind):
    network = Network(make(key, 3, kind), 10.0)
    output = network.deliver(groups(4, 3), 10.0, seeded(0))
    assert output.shape == (4, 3, 5)
    assert output.abs().max() < 10  # logits, neither squashed nor clamped
    assert output.min() < 0


# The loss: equations 6 and 7


def test_equation_6_is_the_weighted_sum_of_the_users_losses():
    scheme = make("csi-free", 3)
    assert scheme.user_weights.tolist() == pytest.approx([1 / 3] * 3)
    scheme.user_weights.copy_(torch.tensor([0.5, 0.3, 0.2]))
    losses = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    weighted = scheme.weigh(losses)
    assert float(weighted.detach()) == pytest.approx(0.5 + 0.6 + 1.2)
    (slope,) = torch.autograd.grad(weighted, losses)
    assert slope.tolist() == pytest.approx([0.5, 0.3, 0.2])  # the weights are constants


def test_equation_7_per_step():
    scheme = make("csi-free", 3, fairness="step")
    steps = [torch.tensor(each) for each in ([1.0, 2.0, 5.0], [4.0, 3.0, 1.0], [1.0, 1.0, 2.0])]
    found = [float(scheme.weigh(losses)) for losses in steps]
    assert found == pytest.approx([8 / 3, (4 * 1 + 3 * 2 + 1 * 5) / 8, (1 * 4 + 1 * 3 + 2 * 1) / 8])
    assert scheme.user_weights.tolist() == pytest.approx([0.25, 0.25, 0.5])
    scheme.eval()
    scheme.weigh(torch.tensor([9.0, 0.0, 0.0]))  # a validation loss changes nothing
    assert scheme.user_weights.tolist() == pytest.approx([0.25, 0.25, 0.5])


def test_weights_per_step_let_the_gradient_through():
    scheme = make("csi-free", 3, fairness="step")
    losses = torch.tensor([1.0, 2.0, 5.0], requires_grad=True)
    scheme.weigh(losses).backward()
    assert losses.grad.tolist() == pytest.approx([1 / 3] * 3)  # the weights of before


def test_equation_7_per_epoch():
    scheme = make("csi-free", 3, fairness="epoch")
    for losses in ([1.0, 2.0, 5.0], [4.0, 3.0, 1.0]):
        assert float(scheme.weigh(torch.tensor(losses))) == pytest.approx(sum(losses) / 3)
        scheme.train()  # again: no end of an epoch
    scheme.eval()
    assert scheme.user_weights.tolist() == pytest.approx([5 / 16, 5 / 16, 6 / 16])
    scheme.weigh(torch.tensor([9.0, 0.0, 0.0]))
    scheme.train()
    scheme.eval()  # an epoch without a loss
    assert scheme.user_weights.tolist() == pytest.approx([5 / 16, 5 / 16, 6 / 16])
    scheme.train()
    assert float(scheme.weigh(torch.tensor([1.0, 0.0, 3.0]))) == pytest.approx(5 / 16 + 18 / 16)
    scheme.eval()
    assert scheme.user_weights.tolist() == pytest.approx([0.25, 0.0, 0.75])  # of the last epoch alone
    assert float(scheme.user_weights.sum()) == pytest.approx(1)


def test_weights_that_are_off_stay_equal():
    scheme = make("csi-free", 3, fairness="off")
    for _ in range(2):
        assert float(scheme.weigh(torch.tensor([1.0, 2.0, 6.0]))) == pytest.approx(3)
        scheme.eval()
        scheme.train()
    assert scheme.user_weights.tolist() == pytest.approx([1 / 3] * 3)


def test_weights_are_stored_and_the_sums_of_an_epoch_are_not():
    held = make("csi-free", 3).state_dict()
    assert "user_weights" in held
    assert "user_losses" not in held


@pytest.mark.parametrize("key", ["csi-free", "semi-conventional"])
def test_the_objective_is_that_of_the_delivered_images(key):
    scheme = make(key, 3)
    scheme.prepare(groups(4, 3))
    scheme.train()
    scheme.user_weights.copy_(torch.tensor([0.5, 0.3, 0.2]))
    images = groups(8, 3)
    (phase,) = scheme.phases(Optimiser(), lambda *_: None, 0.0)
    found = phase.module(images, torch.zeros(8, 3), seeded(4))
    generator = seeded(4)
    state = scheme.training_state(8, generator, CPU)
    errors = (scheme.deliver(images, state, generator) - images).square()
    by_hand = [errors[:, k].mean() for k in range(3)]
    expected = sum(weight * loss for weight, loss in zip((0.5, 0.3, 0.2), by_hand, strict=True))
    assert float(found["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(found["best_user"].detach()) == pytest.approx(float(min(by_hand).detach()), rel=1e-5)
    assert float(found["worst_user"].detach()) == pytest.approx(float(max(by_hand).detach()), rel=1e-5)


def test_losses_of_users_by_hand():
    images = torch.rand(4, 2, *SHAPE)
    output = images.clone()
    output[:, 0] += 0.5
    output[:2, 1] -= 0.25
    losses = user_losses(Task("reconstruct", SHAPE, 0), output, images, torch.zeros(4, 2), 0.0)
    assert losses.tolist() == pytest.approx([0.25, 0.03125], rel=1e-5)
    logits, labels = torch.randn(4, 2, 5), torch.arange(8).reshape(4, 2) % 5
    losses = user_losses(Task("classify", SHAPE, 5), logits, images, labels, 0.2)
    expected = [float(F.cross_entropy(logits[:, k], labels[:, k], label_smoothing=0.2)) for k in range(2)]
    assert losses.tolist() == pytest.approx(expected)


# Dispersion: the linear MMSE front end


def explicit_estimate(scheme, heard, known, n0, ahead=0, without_own=False):
    """The posterior of unit Gaussian features, user by user and block by block, in float64 and information form."""
    users, blocks, span = scheme.users, scheme.blocks, scheme.span
    codes = scheme.carriers().detach().to(torch.complex128)
    each = codes.shape[-1]
    estimates = torch.zeros(len(heard), users, blocks * each, dtype=torch.float64)
    errors = torch.zeros_like(estimates)
    for b in range(len(heard)):
        for k in range(users):
            for block in range(blocks):
                columns = []
                heard_of = [j for j in range(users) if not (without_own and j == k)]
                for j in heard_of:
                    for i in range(each):
                        column = (known[b, k, j].to(torch.complex128) @ codes[j, block, :, :, i]).flatten()
                        columns.append(torch.cat([column.real, column.imag]))
                A = torch.stack(columns, 1)
                y = heard[b, k, :, block * span : (block + 1) * span].to(torch.complex128).flatten()
                sigma = float(n0[b]) / 2  # of each real dimension
                covariance = torch.linalg.inv(A.T @ A / sigma + torch.eye(A.shape[1], dtype=torch.float64))
                mean = covariance @ A.T @ torch.cat([y.real, y.imag]) / sigma
                place = heard_of.index((k + ahead) % users) * each
                own, at = slice(place, place + each), slice(block * each, (block + 1) * each)
                estimates[b, k, at], errors[b, k, at] = mean[own], covariance.diagonal()[own]
    return estimates, errors


@pytest.mark.parametrize(
    ("users", "options"),
    [
        (1, {}),
        (2, {}),
        (3, {}),
        (5, {}),
        (2, {"span": 2, "features": 20}),
        (2, {"span": 8, "features": 3}),
        (2, {"span": 1, "features": 8, "transmit_antennas": 1, "receive_antennas": 3}),
    ],
)
def test_the_estimate_is_the_mmse_estimate(users, options):
    scheme = make("dispersion", users, **options)
    state = scheme.draw(3, torch.tensor([-5.0, 5.0, 15.0]), seeded(1), CPU)
    heard = 2 * complex_normal(3, users, scheme.medium.receive_antennas, USES)
    with torch.no_grad():
        found = scheme.estimate(phy.Received(heard, state.known, state.noise_variance))
    expected = explicit_estimate(scheme, heard, state.known, state.noise_variance[:, 0])
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (3, users, scheme.features)
        assert (one - other).abs().max() < 2e-4
    assert (found[1] > 0).all()
    assert (found[1] < 1).all()


@pytest.mark.parametrize(("users", "without_own"), [(2, False), (2, True), (3, False), (3, True)])
def test_what_a_receiver_estimates_of_the_next_user(users, without_own):
    scheme = make("dispersion", users)
    state = scheme.draw(3, torch.tensor([-5.0, 5.0, 15.0]), seeded(1), CPU)
    heard = 2 * complex_normal(3, users, 2, USES)
    with torch.no_grad():
        found = scheme.estimate(phy.Received(heard, state.known, state.noise_variance), 1, without_own)
    expected = explicit_estimate(scheme, heard, state.known, state.noise_variance[:, 0], 1, without_own)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 2e-4


@pytest.mark.parametrize("users", [1, 2, 3])
@pytest.mark.parametrize("snr_db", [0.0, 12.0])
def test_the_error_is_the_mean_square_error_of_unit_features(users, snr_db):
    scheme = make("dispersion", users)
    many = 3000
    state = scheme.draw(1, snr_db, seeded(1), CPU)
    state = state.of(torch.zeros(many, dtype=torch.int64))  # one channel, much noise
    features = torch.randn(many, users, scheme.features, generator=seeded(2))
    with torch.no_grad():
        codes = scheme.carriers()
        sent = torch.zeros(many, users, 2, USES, dtype=torch.complex64)
        for b in range(scheme.blocks):
            for i in range(codes.shape[-1]):
                at = slice(b * scheme.span, (b + 1) * scheme.span)
                feature = features[:, :, b * codes.shape[-1] + i, None, None]
                sent[..., at] += feature * codes[None, :, b, :, :, i]
        assert_means(energy(sent).sum((2, 3)), torch.full((users,), 2.0 * USES))  # equation 2, on average
        estimate, error = scheme.estimate(scheme.carry(sent, state, seeded(3)))
    assert_means((estimate - features).square(), error[0])


def test_what_is_sent_are_the_features_times_their_codes():
    scheme = make("dispersion", 2).eval()
    images = groups(2, 2)
    with torch.no_grad():
        sent = scheme.transmit(images, seeded(0)).symbols
        features = scheme.jsc_encoder(scheme.semantic_encoder(images)).unflatten(2, (scheme.blocks, -1))
        codes = scheme.carriers()
    assert torch.allclose(energy(codes).sum((1, 2, 3, 4)), torch.tensor(2.0 * USES).double(), rtol=1e-5)
    for n in range(2):
        for k in range(2):
            blocks = [(codes[k, b] * features[n, k, b]).sum(-1) for b in range(scheme.blocks)]
            whole = torch.cat(blocks, 1)
            whole = whole * math.sqrt(2 * USES / float(energy(whole).sum()))
            assert (sent[n, k] - whole).abs().max() < 1e-5


@pytest.mark.parametrize(("key", "options"), [("dispersion", {}), ("irsc-csir", {"local": True})])
def test_a_receiver_needs_its_own_row_of_the_channels_only(key, options):
    scheme = make(key, 3, **options).eval()
    images, state = groups(4, 3), states(scheme, 4)
    with torch.no_grad():
        heard = scheme.carry(scheme.transmit(images, seeded(0)).symbols, state, seeded(1))
        output = scheme.receive(heard, None, state)
        for k in range(3):
            other = complex_normal(*state.known.shape)
            other[:, k] = state.known[:, k]
            changed = scheme.receive(replace(heard, csi=other), None, replace(state, known=other))
            assert torch.allclose(changed[:, k], output[:, k], atol=1e-5)
            assert not torch.allclose(changed, output, atol=1e-3)


def test_alamoutis_code_reaches_its_closed_form():
    """Two transmit antennas, one that receives: full diversity, every real at the mean of both gains."""
    scheme = make("dispersion", 1, span=2, features=16, transmit_antennas=2, receive_antennas=1)
    codes = torch.tensor([[[1, 0], [0, 1]], [[1j, 0], [0, -1j]], [[0, -1], [1, 0]], [[0, 1j], [1j, 0]]])
    with torch.no_grad():
        scheme.codes.copy_(torch.view_as_real(codes.permute(1, 2, 0)).expand(1, 4, 2, 2, 4, 2))
        state = scheme.draw(50, torch.linspace(-5, 20, 50), seeded(0), CPU)
        heard = phy.Received(complex_normal(50, 1, 1, USES), state.known, state.noise_variance)
        _, error = scheme.estimate(heard)
    gain = energy(state.gains).sum((1, 2, 3, 4))
    expected = 1 / (1 + gain / state.noise_variance[:, 0].double())
    assert torch.allclose(error[:, 0].double(), expected[:, None].expand(-1, 16), rtol=1e-3)


# Precoders and filters


@pytest.mark.parametrize(
    ("key", "span"), [("semi-conventional", 1), ("adaptive-precoding", 1), ("adaptive-precoding", 4)]
)
def test_streams_are_precoded_and_filtered_as_by_hand(key, span):
    options = {"span": span, "streams": 3} if span > 1 else {"streams": 2}
    scheme = make(key, 2, **options).eval()
    state, each = states(scheme, 2), USES // span
    reals = torch.randn(2, 2, scheme.reals, generator=seeded(3))
    heard = complex_normal(2, 2, 2, USES, seed=4)
    with torch.no_grad():
        sent = scheme.precode(reals, state)
        found = scheme.filtered(phy.Received(heard, state.known, state.noise_variance), state)
    assert found.shape == reals.shape == (2, 2, 2 * scheme.streams * each)
    for n in range(2):
        for k in range(2):
            V, U = state.precoders[n, k], state.filters[n, k]
            streams = torch.complex(*reals[n, k].reshape(scheme.streams, each, 2).unbind(-1))
            streams = streams / energy(streams).mean(1, keepdim=True).sqrt().float()
            block = torch.zeros(2, USES, dtype=torch.complex64)
            picked = torch.zeros(scheme.streams, each, dtype=torch.complex64)
            for t in range(each):
                uses = [t + s * each for s in range(span)]  # of one super-use, the antennas of its first use first
                block[:, uses] = (V @ streams[:, t]).reshape(span, 2).T
                picked[:, t] = U.conj().T @ heard[n, k][:, uses].T.flatten()
            block = block * math.sqrt(min(1, 2 * USES / float(energy(block).sum())))
            assert (sent[n, k] - block).abs().max() < 1e-5
            assert torch.allclose(found[n, k].reshape(scheme.streams, each, 2), torch.view_as_real(picked), atol=1e-4)


def test_super_uses_of_an_extended_channel_are_uses_of_the_channel():
    scheme = make("adaptive-precoding", 3, span=4, streams=3)
    state = states(scheme, 3)
    wide = extended(state.gains, 4)
    for k in range(3):
        for j in range(3):
            blocks = torch.block_diag(*[state.gains[1, k, j]] * 4)
            assert torch.equal(wide[1, k, j], blocks)
    assert extended(state.gains, 1) is state.gains
    sent = scheme.precode(torch.randn(3, 3, scheme.reals, generator=seeded(3)), state)
    received = phy.Received(phy.Interference(3, 2, 2)(sent, state.gains, SILENT, seeded(0)), None, torch.zeros(3, 1))
    each = USES // 4
    # The same symbols, four uses as one of an extended channel
    as_one = sent.unflatten(3, (4, each)).transpose(2, 3).flatten(2, 3)
    heard = phy.Interference(3, 8, 8)(as_one, wide, SILENT, seeded(0))
    expected = torch.view_as_real(state.filters.mH @ heard).flatten(2)
    assert torch.allclose(scheme.filtered(received, state), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "users", "options"),
    [
        ("semi-conventional", 2, {}),
        ("semi-conventional", 3, {}),
        ("semi-conventional", 2, {"streams": 2}),
        ("adaptive-precoding", 2, {}),
        ("adaptive-precoding", 3, {"streams": 2}),
        ("adaptive-precoding", 5, {}),
    ],
)
def test_the_error_of_the_state_is_that_of_white_streams(key, users, options):
    scheme = make(key, users, uses=8000, bank=1, **options)
    state = states(scheme, 1, 8.0)
    span, streams = scheme.span, scheme.streams
    white = phy.noise((1, users, streams, 8000 // span), 1.0, seeded(2), CPU)
    sent = (state.precoders @ white).unflatten(2, (span, 2)).transpose(2, 3).flatten(3)
    found = scheme.filtered(scheme.carry(sent, state, seeded(3)), state)
    missed = found.unflatten(2, (streams, -1, 2)) - torch.view_as_real(white)
    squares = missed.square().sum(-1)[0].permute(2, 0, 1)  # (uses, K, d)
    if key == "semi-conventional":  # knows the mean over a user's streams only
        assert torch.equal(state.mse, state.mse[..., :1].expand_as(state.mse))
        assert_means(squares.mean(2), state.mse[0].mean(1))
        assert state.mse.amax() < state.mse.amin() * 1.02 or streams > 1  # all users' alike
    else:
        assert_means(squares, state.mse[0])
        assert (state.mse.diff(dim=2) >= 0).all()  # the best stream first


def test_more_users_than_can_be_aligned_share_uses():
    sizes = {
        users: (s.span, s.streams, s.reals) for users in (1, 2, 3, 4, 5) for s in [make("adaptive-precoding", users)]
    }
    assert sizes == {1: (1, 1, 16), 2: (1, 1, 16), 3: (1, 1, 16), 4: (4, 3, 12), 5: (4, 2, 8)}


def test_more_starts_have_no_larger_error():
    one, nine = make("semi-conventional", 3), make("semi-conventional", 3, starts=9)
    drawn = one.draw(64, 15.0, seeded(1), CPU)
    assert len(drawn.gains) == 64
    worst = [scheme.prepared(drawn).mse.amax(1) for scheme in (one, nine)]
    assert (worst[1] <= worst[0] * 1.001).all()
    assert (worst[1] < worst[0] * 0.99).any()


@every_precoded
def test_channels_that_come_again_are_not_designed_again(key, monkeypatch):
    scheme = make(key)
    drawn = scheme.draw(3, 10.0, seeded(1), CPU)
    first = scheme.prepared(drawn)
    monkeypatch.setattr(type(scheme), "design_for", lambda *_: 1 / 0)
    again = scheme.prepared(drawn)
    assert torch.equal(again.precoders, first.precoders)
    assert torch.equal(again.mse, first.mse)
    others = replace(drawn, snr_db=drawn.snr_db + 1), scheme.draw(3, 10.0, seeded(2), CPU)
    for other in others:
        with pytest.raises(ZeroDivisionError):
            scheme.prepared(other)
    monkeypatch.undo()
    for seed in range(40):
        scheme.prepared(scheme.draw(1, 10.0, seeded(seed), CPU))
    assert len(scheme._kept) == 32


def test_without_what_is_ours_adaptive_precoding_is_semi_conventional():
    ours, theirs = make("adaptive-precoding", 3, criterion="largest", told=False), make("semi-conventional", 3)
    theirs.load_state_dict(ours.state_dict())
    state = theirs.prepared(theirs.draw(4, 10.0, seeded(1), CPU))
    own = ours.prepared(replace(state, precoders=None, filters=None, mse=None))
    for scheme, known in ((ours, own), (theirs, state)):
        scheme.output = scheme.deliver(groups(4, 3), known, seeded(2))
    assert torch.allclose(ours.output, theirs.output, atol=1e-4)


@every_precoded
@pytest.mark.parametrize("users", [2, 3, 5])
def test_designs_do_not_depend_on_what_stands_beside_them(key, users):
    scheme = make(key, users)
    drawn = scheme.draw(3, torch.tensor([0.0, 10.0, 5.0]), seeded(1), CPU)
    together = scheme.prepared(drawn)
    for i in range(3):
        alone = scheme.prepared(drawn.of(torch.tensor([i])))
        for name in ("precoders", "filters", "mse"):
            assert torch.allclose(getattr(alone, name)[0], getattr(together, name)[i], atol=1e-4), name
    assert scheme.prepared(together) is together


@every_precoded
def test_training_uses_the_bank_and_nothing_else(key):
    scheme = make(key, 2, csi_error=0.1)
    with pytest.raises(SemlinkError, match="trains on a bank of channels: call 'prepare' first"):
        scheme.training_state(4, seeded(0), CPU)
    scheme.prepare(groups(2, 2))
    state = scheme.training_state(64, seeded(0), CPU)
    at = {tuple(gains.flatten().tolist()): i for i, gains in enumerate(scheme._bank.gains)}
    chosen = torch.tensor([at[tuple(gains.flatten().tolist())] for gains in state.gains])
    assert chosen.unique().tolist() == [0, 1, 2, 3, 4, 5]
    for name in ("gains", "known", "snr_db", "precoders", "filters", "mse"):
        assert torch.equal(getattr(state, name), getattr(scheme._bank, name)[chosen]), name
    assert scheme.prepared(state) is state  # designed beforehand
    assert len(scheme._bank.snr_db.unique()) == 6
    assert scheme._bank.snr_db.min() >= -5
    assert scheme._bank.snr_db.max() <= 20


@every_precoded
def test_the_bank_depends_on_the_seed_of_the_weights_alone(key):
    first, again, other = (make(key, 2, seed=seed) for seed in (0, 0, 1))
    for scheme in (first, again, other):
        scheme.prepare(groups(2, 2))
    assert torch.equal(first._bank.gains, again._bank.gains)
    assert torch.equal(first._bank.precoders, again._bank.precoders)
    assert not torch.equal(first._bank.gains, other._bank.gains)
    assert not [name for name in first.state_dict() if "bank" in name]


# Channels that are not known well


@every_network
def test_an_error_of_what_is_known_is_as_large_as_asked(key):
    scheme = make(key, 2, csi_error=0.2)
    drawn = scheme.draw(3000, 10.0, seeded(0), CPU)
    assert not torch.equal(drawn.known, drawn.gains)
    assert_means(energy(drawn.gains - drawn.known).flatten(1), torch.full((16,), 0.2))
    assert_means(energy(drawn.known).flatten(1), torch.full((16,), 0.8))


@cache
def trained(key):
    """A small network that learned to send stripes, over channels that it knows."""
    scheme = make(key, 2, width=32, bank=64) if key in PRECODED else make(key, 2, width=32)
    scheme.prepare(stripes(4, 0))
    scheme.train()
    (phase,) = scheme.phases(Optimiser(), lambda *_: None, 0.0)
    optimiser, generator = torch.optim.Adam(scheme.parameters(), 3e-3), seeded(0)
    for step in range(150):
        images = stripes(32, step)
        optimiser.zero_grad()
        phase.module(images, torch.zeros(32, 2), generator)["loss"].backward()
        optimiser.step()
    return scheme.eval()


def stripes(count, seed):
    """Four numbers an image: the levels of its stripes."""
    levels = (torch.rand(count, 2, 3, generator=seeded(seed)) > 0.5).float()
    return levels.repeat_interleave(2, 2)[:, :, None, :, None].expand(count, 2, *SHAPE).contiguous()


@pytest.mark.parametrize("key", ["dispersion", "adaptive-precoding", "semi-conventional"])
def test_scores_fall_with_noise_and_with_what_is_not_known(key):
    good = trained(key)
    poor = make(key, 2, width=32, csi_error=0.3)
    poor.load_state_dict(good.state_dict())
    images = stripes(200, 1000)

    def error(scheme, snr_db):
        return float((Network(scheme, snr_db).deliver(images, snr_db, seeded(5)) - images).square().mean())

    assert error(good, 20.0) < 0.05
    assert error(good, 0.0) > 1.5 * error(good, 20.0)
    assert error(poor, 20.0) > 1.5 * error(good, 20.0)


# What a broken channel would change


def test_one_user_of_one_antenna_is_a_link_over_rayleigh_fading():
    """Filter and precoder are the equaliser of the single-user link, and leave its error: N0 e^N0 E1(N0)."""
    many, snr_db = 3000, 5.0
    scheme = make("semi-conventional", 1, transmit_antennas=1, receive_antennas=1, bank=1)
    state = states(scheme, many, snr_db)
    assert energy(state.precoders).min() > 0.9  # all power, where the link is not hopeless
    reals = torch.randn(many, 1, scheme.reals, generator=seeded(3))
    symbols = phy.normalise_power(torch.view_as_complex(reals[:, 0].unflatten(1, (USES, 2))))
    received = scheme.carry(scheme.precode(reals, state), state, seeded(4))
    found = torch.view_as_complex(scheme.filtered(received, state)[:, 0].unflatten(1, (USES, 2)))
    gain = (state.gains * state.precoders[:, None]).flatten(1)
    single = phy.Received(received.symbols.flatten(1), gain, state.noise_variance)
    assert torch.allclose(found, phy.equalise(single), atol=1e-3)

    n0 = 10 ** (-snr_db / 10)
    closed = n0 * math.exp(n0) * exp1(n0)
    assert_means(state.mse.flatten(), closed)
    assert_means(energy(found - symbols).mean(1), closed)
    faded = phy.Rayleigh()(symbols, snr_db, seeded(5))
    assert_means(energy(phy.equalise(faded) - symbols).mean(1), closed)


@pytest.mark.parametrize(("users", "cross_gain_db"), [(1, 0.0), (2, 0.0), (3, -3.0), (3, -math.inf)])
def test_what_a_receiver_hears_has_the_power_of_all_that_is_sent_and_noise(users, cross_gain_db):
    scheme = make("csi-free", users, cross_gain_db=cross_gain_db).eval()
    state = states(scheme, 3000, 3.0)
    with torch.no_grad():
        heard = scheme.carry(scheme.transmit(groups(3000, users), seeded(0)).symbols, state, seeded(1)).symbols
    # Nt of each transmitter, all at unit power
    expected = 2 * (1 + (users - 1) * 10 ** (cross_gain_db / 10)) + 10**-0.3
    assert_means(energy(heard).mean(3).flatten(1), torch.full((2 * users,), expected))


def test_without_cross_gains_a_user_has_its_strongest_direction_for_itself():
    apart, alone = make("semi-conventional", 2, cross_gain_db=-math.inf), make("semi-conventional", 1)
    drawn = apart.draw(20, 10.0, seeded(0), CPU)
    singular = torch.linalg.matrix_norm(drawn.gains.diagonal(dim1=1, dim2=2).movedim(-1, 1), 2)
    best = 1 / (1 + 2 * singular.square() / 0.1)  # (20, K): Nt times unit power in one direction
    for k in range(2):
        own = slice(k, k + 1)
        found = alone.prepared(State(drawn.gains[:, own, own], drawn.known[:, own, own], drawn.snr_db))
        assert torch.allclose(found.mse.flatten(), best[:, k], rtol=1e-3)
    together = apart.prepared(drawn).mse[..., 0]
    assert torch.allclose(together.amax(1), best.amax(1), rtol=1e-3)  # fairness asks no more of the other
    assert (together >= best * (1 - 1e-3)).all()


# What is refused


def refusal(call, *words):
    with pytest.raises(SemlinkError) as refused:
        call()
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value), str(refused.value)


@every_network
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"users": 0}, "users is 0: a whole number of at least 1 is expected"),
        ({"users": "two"}, "users is 'two'"),
        ({"width": 0}, "width is 0"),
        ({"width": -3}, "width is -3"),
        ({"uses": 0}, "channel_uses is 0"),
        ({"uses": -8}, "channel_uses is -8"),
        ({"users": 1.5}, "users is 1.5"),
        ({"transmit_antennas": 0}, "transmit_antennas is 0"),
        ({"receive_antennas": 0}, "receive_antennas is 0"),
        ({"csi_error": 1.5}, "csi_error is 1.5"),
        ({"cross_gain_db": math.nan}, "cross_gain_db is nan"),
        ({"snr_low_db": 5.0, "snr_high_db": 4.0}, "snr_low_db is 5.0 and snr_high_db 4.0"),
        ({"snr_low_db": math.nan}, "snr_low_db is nan"),
        ({"snr_high_db": math.inf}, "snr_high_db inf"),
        ({"learning_rate": 0}, "learning_rate is 0: a finite number above 0 is expected"),
        ({"fairness": False}, "unknown fairness 'False'; known: epoch, off, step"),
        ({"fairness": "epochs"}, "unknown fairness 'epochs'; did you mean 'epoch'"),
    ],
)
def test_numbers_that_make_no_sense_are_named(key, options, words):
    refusal(lambda: make(key, **options), words)


@pytest.mark.parametrize(
    ("key", "options", "words"),
    [
        ("semi-conventional", {"streams": 3}, "streams is 3: from 1 to 2 fit the antennas"),
        ("semi-conventional", {"streams": 0}, "streams is 0: a whole number of at least 1 is expected"),
        ("semi-conventional", {"starts": 0}, "starts is 0: a whole number of at least 1 is expected"),
        ("adaptive-precoding", {"told": "no"}, "told is 'no'"),
        ("adaptive-precoding", {"criterion": "max"}, "unknown criterion 'max'; known: largest, sum"),
        ("semi-conventional", {"bank": 0}, "bank is 0: a whole number of at least 1 is expected"),
        ("semi-conventional", {"bank": 2.5}, "bank is 2.5: a whole number"),
        ("semi-conventional", {"streams": True}, "streams is True: a whole number"),
        ("adaptive-precoding", {"span": 1.5}, "span is 1.5: a whole number"),
        ("adaptive-precoding", {"streams": 3}, "streams is 3: from 1 to 2 fit"),
        ("adaptive-precoding", {"streams": 9, "span": 4}, "streams is 9: from 1 to 8 fit"),
        ("adaptive-precoding", {"span": 3}, "span is 3: it must divide the 8 channel uses"),
        ("adaptive-precoding", {"span": -2}, "span is -2"),
        ("adaptive-precoding", {"bank": -1}, "bank is -1"),
        ("dispersion", {"span": 3}, "span is 3: it must divide the 8 channel uses"),
        ("dispersion", {"span": 0}, "span is 0"),
        ("dispersion", {"features": -4}, "features is -4"),
        ("dispersion", {"features": 7}, "features is 7: a multiple of 2, the codes' blocks, is expected"),
    ],
)
def test_sizes_that_do_not_fit_are_named(key, options, words):
    refusal(lambda: make(key, **options), words)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("irsc-csitr", "works with the channels: give the state that 'draw' returned"),
        ("semi-conventional", "transmitters precode for the channels: give the state that 'draw' returned"),
        ("adaptive-precoding", "both ends know the quality of the channels: give the state that 'draw' returned"),
    ],
)
def test_a_transmitter_that_is_told_the_channels_needs_their_state(key, words):
    network = Network(make(key, 2), 10.0)
    refusal(lambda: network.transmit(groups(2, 2)), words)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("irsc-csir", "works with the channels: give the state"),
        ("irsc-csitr", "works with the channels: give the state"),
        ("semi-conventional", "receivers filter for the channels: give the state"),
        ("adaptive-precoding", "give the state that 'draw' returned"),
        ("dispersion", "separates users by their channels: CSI is needed"),
    ],
)
def test_a_receiver_that_is_told_the_channels_needs_them(key, words):
    network = Network(make(key, 2), 10.0)
    heard = phy.Received(complex_normal(2, 2, 2, USES), None, torch.full((2, 1), 0.1))
    refusal(lambda: network.receive(heard), words)


@every_network
def test_a_state_that_does_not_fit_is_refused(key):
    network, options = Network(make(key, 2), 10.0), {"bank": 6} if key in PRECODED else {}
    images, state = groups(3, 2), network.draw(3)
    sent = network.transmit(images, state=state)
    received = network.channel(sent.symbols, state=state)
    fewer, three = network.draw(2), Network(make(key, 3, **options), 10.0).draw(3)
    bad = state.known.clone()
    bad[1, 0, 1, 0, 0] = math.nan
    for wrong, words in (
        (fewer, "the state holds channels for 2 groups, and there are 3: give the one that 'draw(3)' returned"),
        (three, "H has shape (3, 3, 3, 2, 2): (B, 2, 2, 2, 2) is expected"),
        (replace(state, known=bad), "H holds a gain that is not finite"),
        (replace(state, snr_db=state.snr_db[:2]), "snr_db of the state has shape (2,): (3,) is expected"),
        (replace(state, snr_db=state.snr_db * math.nan), "snr_db is nan"),
    ):
        refusal(lambda wrong=wrong: network.transmit(images, state=wrong), words)
        refusal(lambda wrong=wrong: network.channel(sent.symbols, state=wrong), words)
        refusal(lambda wrong=wrong: network.receive(received, state=wrong), words)
    for wrong, words in (
        (replace(received, csi=bad), "H holds a gain that is not finite"),
        (replace(received, csi=state.known[:2]), "is not of its 3 groups"),
        (replace(received, noise_variance=received.noise_variance[:2]), "is not of its 3 groups"),
        (replace(received, symbols=received.symbols[:, :, :1]), "symbols are torch.complex64 of shape (3, 2, 1, 8)"),
        (replace(received, symbols=received.symbols.real), "complex (B, 2, 2, 8) is expected"),
    ):
        refusal(lambda wrong=wrong: network.receive(wrong, state=state), words)
    refusal(lambda: network.channel(sent.symbols[:, :1], state=state), "symbols are torch.complex64 of shape (3, 1, 2")
    for wrong in (groups(3, 3), images[0], images[..., :5], images.double()):
        for call in (
            lambda wrong=wrong: network.transmit(wrong, state=state),
            lambda wrong=wrong: network.deliver(wrong, 5.0, seeded(0)),
        ):
            refusal(call, f"of shape {tuple(wrong.shape)}: torch.float32 of shape (B, 2, 1, 6, 6) is expected")


@every_network
def test_a_draw_that_makes_no_sense_is_refused(key):
    network = Network(make(key, 2), 10.0)
    refusal(lambda: network.draw(4, torch.zeros(3)), "snr_db holds 3 values for 4 images")
    refusal(lambda: network.draw(4, math.nan), "snr_db is nan: a finite number of dB")
    refusal(lambda: network.draw(-1), "batch is -1: a whole number of at least 0 is expected")


@every_precoded
def test_designs_of_another_network_are_refused(key):
    network, other = Network(make(key, 2, streams=1), 10.0), Network(make(key, 2, streams=2), 10.0)
    words = "the state holds precoders of shape (3, 2, 2, 2): (3, 2, 2, 1) is expected"
    refusal(lambda: network.transmit(groups(3, 2), state=other.draw(3)), words)


def test_what_a_user_holds_of_a_network():
    network = Network(make("csi-free", 2), 7.0)
    images = groups(3, 2)
    sent = network.transmit(images)
    state = network.draw(3)
    assert state.snr_db.tolist() == [7.0] * 3
    assert network.draw(3, torch.tensor([1.0, 2.0, 3.0])).snr_db.tolist() == [1.0, 2.0, 3.0]
    for wrong in ({}, {"snr_db": 3.0}, {"snr_db": 3.0, "state": state}):
        refusal(lambda wrong=wrong: network.channel(sent.symbols, **wrong), "give the state, and the SNR to 'draw'")
    one, other = (network.channel(sent.symbols, state=state).symbols for _ in range(2))
    assert not torch.equal(one, other)  # noise of its own each time
    output = network.receive(network.channel(sent.symbols, state=state))
    assert output.shape == images.shape
    assert not network.scheme.training
