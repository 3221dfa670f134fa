# SPDX-License-Identifier: Apache-2.0
"""Sionna as an independent opinion on the interference channel: its flat MIMO channel, all users stacked by hand."""

import math

import pytest
import torch

from semlink.phy import Interference, normalise_block

pytest.importorskip("sionna.phy")
from scipy import stats
from sionna.phy import config
from sionna.phy.channel import ApplyFlatFadingChannel, GenerateFlatFadingChannel

config.device = "cpu"
SILENT = 300.0


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stack(H: torch.Tensor) -> torch.Tensor:
    """Return H: (B, K, K, Nr, Nt) as one channel (B, K Nr, K Nt), entry by entry."""
    batch, users, _, receive, transmit = H.shape
    whole = torch.zeros(batch, users * receive, users * transmit, dtype=H.dtype)
    for k in range(users):
        for j in range(users):
            for r in range(receive):
                for t in range(transmit):
                    whole[:, k * receive + r, j * transmit + t] = H[:, k, j, r, t]
    return whole


@pytest.mark.parametrize(("users", "transmit", "receive"), [(2, 2, 2), (3, 2, 4), (4, 3, 1)])
def test_what_arrives(users, transmit, receive):
    channel = Interference(users, transmit, receive, cross_gain_db=-3.0)
    H = channel.draw(50, seeded(1))
    X = normalise_block(torch.randn(50, users, transmit, 6, dtype=torch.complex64, generator=seeded(2)))
    ours = channel(X, H, SILENT, seeded(3))
    for use in range(6):
        column = torch.cat([X[:, k, :, use] for k in range(users)], 1)
        expected = ApplyFlatFadingChannel()(column, stack(H))
        torch.testing.assert_close(ours[..., use].flatten(1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_noise_has_the_same_distribution(snr_db):
    config.seed = 4
    channel = Interference(2, 2, 2)
    silence = torch.zeros(20_000, 2, 2, 1, dtype=torch.complex64)
    H = channel.draw(20_000, seeded(5))
    ours = channel(silence, H, snr_db, seeded(6)).flatten()
    theirs = ApplyFlatFadingChannel()(silence.flatten(1), stack(H), torch.tensor(10 ** (-snr_db / 10))).flatten()
    for view in (lambda z: z.real, lambda z: z.imag, lambda z: z.abs() ** 2):
        assert stats.ks_2samp(view(ours).numpy(), view(theirs).numpy()).pvalue > 1e-5
    a, b = (one.abs().double() ** 2 for one in (ours, theirs))
    assert abs(a.mean() - b.mean()) < 5 * math.hypot(a.std(), b.std()) / math.sqrt(len(a))


def test_gains_have_the_same_distribution():
    config.seed = 7
    theirs = GenerateFlatFadingChannel(4, 4)(5_000)
    ours = stack(Interference(2, 2, 2).draw(5_000, seeded(8)))
    for row in range(4):
        for column in range(4):
            a, b = ours[:, row, column], theirs[:, row, column]
            for view in (lambda z: z.real, lambda z: z.imag, lambda z: z.abs() ** 2):
                assert stats.ks_2samp(view(a).numpy(), view(b).numpy()).pvalue > 1e-5
    # Singular values of the whole see what entries do not: correlation between them.
    a, b = (torch.linalg.svdvals(one) for one in (ours, theirs))
    for order in range(4):
        assert stats.ks_2samp(a[:, order].numpy(), b[:, order].numpy()).pvalue > 1e-5
