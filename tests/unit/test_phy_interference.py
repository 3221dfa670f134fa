# SPDX-License-Identifier: Apache-2.0
"""The interference channel: who hears whom, its energies, its noise and what receivers know of it.

Statistical tests use fixed seeds and allow five standard errors.
"""

import math

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.phy import normalise_power
from semlink.phy.interference import Interference, local_csi, normalise_block, pilot_error

SILENT = 300.0  # dB: the noise vanishes


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalise_block(torch.randn(*shape, dtype=torch.complex64, generator=seeded(seed)))


def assert_mean(samples: torch.Tensor, expected: float) -> None:
    samples = samples.double().flatten()
    error = samples.std() / math.sqrt(len(samples))
    assert abs(samples.mean() - expected) < 5 * error, f"{samples.mean():.6g} +- {error:.2g}, not {expected:.6g}"


def energy(z: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(z).square().sum(-1)


def test_by_hand():
    # Two users, two transmit antennas, one receive antenna, two channel uses.
    H = torch.tensor([[[[[1, 2j]], [[3, 0]]], [[[0, 1]], [[1j, 1]]]]], dtype=torch.complex64)
    X = torch.tensor([[[[1, 0], [1, 1]], [[2, 1j], [0, -1]]]], dtype=torch.complex64)
    Y = Interference(2, 2, 1)(X, H, SILENT, seeded(0))
    expected = torch.tensor([[[[1 + 2j + 6, 2j + 3j]], [[1 + 2j, 1 - 1 - 1]]]], dtype=torch.complex64)
    torch.testing.assert_close(Y, expected)


@pytest.mark.parametrize(("users", "transmit", "receive"), [(1, 1, 1), (2, 2, 2), (3, 2, 4), (5, 3, 2)])
def test_the_stacked_product_is_the_sum_over_transmitters(users, transmit, receive):
    channel = Interference(users, transmit, receive)
    H, X = channel.draw(6, seeded(1)), block(6, users, transmit, 8)
    Y = channel(X, H, SILENT, seeded(2))
    assert Y.shape == (6, users, receive, 8)
    for k in range(users):
        expected = sum(H[:, k, j] @ X[:, j] for j in range(users))
        torch.testing.assert_close(Y[:, k], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("users", [1, 2])
def test_gains_and_blocks_may_lie_in_memory_as_they_like(users):
    whole = Interference(users, 2, 1)
    wide, X = whole.draw(4, seeded(1)), block(4, users, 2, 6)
    strided = wide.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3)
    expected = whole(X, wide, SILENT, seeded(2))
    torch.testing.assert_close(whole(X.mT.contiguous().mT, strided, SILENT, seeded(2)), expected)
    torch.testing.assert_close(whole(X, wide.conj().resolve_conj().conj(), SILENT, seeded(2)), expected)
    every = torch.tensor(1j, dtype=torch.complex64)
    torch.testing.assert_close(
        whole(X, every.expand(wide.shape), SILENT, seeded(2)), 1j * X.sum((1, 2))[:, None, None].expand(4, users, 1, 6)
    )
    one = Interference(users, 1, 1)
    found = one(X[:, :, :1], wide[..., :1], SILENT, seeded(2))
    torch.testing.assert_close(found, one(X[:, :, :1].clone(), wide[..., :1].contiguous(), SILENT, seeded(2)))


def test_one_user_of_one_antenna_is_the_flat_channel():
    channel = Interference(1, 1, 1)
    H, X = channel.draw(3, seeded(1)), block(3, 1, 1, 10)
    torch.testing.assert_close(channel(X, H, SILENT, seeded(2)).flatten(1), H.flatten(1) * X.flatten(1))


@pytest.mark.parametrize("cross_gain_db", [-10.0, 0.0, 3.0])
def test_gains_are_circular_gaussian_of_the_power_asked(cross_gain_db):
    H = Interference(3, 2, 2, cross_gain_db).draw(20_000, seeded(3))
    assert H.shape == (20_000, 3, 3, 2, 2)
    assert H.dtype == torch.complex64
    for k in range(3):
        for j in range(3):
            power = 1 if j == k else 10 ** (cross_gain_db / 10)
            h = H[:, k, j].flatten(1)
            assert_mean(energy(h), power)
            assert_mean(energy(h) ** 2, 2 * power**2)
            for rail in (h.real, h.imag):
                assert_mean(rail, 0)
                assert_mean(rail.square(), power / 2)
            assert_mean(h.real * h.imag, 0)
            assert_mean((h[:, :-1] * h[:, 1:].conj()).real, 0)  # antennas are independent
            assert_mean((h[1:] * h[:-1].conj()).real, 0)  # images are independent


def test_no_cross_gain_is_no_interference():
    channel = Interference(3, 2, 2, -math.inf)
    H, X = channel.draw(4, seeded(1)), block(4, 3, 2, 5)
    alone = torch.stack([H[:, k, k] @ X[:, k] for k in range(3)], 1)
    torch.testing.assert_close(channel(X, H, SILENT, seeded(2)), alone)
    assert (channel.estimate(H, seeded(3), 0.1)[:, 0, 1] == 0).all()


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 15.0])
def test_noise_per_receive_antenna(snr_db):
    channel = Interference(2, 2, 3)
    H, X = channel.draw(500, seeded(1)), block(500, 2, 2, 100)
    n = channel(X, H, snr_db, seeded(2)) - channel(X, H, SILENT, seeded(2))
    n0 = 10 ** (-snr_db / 10)
    for k in range(2):
        for antenna in range(3):
            assert_mean(energy(n[:, k, antenna]), n0)
    assert_mean(energy(n) ** 2, 2 * n0**2)
    assert_mean((n[:, :, 0] * n[:, :, 1].conj()).real, 0)
    assert_mean((n[:, 0] * n[:, 1].conj()).real, 0)
    assert_mean((n[..., 1:] * n[..., :-1].conj()).real, 0)


