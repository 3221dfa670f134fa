# SPDX-License-Identifier: Apache-2.0
"""One user's link among K on an interference channel, as its networks see it: fading of a known distribution.

    x ─> v_k x ─> H_kk v_k x + sum_j H_kj v_j x_j + n ─> u_k^H y = h x + noise of variance N0        one stream a user

Each of K pairs precodes its symbols for the channels and filters what it hears, by the transceivers that minimise the
largest mean square error (minmax.py), so any scheme of one user's symbols works among others as it stands: what they
leave of the interference is noise to it. Other users' symbols are taken as Gaussian, of which a linear filter loses
nothing; the filtered symbol is scaled so that interference and noise together have variance N0, and ``h^2 / N0`` is its
SINR. A channel is constant over an image.

``overheard`` is the same signal at the receiver of another user, who knows its own channels, all precoders and what was
sent to itself, which it takes out: the most that it could do by decoding its own signal first.

Channels are drawn from a bank of 4,096, whose transceivers are designed once for each whole decibel, between which
their SINRs are interpolated: a network sees of a channel no more than the SINR. The relative error of a mean over the
bank is that of 4,096 channels, about 1 %.
"""

import math
from functools import partial

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_number, check_whole
from semlink.phy.channel import Channel, channels
from semlink.phy.interference import Interference
from semlink.phy.minmax import minimise_max_mse
from semlink.phy.transceivers import own, received_covariance

BANK = 4096
LOUDEST_DB = 100
_MOST_USERS = 5  # that have a name; any number in Python


class Interfered(Channel):
    """What the receiver of a user hears of that user, precoded and filtered.

    Args:
        users: K, at least 2.
        antennas: of every transmitter and receiver.
        cross_gain_db: power of the channels between pairs over that of those within.

    Raises:
        SemlinkError: a number makes no sense; the message says which.
    """

    key = "interference"

    def __init__(self, users: int = 2, antennas: int = 2, cross_gain_db: float = 0.0) -> None:
        if check_whole("users", users) < 2:
            raise SemlinkError(
                "users is 1: interference is of at least 2; for one user take 'awgn' or a fading channel"
            )
        self.medium = Interference(users, antennas, antennas, cross_gain_db)
        self._banks: dict[int, Tensor] = {}

    def sinr(self, snr_db: float) -> Tensor:
        """Return the SINRs of the bank at ``snr_db`` per transmit antenna, (4,096 K,) float32.

        Raises:
            SemlinkError: ``snr_db`` is not from -100 to 100.
        """
        check_number("snr_db on an interference channel", snr_db, -LOUDEST_DB, LOUDEST_DB)
        below = math.floor(snr_db)
        share = snr_db - below
        if not share:
            return self._bank(below)
        return torch.lerp(self._bank(below).log(), self._bank(below + 1).log(), share).exp()

    def gains(self, batch: int, uses: int, n0: Tensor, generator: torch.Generator) -> Tensor:
        """Draw ``h = (SINR N0)^(1/2)`` of the filtered symbol, one for an image: (batch, 1) complex64."""
        chosen = torch.randint(BANK * self.medium.users, (batch,), generator=generator, device=generator.device).cpu()
        levels = (-10 * n0[:, 0].cpu().double().log10()).round(decimals=4)
        found = torch.empty(batch)
        for level in levels.unique().tolist():
            these = levels == level
            found[these] = self.sinr(level)[chosen[these]]
        return (found.to(n0.device)[:, None] * n0).sqrt().to(torch.complex64)

    def _bank(self, level_db: int) -> Tensor:
        """Return the SINRs of the bank's channels at whole decibels, between which they are smooth."""
        if level_db not in self._banks:
            H = self.medium.draw(BANK, torch.Generator().manual_seed(0)).to(torch.complex128)
            n0 = torch.full((BANK,), 10 ** (-level_db / 10), dtype=torch.float64)
            heard, wanted = self._heard(H @ minimise_max_mse(H, float(level_db)).precoders[:, None])
            found = (wanted.conj() * torch.linalg.solve(received_covariance(heard, n0), wanted)).sum((2, 3)).real
            self._banks[level_db] = found.flatten().float()
        return self._banks[level_db]

    def _heard(self, arriving: Tensor) -> tuple[Tensor, Tensor]:
        """Split ``arriving = H_kj V_j: (B, K, K, N, 1)`` into what disturbs and what is wanted: (B, K, N, 1)."""
        return _without(arriving, 0), own(arriving)


class Overheard(Interfered):
    """What the receiver of user k + 1 hears of user k, with what was sent to itself taken out."""

    key = "overheard"

    def beside(self, meant: Channel) -> bool:
        """Say whether it is the same interference channel that ``meant`` is heard on."""
        return isinstance(meant, Interfered) and not isinstance(meant, Overheard) and meant.medium == self.medium

    def _heard(self, arriving: Tensor) -> tuple[Tensor, Tensor]:
        """As of the meant receiver, at that of user k + 1 in place k: nothing of user k and of its own disturbs it."""
        arriving = arriving.roll(-1, 1)
        return _without(_without(arriving, 0), 1), own(arriving)


def _without(arriving: Tensor, ahead: int) -> Tensor:
    """Return what arrives without what user k + ``ahead`` sent, in place k."""
    silent = torch.eye(arriving.shape[2], dtype=torch.bool, device=arriving.device).roll(ahead, 1)
    return arriving.masked_fill(silent[:, :, None, None], 0)


for _kind in (Interfered, Overheard):
    channels.register(_kind.key)(_kind)
    for _users in range(3, _MOST_USERS + 1):
        channels.register(f"{_kind.key}-{_users}")(partial(_kind, _users))
