# SPDX-License-Identifier: Apache-2.0
"""Flat channels: AWGN, Rayleigh, Rician; one among others on an interference channel is in interfered.py.

    y = h x + n,    n ~ CN(0, N0),    N0 = 10^(-snr_db / 10),    E|h|^2 = 1

With unit symbol energy at the transmitter (see power.py) ``snr_db`` is the average Es/N0. A channel never measures the
power of what it carries: a deep fade lowers the SNR, as it should.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_name
from semlink._registry import Registry
from semlink.phy.normals import normals

Block = Literal["image", "symbol"]
MAX_DB = 300  # N0 must stay a normal float32, from 1e-30 to 1e30


@dataclass(frozen=True)
class Received:
    """What arrives at one receiver.

    Attributes:
        symbols: (B, n) complex64.
        csi: channel gains h, (B, 1) if constant over an image, (B, n) if not; None where there is no fading.
        noise_variance: complex noise variance N0, (B, 1) float32 ((B, n) after :func:`zero_force` per symbol).
    """

    symbols: Tensor
    csi: Tensor | None
    noise_variance: Tensor


def noise(shape: tuple[int, ...], variance: float | Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw CN(0, variance): complex64 of ``shape`` on ``device``.

    Both rails come from one call on the generator's own device, so a CPU generator gives the same noise everywhere.

    Args:
        shape: of the result.
        variance: complex variance, half of it on each rail; a number or a tensor on ``device`` that broadcasts.
        generator: the source of randomness.
        device: where the noise is needed.
    """
    if isinstance(variance, Tensor):
        # Scaled as reals: a product of complex by real numbers is one of complex by complex ones.
        rails = normals((*shape, 2), 1.0, generator).to(device).mul_((variance / 2).sqrt().unsqueeze(-1))
    else:
        rails = normals((*shape, 2), math.sqrt(variance / 2), generator).to(device)  # scaled as it is drawn
    return torch.view_as_complex(rails)


class Channel(ABC):
    """A flat channel with additive noise; subclasses draw the gains.

    Attributes:
        key: the name it is registered under.
    """

    key: ClassVar[str]

    @abstractmethod
    def gains(self, batch: int, uses: int, n0: Tensor, generator: torch.Generator) -> Tensor | None:
        """Draw gains: (batch, 1) or (batch, uses) complex64 on the device of ``n0``, or None for a gain of 1.

        Args:
            batch: B.
            uses: n.
            n0: complex noise variance, (batch, 1) float32.
            generator: the source of randomness.
        """

    def sinr(self, snr_db: float) -> Tensor | None:
        """Return SINRs of a unit-energy symbol that are equally likely, (n,); None where gains have unit mean power."""
        del snr_db
        return None

    def beside(self, meant: "Channel") -> bool:
        """Say whether an eavesdropper can be on this channel while the link is on ``meant``: on most, always."""
        del meant
        return True

    def __call__(self, symbols: Tensor, snr_db: float | Tensor, generator: torch.Generator) -> Received:
        """Carry ``symbols: (B, n) complex64``, in float32 whatever the precision around it.

        Args:
            symbols: the transmitted block.
            snr_db: Es/N0 in dB, one number or one per image (B,).
            generator: draws gains, then noise.

        Raises:
            SemlinkError: an SNR is not finite, there are not as many as images, or the symbols are not complex.
        """
        if not symbols.is_complex() or symbols.ndim != 2:
            raise SemlinkError(
                f"the channel carries (B, n) complex symbols, not {symbols.dtype} of shape {tuple(symbols.shape)}; "
                "real features go through to_symbols first"
            )
        batch, uses = symbols.shape
        with torch.autocast(symbols.device.type, enabled=False):
            n0 = noise_variance(snr_db, batch, symbols.device)
            symbols = symbols.to(torch.complex64)
            h = self.gains(batch, uses, n0, generator)
            heard = noise((batch, uses), one_variance(snr_db, n0), generator, symbols.device)
            return Received(heard.add_(symbols) if h is None else heard.addcmul_(h, symbols), h, n0)