def test_each_image_has_its_snr():
    channel = Interference(2, 2, 2)
    H, X = channel.draw(2, seeded(1)), block(2, 2, 2, 50_000)
    n = channel(X, H, torch.tensor([0.0, 20.0]), seeded(2)) - channel(X, H, SILENT, seeded(2))
    assert_mean(energy(n[0]), 1)
    assert_mean(energy(n[1]), 0.01)


def test_received_energy():
    # Unit energy per transmit antenna: each receive antenna takes Nt from its own transmitter and g Nt from each other.
    channel = Interference(3, 2, 4, cross_gain_db=-3.0)
    Y = channel(block(20_000, 3, 2, 4), channel.draw(20_000, seeded(1)), 10.0, seeded(2))
    assert_mean(energy(Y).mean((1, 2, 3)), 2 + 2 * 2 * 10**-0.3 + 0.1)


def test_normalise_block_is_equation_2():
    X = 3 * torch.randn(5, 2, 3, 7, dtype=torch.complex64, generator=seeded(0))
    X[1, 1] = 0
    scaled = normalise_block(X)
    norms = energy(scaled).sum((2, 3))
    expected = torch.full((5, 2), 21.0)
    expected[1, 1] = 0
    torch.testing.assert_close(norms, expected)
    assert torch.equal(scaled[2, 1].flatten(), normalise_power(X[2, 1].reshape(1, -1)).flatten())
    antenna = energy(normalise_block(torch.eye(2, dtype=torch.complex64)[None, None])).sum(-1)
    torch.testing.assert_close(antenna, torch.full((1, 1, 2), 2.0))  # the users' total is fixed, not each antenna's


