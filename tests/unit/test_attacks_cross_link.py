# SPDX-License-Identifier: Apache-2.0
"""What receivers overhear of users that do not speak to them."""

import pytest
import torch
from scheme_keys import NETWORKS

import semlink
from semlink import SemlinkError, phy
from semlink.attacks import CrossLink, Inversion, Neighbour, Tap, Threat
from semlink.training import seeded

USERS, SNR_DB = 3, 10.0


def network(key, **options):
    return semlink.create(key, data="digits", channel_uses=4, users=USERS, width=16, **options)


def heard_of(link, images, seed=0):
    return Neighbour(link, Threat(SNR_DB)).overhear(images, seeded(seed), SNR_DB)


def images(groups=2, seed=1):
    return torch.rand(groups, USERS, 1, 28, 28, generator=seeded(seed))


@pytest.mark.parametrize("key", NETWORKS)
def test_every_network_is_overheard_by_every_receiver(key):
    tap = Neighbour(network(key), Threat(SNR_DB))
    heard = tap.overhear(images(), seeded(0), SNR_DB)
    assert heard.shape == (2, USERS, tap.features)
    assert heard.isfinite().all()
    trained = tap.overhear(images(), seeded(0))  # over channels as in the network's training
    assert trained.shape == heard.shape


@pytest.mark.parametrize("key", NETWORKS)
def test_what_is_overheard_of_a_user_depends_on_its_image_unless_nothing_interferes(key):
    link, sent = network(key), images()
    changed = sent.clone()
    changed[:, 1] = 1 - changed[:, 1]
    same = torch.equal(heard_of(link, sent)[:, 1], heard_of(link, changed)[:, 1])
    assert same == (key == "interference-free")


def test_who_knows_its_channel_takes_its_own_signal_out(monkeypatch):
    link, sent = network("irsc-csir"), images()
    scheme = link.scheme
    state = link.draw(2, SNR_DB, seeded(3))
    symbols = scheme.transmit(sent, seeded(0), state).symbols
    received = scheme.carry(symbols, state, seeded(4))
    monkeypatch.setattr(scheme, "receive", lambda *_: sent)  # whose own image is decoded without error
    found = scheme.overhear(received, seeded(0), state)
    for k in range(USERS):
        j = (k - 1) % USERS
        left = received.symbols[:, j] - state.gains[:, j, j] @ symbols[:, j]
        assert torch.allclose(found[:, k, -left[0].numel() * 2 :], torch.view_as_real(left).flatten(1), atol=1e-5)
        assert torch.equal(found[:, k, : left[0].numel() * 2], torch.view_as_real(received.symbols[:, j]).flatten(1))


def test_who_is_told_no_channel_gets_none():
    link, state = network("csi-free"), network("csi-free").draw(2, SNR_DB, seeded(3))
    received = link.channel(link.transmit(images(), seeded(0), state).symbols, None, seeded(4), state)
    other = phy.Received(received.symbols, 2 * received.csi, received.noise_variance)
    blind = [link.scheme.overhear(each, seeded(0), state) for each in (received, other)]
    assert torch.equal(*blind)


@pytest.mark.parametrize("key", ["semi-conventional", "adaptive-precoding"])
@pytest.mark.parametrize("without_own", [False, True])
def test_streams_of_another_user_are_estimated_with_least_error(key, without_own):
    link = network(key)
    state = link.draw(2, SNR_DB, seeded(3))
    received = link.channel(link.transmit(images(), seeded(0), state).symbols, None, seeded(4), state)
    found = link.scheme.listen(received, state, without_own)
    H, V = state.gains.to(torch.complex128), state.precoders.to(torch.complex128)
    for b in range(2):
        for k in range(USERS):
            j = (k - 1) % USERS
            covariance = 10 ** (-SNR_DB / 10) * torch.eye(2, dtype=torch.complex128)
            for i in range(USERS):
                if i != j or not without_own:
                    arriving = H[b, j, i] @ V[b, i]
                    covariance += arriving @ arriving.mH
            streams = (torch.linalg.inv(covariance) @ H[b, j, k] @ V[b, k]).mH @ received.symbols[b, j].to(H.dtype)
            expected = torch.view_as_real(streams).flatten().float()
            assert torch.allclose(found[b, k, :-1], expected, atol=1e-4)


def test_decoders_learn_from_what_interferes():
    torch.manual_seed(0)
    attack = CrossLink(Neighbour(network("dispersion"), Threat(SNR_DB)), width=16, taps=0)
    pool, optimiser, losses = images(8), torch.optim.Adam(attack.parameters(), 1e-2), []
    for step in range(60):
        loss = attack(pool, torch.zeros(8, USERS), seeded(step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attack.parameters())
    assert losses[-1] < 0.95 * losses[0]
    drawn = attack.reconstruct(attack.tap.overhear(pool, seeded(0), SNR_DB), SNR_DB)
    assert drawn.shape == pool.shape
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_the_victim_stays_as_it_is():
    link = network("irsc-csir")
    before = {name: value.clone() for name, value in link.scheme.state_dict().items()}
    attack = CrossLink(Neighbour(link, Threat(SNR_DB)), width=8, taps=0)
    attack(images(), torch.zeros(2, USERS), seeded(0))["loss"].backward()
    assert all(torch.equal(before[name], value) for name, value in link.scheme.state_dict().items())
    assert all(p.grad is None for p in link.scheme.parameters())


def test_means_that_no_receiver_has_are_refused():
    with pytest.raises(SemlinkError, match="the link is of one"):
        Neighbour(semlink.create("deepjscc", data="digits"), Threat(SNR_DB))
    with pytest.raises(SemlinkError, match="on a network of several there is 'cross-link'"):
        Tap(network("irsc-csir"), Threat(SNR_DB))
    with pytest.raises(SemlinkError, match="the network has 1 user"):
        Neighbour(semlink.create("irsc-csir", data="digits", channel_uses=4, users=1), Threat(SNR_DB))
    with pytest.raises(SemlinkError, match="their antennas, channels and CSI are its own"):
        Neighbour(network("irsc-csir"), Threat(SNR_DB, antennas=2))
    with pytest.raises(SemlinkError, match="no perceptual loss"):
        CrossLink(Neighbour(network("irsc-csir"), Threat(SNR_DB)), width=8, taps=1)
    assert not Inversion.tapped.of_network