def noise_variance(snr_db: float | Tensor, batch: int, device: torch.device) -> Tensor:
    """Return ``N0 = 10^(-snr_db / 10)``: (batch, 1) float32.

    Raises:
        SemlinkError: an SNR is not finite or beyond 300 dB, or there are neither one nor ``batch`` of them.
    """
    level = torch.as_tensor(snr_db, dtype=torch.float32).flatten()
    wrong = level[~(level.abs() <= MAX_DB)]
    if len(wrong):
        raise SemlinkError(f"snr_db is {wrong[0].item()}: a finite number of dB within +-{MAX_DB} is expected")
    if len(level) not in (1, batch):
        raise SemlinkError(f"snr_db holds {len(level)} values for {batch} images: give one for all or one for each")
    level = level.to(device)[:, None]
    return (10 ** (-level / 10)).expand(batch, 1)


def one_variance(snr_db: float | Tensor, n0: Tensor) -> float | Tensor:
    """Return ``n0`` as :func:`noise` takes it: the one number that all of it is, where ``snr_db`` is a number."""
    return 10 ** (-snr_db / 10) if isinstance(snr_db, int | float) else n0


class AWGN(Channel):
    """Additive white Gaussian noise alone."""

    key = "awgn"

    def gains(self, batch: int, uses: int, n0: Tensor, generator: torch.Generator) -> None:
        """There are none."""


class Rician(Channel):
    """A line of sight of phase 0 and power K / (K + 1) over scattered paths.

    Args:
        k_factor_db: power of the line of sight over the scattered power, in dB; -inf is Rayleigh.
        block: ``image``: one gain per image; ``symbol``: an independent gain per symbol.

    Raises:
        SemlinkError: ``k_factor_db`` is NaN or above 100 dB, or ``block`` is unknown.
    """

    key = "rician"

    def __init__(self, k_factor_db: float = 6.0, block: Block = "image") -> None:
        if not k_factor_db <= 100:
            raise SemlinkError(f"k_factor_db is {k_factor_db}: at most 100 dB is expected; without fading use 'awgn'")
        check_name("fading block", block, ("image", "symbol"))
        self.block = block
        self.k_factor = 10 ** (k_factor_db / 10)

    def gains(self, batch: int, uses: int, n0: Tensor, generator: torch.Generator) -> Tensor:
        """Draw ``sqrt(K / (K + 1)) + CN(0, 1 / (K + 1))``."""
        shape, scattered = (batch, 1 if self.block == "image" else uses), 1 / (self.k_factor + 1)
        return math.sqrt(self.k_factor * scattered) + noise(shape, scattered, generator, n0.device)


class Rayleigh(Rician):
    """Scattered paths alone: h ~ CN(0, 1)."""

    key = "rayleigh"

    def __init__(self, block: Block = "image") -> None:
        super().__init__(-math.inf, block)


def equalise(received: Received) -> Tensor:
    """Return the symbols that a receiver with CSI estimates, (B, n) complex64: for analog codes.

    The linear MMSE estimate of a unit-energy symbol, ``h* y / (|h|^2 + N0)``; without fading, ``y`` itself.
    """
    if received.csi is None:
        return received.symbols
    return received.symbols * received.csi.conj() / (_energy(received.csi) + received.noise_variance)


def zero_force(received: Received) -> Received:
    """Divide the gains out: ``y / h`` with noise variance ``N0 / |h|^2`` and no CSI left; for constellations.

    The MMSE estimate of :func:`equalise` is shrunk, so nearest-point decisions and posteriors on it would be wrong.
    """
    if received.csi is None:
        return received
    gain = _energy(received.csi)
    return Received(received.symbols * received.csi.conj() / gain, None, received.noise_variance / gain)


def _energy(h: Tensor) -> Tensor:
    return torch.view_as_real(h).square().sum(-1)


channels: Registry[type[Channel]] = Registry("channel")
for _kind in (AWGN, Rayleigh, Rician):
    channels.register(_kind.key)(_kind)  # not as decorators, which would hide the constructors' arguments from checkers