@pytest.mark.parametrize("cross_gain_db", [-6.0, 0.0])
@pytest.mark.parametrize("csi_error", [0.01, 0.3])
def test_the_estimate_is_the_mmse_estimate(cross_gain_db, csi_error):
    channel = Interference(2, 2, 2, cross_gain_db, csi_error)
    H = channel.draw(50_000, seeded(1))
    believed = channel.estimate(H, seeded(2))
    assert believed.dtype == torch.complex64
    for k, j in ((0, 0), (0, 1), (1, 0)):
        g = 1 if j == k else 10 ** (cross_gain_db / 10)
        expected = g / (1 + g * (1 / csi_error - 1))
        error = H[:, k, j] - believed[:, k, j]
        assert_mean(energy(error), expected)
        assert_mean(energy(believed[:, k, j]), g - expected)
        product = error * believed[:, k, j].conj()
        assert_mean(product.real, 0)  # what is left is uncorrelated with what is believed
        assert_mean(product.imag, 0)


def test_estimates_from_pilots():
    # The estimate of a scalar from y = sqrt(e) h + n by hand: E = sqrt(e) y / (1 + e), error 1 / (1 + e).
    assert pilot_error(10.0, 4) == pytest.approx(1 / 41)
    assert pilot_error(20.0, 0) == 1
    torch.testing.assert_close(pilot_error(torch.tensor([0.0, 10.0]), 2), torch.tensor([1 / 3, 1 / 21]))
    channel = Interference(2, 2, 2)
    H = channel.draw(30_000, seeded(1))
    error = torch.full((30_000,), 0.2)
    error[::2] = 0
    missed = energy(H - channel.estimate(H, seeded(2), error))
    assert missed[::2].max() < 1e-12
    assert_mean(missed[1::2], 0.2)


def test_csi_that_is_known_and_unknown():
    H = Interference(2, 2, 2).draw(3, seeded(1))
    assert torch.equal(Interference(2, 2, 2).estimate(H, seeded(2)), H)
    assert (Interference(2, 2, 2, csi_error=1.0).estimate(H, seeded(2)) == 0).all()


def test_local_csi_is_a_view_of_the_receivers_row():
    H = Interference(3, 2, 4).draw(2, seeded(1))
    rows = local_csi(H)
    assert rows.data_ptr() == H.data_ptr()
    assert rows[:, 1].shape == (2, 3, 4, 2)
    assert torch.equal(rows[:, 1], torch.stack([H[:, 1, j] for j in range(3)], 1))


def test_seeds():
    channel = Interference(2, 2, 2, csi_error=0.1)
    H, X = channel.draw(4, seeded(1)), block(4, 2, 2, 6)
    torch.manual_seed(0)  # the global generator plays no part
    assert torch.equal(channel.draw(4, seeded(1)), H)
    assert not (channel.draw(4, seeded(2)) == H).any()
    for call in (lambda g: channel(X, H, 5.0, g), lambda g: channel.estimate(H, g), lambda g: channel.draw(4, g)):
        assert torch.equal(call(seeded(3)), call(seeded(3)))
        assert not (call(seeded(3)) == call(seeded(4))).any()
        generator = seeded(3)
        assert not (call(generator) == call(generator)).any()


def test_float32_under_autocast():
    channel = Interference(2, 2, 2)
    H, X = channel.draw(4, seeded(1)), block(4, 2, 2, 6)
    plain = channel(X, H, 12.0, seeded(2))
    with torch.autocast("cpu", torch.bfloat16):
        cast = channel(X, H, 12.0, seeded(2))
    assert cast.dtype == torch.complex64
    assert torch.equal(cast, plain)


def test_gradients_pass_through():
    channel = Interference(2, 2, 3)
    H, X = channel.draw(4, seeded(1)), block(4, 2, 2, 6).requires_grad_()
    channel(X, H, 10.0, seeded(2)).real.sum().backward()
    expected = H.conj().sum((1, 3))[..., None].expand(X.shape)  # d/dX of sum_k Re(1' H_kj X_j)
    torch.testing.assert_close(X.grad, expected.resolve_conj())


