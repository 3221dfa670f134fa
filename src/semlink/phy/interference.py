# SPDX-License-Identifier: Apache-2.0
"""The flat Rayleigh MIMO interference channel of K users (paper B, equations 2 and 3).

    Y_k = sum_j H_kj X_j + N_k,    H_kj ~ CN(0, 1) (Nr, Nt),    N_k ~ CN(0, N0),    N0 = 10^(-snr_db / 10)

Transmitter j speaks to receiver j, and every receiver hears all transmitters. With P = 1 in equation 2 each transmitter
spends unit mean energy per antenna and channel use, so ``snr_db`` is per transmit antenna. H is constant over an
image's block of N channel uses and independent from one image to the next.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_number, check_whole
from semlink.phy.channel import noise, noise_variance, one_variance
from semlink.phy.power import normalise_power

MAX_GAIN_DB = 100


@dataclass(frozen=True)
class Interference:
    """K transmitters of Nt antennas, K receivers of Nr antennas, and how well these know their channels.

    Attributes:
        users: K.
        transmit_antennas: Nt.
        receive_antennas: Nr.
        cross_gain_db: power of an entry of H_kj, j != k, over that of one of H_kk; -inf is no interference.
        csi_error: mean square error of the receivers' MMSE estimate of an entry of H_kk, from 0 (known) to 1 (unknown);
            :func:`pilot_error` gives it for a number of pilots. See :meth:`estimate`.

    Raises:
        SemlinkError: a number of users or antennas is not a whole number of at least 1, ``cross_gain_db`` is NaN or
            above 100 dB, or ``csi_error`` is not within 0 to 1.
    """

    users: int
    transmit_antennas: int
    receive_antennas: int
    cross_gain_db: float = 0.0
    csi_error: float = 0.0

    def __post_init__(self) -> None:
        for name in ("users", "transmit_antennas", "receive_antennas"):
            check_whole(name, getattr(self, name))
        if not isinstance(self.cross_gain_db, int | float) or not self.cross_gain_db <= MAX_GAIN_DB:
            raise SemlinkError(f"cross_gain_db is {self.cross_gain_db}: a number of dB up to {MAX_GAIN_DB} is expected")
        check_number("csi_error", self.csi_error, 0, 1)

    def draw(self, batch: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """Draw H: (batch, K, K, Nr, Nt) complex64 on ``device``; H[b, k, j] leads from transmitter j to receiver k."""
        shape = (batch, self.users, self.users, self.receive_antennas, self.transmit_antennas)
        device = torch.device(device)
        return noise(shape, self._powers(device) if self.cross_gain_db else 1.0, generator, device)

    def estimate(self, H: Tensor, generator: torch.Generator, csi_error: float | Tensor | None = None) -> Tensor:
        """Return what receivers believe: (B, K, K, Nr, Nt) complex64, their MMSE estimate of H from noisy pilots.

        The estimate E leaves an error H - E that is independent of E, as an MMSE estimate of a Gaussian does: with g
        the power of an entry of H and s its mean square error, E has power g - s. Pilots that leave ``csi_error`` on
        entries of power 1 have energy e = 1 / csi_error - 1 over the noise, and so leave s = g / (1 + g e).

        Args:
            H: (B, K, K, Nr, Nt) complex.
            generator: draws the pilots' noise.
            csi_error: replaces the channel's own; one number, or one per image (B,) in [0, 1].

        Raises:
            SemlinkError: H or ``csi_error`` is not as said.
        """
        check_gains(H, self.users, self.receive_antennas, self.transmit_antennas)
        error = torch.as_tensor(self.csi_error if csi_error is None else csi_error, dtype=torch.float32).flatten()
        if not ((error >= 0) & (error <= 1)).all() or len(error) not in (1, len(H)):
            raise SemlinkError(f"csi_error holds {len(error)} values for {len(H)} images: one or {len(H)}, from 0 to 1")
        error, power = error.to(H.device)[:, None, None, None, None], self._powers(H.device)
        sure = power * (1 - error)
        kept = sure / (error + sure).clamp_min(torch.finfo(torch.float32).tiny)  # 1 - s / g
        spread = noise(tuple(H.shape), kept * (1 - kept) * power, generator, H.device)
        return kept * H.to(torch.complex64) + spread

    def __call__(self, X: Tensor, H: Tensor, snr_db: float | Tensor, generator: torch.Generator) -> Tensor:
        """Carry X: (B, K, Nt, N) complex over H and return Y: (B, K, Nr, N) complex64.

        All users go in one matrix product, in float32 whatever the precision around it. The channel does not measure
        the power of X: see :func:`normalise_block`.

        Args:
            X: what the transmitters send.
            H: (B, K, K, Nr, Nt) complex, from :meth:`draw`.
            snr_db: per transmit antenna, one number or one per image (B,).
            generator: draws the noise.

        Raises:
            SemlinkError: X or H has another shape, is not complex, H is not finite, or an SNR is not finite.
        """
        users, antennas = self.users, self.transmit_antennas
        check_gains(H, users, self.receive_antennas, antennas)
        batch = len(H)
        if X.ndim != 4 or X.shape[:3] != (batch, users, antennas) or not X.is_complex():
            raise SemlinkError(
                f"X is {X.dtype} of shape {tuple(X.shape)}: complex ({batch}, {users}, {antennas}, N) is expected, "
                "images by users by transmit antennas by channel uses"
            )
        with torch.autocast(X.device.type, enabled=False):
            n0 = one_variance(snr_db, noise_variance(snr_db, batch, X.device)[:, :, None, None])
            # One real product, twice as fast as a complex one: of each transmit antenna [Re H, Im H] by [X; j X].
            gains = torch.view_as_real(H.to(torch.complex64).transpose(2, 3).flatten(1).resolve_conj())
            sent = torch.view_as_real(torch.stack([X, 1j * X], 3).to(torch.complex64))
            heard = noise((batch, users, self.receive_antennas, X.shape[3]), n0, generator, X.device)
            rails = torch.view_as_real(heard).view(batch, users * self.receive_antennas, 2 * X.shape[3])
            rails.baddbmm_(
                gains.reshape(*rails.shape[:2], 2 * users * antennas),
                sent.reshape(batch, 2 * users * antennas, 2 * X.shape[3]),
            )
            return torch.view_as_complex(rails.view(*heard.shape, 2))

    def _powers(self, device: torch.device) -> Tensor:
        """Return E|entry|^2 of H_kj: (K, K, 1, 1) float32."""
        own = torch.eye(self.users, dtype=torch.bool, device=device)
        powers = torch.full(own.shape, 10 ** (self.cross_gain_db / 10), dtype=torch.float32, device=device)
        return powers.masked_fill(own, 1)[:, :, None, None]


def check_gains(H: Tensor, users: int | None = None, receive: int | None = None, transmit: int | None = None) -> None:
    """Pass H: (B, K, K, Nr, Nt) complex and finite; sizes that are given must match.

    Raises:
        SemlinkError: otherwise.
    """
    shape = tuple(H.shape)
    wanted = (users, users, receive, transmit)
    if (
        len(shape) != 5
        or shape[1] != shape[2]
        or any(w not in (None, s) for w, s in zip(wanted, shape[1:], strict=True))
    ):
        expected = ", ".join(str(w or name) for w, name in zip(wanted, ("K", "K", "Nr", "Nt"), strict=True))
        raise SemlinkError(
            f"H has shape {shape}: (B, {expected}) is expected, images by receivers by transmitters by antennas of each"
        )
    if not H.is_complex():
        raise SemlinkError(f"H is {H.dtype}: complex gains are expected, such as Interference(...).draw returns")
    if H.numel() and not torch.stack(torch.aminmax(torch.view_as_real(H.resolve_conj()))).isfinite().all():
        raise SemlinkError("H holds a gain that is not finite: draw it again, or check what computed it")


def local_csi(H: Tensor) -> Tensor:
    """Return what each receiver can know alone: (B, K, K, Nr, Nt), a view of H.

    Receiver k measures pilots at its own antennas, so it learns its row ``local_csi(H)[:, k]``: the gains from every
    transmitter to itself, (B, K, Nr, Nt), and none to the others. Paper B gives every receiver all of H instead.

    Raises:
        SemlinkError: H is not (B, K, K, Nr, Nt) complex and finite.
    """
    check_gains(H)
    return H.view_as(H)


def normalise_block(X: Tensor) -> Tensor:
    """Scale each user's block so that ``||X_k||_F^2 = Nt N`` (paper B, equation 2, P = 1), image by image.

    Args:
        X: (B, K, Nt, N) complex64.

    Returns:
        (B, K, Nt, N) complex64; a block of zeros stays zero.

    Raises:
        SemlinkError: X has another shape or is not complex.
    """
    if X.ndim != 4 or not X.is_complex():
        raise SemlinkError(f"X is {X.dtype} of shape {tuple(X.shape)}: complex (B, K, Nt, N) is expected")
    return normalise_power(X.reshape(X.shape[0] * X.shape[1], -1)).reshape(X.shape)


def pilot_error(snr_db: float | Tensor, pilots: float) -> float | Tensor:
    """Return the ``csi_error`` that pilots leave: ``1 / (1 + pilots 10^(snr_db / 10))``, as ``snr_db`` is shaped.

    The mean square error of the MMSE estimate of a CN(0, 1) gain. The K Nt transmit antennas send orthogonal sequences,
    which take at least K Nt channel uses.

    Args:
        snr_db: per transmit antenna.
        pilots: the energy of one antenna's sequence: the channel uses in which it sends at unit power. In turns of p
            channel uses each it is p; all at once, over T >= K Nt channel uses, it is T.

    Raises:
        SemlinkError: ``pilots`` is negative or not finite.
    """
    check_number("pilots", pilots)
    return 1 / (1 + pilots * 10 ** (snr_db / 10))