@pytest.mark.parametrize("name", ["users", "transmit_antennas", "receive_antennas"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_a_count_below_one_is_refused(name, value):
    with pytest.raises(SemlinkError, match=f"^{name} is {value}: a whole number of at least 1 is expected$"):
        Interference(**{"users": 2, "transmit_antennas": 2, "receive_antennas": 2, name: value})


def test_no_images_are_carried_as_none():
    medium = Interference(3, 2, 4)
    X, H = torch.zeros(0, 3, 2, 5, dtype=torch.complex64), medium.draw(0, torch.Generator())
    for snr_db in (10.0, torch.zeros(0)):
        heard = medium(X, H, snr_db, torch.Generator())
        assert (heard.shape, heard.dtype) == ((0, 3, 4, 5), torch.complex64)


def test_bad_levels_are_refused():
    for gain in (math.nan, math.inf, 200.0, "loud"):
        with pytest.raises(SemlinkError, match=r"^cross_gain_db is"):
            Interference(2, 2, 2, gain)
    for error in (-0.1, 1.1, math.nan):
        with pytest.raises(SemlinkError, match=r"^csi_error is"):
            Interference(2, 2, 2, csi_error=error)
        with pytest.raises(SemlinkError, match=r"^csi_error holds 1 values"):
            Interference(2, 2, 2).estimate(Interference(2, 2, 2).draw(3, seeded(0)), seeded(1), error)
    with pytest.raises(SemlinkError, match=r"^csi_error holds 2 values for 3 images"):
        Interference(2, 2, 2).estimate(Interference(2, 2, 2).draw(3, seeded(0)), seeded(1), torch.zeros(2))
    with pytest.raises(SemlinkError, match=r"^pilots is -1"):
        pilot_error(0.0, -1)


def test_bad_gains_are_refused():
    channel, X = Interference(2, 2, 2), block(3, 2, 2, 4)
    H = channel.draw(3, seeded(0))
    for wrong in (H[0], H[:, :1], H[:, :, :1], H[..., :1], H[..., :1, :], H[:, :1, :1]):
        with pytest.raises(SemlinkError, match=r"^H has shape .*: \(B, 2, 2, 2, 2\) is expected"):
            channel(X, wrong, 10.0, seeded(1))
    with pytest.raises(SemlinkError, match=r"^H has shape .*: \(B, K, K, Nr, Nt\) is expected"):
        local_csi(H[:, :1])
    with pytest.raises(SemlinkError, match=r"^H is torch.float32: complex gains"):
        channel(X, H.real, 10.0, seeded(1))
    H[1, 0, 1, 0, 0] = complex(0, math.nan)
    with pytest.raises(SemlinkError, match=r"^H holds a gain that is not finite"):
        channel(X, H, 10.0, seeded(1))
    with pytest.raises(SemlinkError, match=r"^H holds a gain that is not finite"):
        channel.estimate(H, seeded(1))


def test_bad_blocks_are_refused():
    channel, X = Interference(2, 2, 2), block(3, 2, 2, 4)
    H = channel.draw(3, seeded(0))
    for wrong in (X[:2], X[:, :1], X[:, :, :1], X[0], X.real):
        with pytest.raises(SemlinkError, match=r"^X is .*: complex \(3, 2, 2, N\) is expected"):
            channel(wrong, H, 10.0, seeded(1))
    for wrong in (X[0], X.real):
        with pytest.raises(SemlinkError, match=r"^X is .*: complex \(B, K, Nt, N\) is expected"):
            normalise_block(wrong)
    with pytest.raises(SemlinkError, match=r"^snr_db is nan"):
        channel(X, H, math.nan, seeded(1))
    with pytest.raises(SemlinkError, match=r"^snr_db holds 2 values for 3 images"):
        channel(X, H, torch.zeros(2), seeded(1))
