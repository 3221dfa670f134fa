# SPDX-License-Identifier: Apache-2.0
"""VL-VFE: variable-length variational feature encoding, one model over a range of SNRs.

    sigma known to the transmitter ─> monotone network ─> scales s(sigma) ─┐
    image ─> Encoder ─> u ─> unit rows W ─> z = tanh(s(sigma) * W u), 0 where s <= threshold ─> power ─> x ─> channel
                                                                                                                 │
    answer <─ Classifier | ImageDecoder <─ unmix, refine(noise level) <─ dimensions that are sent <─ equaliser <─ y

VFE (vfe.py: loss, rate, power, SNR and what a silent dimension costs) with scales that never fall when the noise rises.
So the set of active dimensions grows with the noise: in bad conditions more is sent, and what is sent in good ones is
always among it. (The authors also sort the scales, so that active dimensions come first; here :meth:`VFE.modulated`
puts them first.) Training draws sigma for every image, uniformly between the two ends of the range, and the loss is the
mean over it.

Both ends know the channel's SNR, as in the paper: the receiver from its own estimate (``noise_variance``), the
transmitter from feedback. ``told_snr_db`` is what the transmitter was told; the SNR that the link was designed for if
nothing. What it was told is in the header, for both must agree on which dimensions are sent.

Source: as vfe.py. The defaults of the range are the SNR grid of S. Guo et al. (see deepjscc.py); the authors' own is a
peak SNR of 10 to 26 dB (sigma from 0.05 to 0.32).
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError, check_number
from semlink.nn import Phase
from semlink.nn.objective import Optimiser
from semlink.nn.variational import FixedScale, MonotoneScale
from semlink.phy.channel import MAX_DB, noise_variance
from semlink.schemes.base import Carry, Design, Sent, schemes
from semlink.schemes.vfe import VFE

# What the network's output is divided by. A step moves a scale by its bias and 16 weights at once, up to 17 times as
# far as the bias alone: at VFE's learning rate, dimensions would be pruned before the task has shown what it needs.
_CALM = 4.0


@schemes.register("vl-vfe")
class VLVFE(VFE):
    """VFE with noise-dependent length.

    Args:
        design: dimensions of the link.
        power: as VFE.
        snr_low_db: least SNR of training, in the convention of ``power``. Default 4: the grid of Guo et al.
        snr_high_db: greatest SNR of training. Default 20: the same grid.
        beta, anneal_start, anneal_end, threshold: as VFE.

    Attributes:
        told_snr_db: the channel's SNR as the transmitter knows it, one number or one for each image; None is the SNR
            that the link was trained for.

    Raises:
        SemlinkError: as VFE, or the range of SNRs is empty.
    """

    scale_kind: ClassVar[type[FixedScale] | type[MonotoneScale]] = MonotoneScale
    design_snr_db: Tensor

    def __init__(
        self,
        design: Design,
        power: str = "average",
        snr_low_db: float = 4.0,
        snr_high_db: float = 20.0,
        beta: float = 9e-3,
        anneal_start: float = 1 / 16,
        anneal_end: float = 1 / 8,
        threshold: float = 0.01,
    ) -> None:
        super().__init__(design, power, beta, anneal_start, anneal_end, threshold)
        self.snr_low_db = check_number("option snr_low_db", snr_low_db, -MAX_DB, MAX_DB)
        self.snr_high_db = check_number("option snr_high_db", snr_high_db, -MAX_DB, MAX_DB)
        if self.snr_low_db >= self.snr_high_db:
            raise SemlinkError(
                f"options snr_low_db = {snr_low_db:g} and snr_high_db = {snr_high_db:g}: the first must be the lower"
            )
        assert isinstance(self.scale, MonotoneScale)
        _spread(self.scale, *(_level(snr_db) for snr_db in (self.snr_high_db, self.snr_low_db)))
        self.told_snr_db: float | Tensor | None = None
        self.register_buffer("design_snr_db", torch.tensor(12.0))  # until training says; travels with the weights

    def active(self, scales: Tensor) -> Tensor:
        """Return which dimensions are sent: (B, d) bool, exactly one where all scales are 0."""
        largest = torch.zeros_like(scales, dtype=torch.bool).scatter(1, scales.argmax(1, keepdim=True), True)
        return (scales > self.threshold) | largest

    def active_dimensions(self, snr_db: float | None = None) -> int:
        """Return how many real dimensions are sent when the transmitter is told ``snr_db`` (None: the design's)."""
        return int(self.active(self._scales(self._variance(snr_db, 1))).sum())

    def adapt(self, snr_db: float) -> bool:
        """Set what the transmitter was told."""
        self.told_snr_db = snr_db
        return True

    def describe(self) -> dict[str, Any]:
        """Return how many dimensions are sent at which SNR, for the record."""
        grid = range(math.ceil(self.snr_low_db), math.floor(self.snr_high_db) + 1)
        return {"active_dimensions": {f"{snr_db:g} dB": self.active_dimensions(snr_db) for snr_db in grid}}

    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Encode for the SNR that the transmitter was told; nothing here is random."""
        del generator
        return self._adapted(images, self._variance(self.told_snr_db, len(images)))

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Take the dimensions that are sent, and answer; a lost header is replaced by the receiver's own estimate."""
        return self.answered(received, self._scales(received.noise_variance if header is None else header))

    def send(self, images: Tensor, carry: Carry, generator: torch.Generator) -> tuple[Sent, phy.Received]:
        """Send every image at an SNR of its own."""
        low, high = 10 ** (-self.snr_high_db / 20), 10 ** (-self.snr_low_db / 20)
        drawn = torch.rand(len(images), 1, generator=generator, device=generator.device).to(images.device)
        sigma = low + (high - low) * drawn
        sent = self._adapted(images, sigma.square())
        return sent, carried_at(carry, sent.symbols, sigma, self._variance(None, 1).sqrt(), generator)

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return VFE's phase; the training channel also says what SNR the link is for."""
        silence = torch.zeros(1, 1, dtype=torch.complex64)
        n0 = carry(silence, torch.Generator()).noise_variance
        self.design_snr_db.fill_(-10 * n0.log10().item())
        return super().phases(optimiser, carry, label_smoothing)

    def _scales(self, n0: Tensor) -> Tensor:
        """Return the scales, (B, d), above 0: an image whose every dimension is pruned still sends the largest."""
        return (self.scale(n0) / _CALM).clamp_min(1e-6)

    def _adapted(self, images: Tensor, n0: Tensor) -> Sent:
        return Sent(self.modulated(images, self._scales(n0)), header=n0)

    def _variance(self, snr_db: float | Tensor | None, batch: int) -> Tensor:
        """Return the noise variance, (batch, 1), that goes with ``snr_db``; with the design's if that is None."""
        return noise_variance(self.design_snr_db if snr_db is None else snr_db, batch, self.design_snr_db.device)


def _level(snr_db: float) -> float:
    """Return what the scales' network takes for the SNR."""
    n0 = 10 ** (-snr_db / 10)
    return math.sqrt(n0 / (1 + n0))


@torch.no_grad()
def _spread(scale: MonotoneScale, low: float, high: float) -> None:
    """Start the scales as functions that rise over the whole range of noise levels, from nearly 0.

    With the usual start they are nearly flat over it, and a dimension is pruned at every SNR at once or at none.
    """
    first, *hidden, last = (layer for layer in scale.layers if isinstance(layer, nn.Linear))
    width, steepness = first.bias.numel(), 6 / (high - low)
    first.weight.fill_(steepness)
    first.bias.copy_(-steepness * torch.linspace(low, high, width))
    for layer in hidden:
        layer.weight.uniform_(0, 3 / width)
        layer.bias.uniform_(-0.5, 0.5)
    last.weight.uniform_(-4 * _CALM / width, 4 * _CALM / width)
    last.bias.fill_(2.0 * _CALM)  # scales begin between about 0.2 and 4


def carried_at(
    carry: Carry, symbols: Tensor, sigma: Tensor, design_sigma: Tensor, generator: torch.Generator
) -> phy.Received:
    """Carry ``symbols: (B, n)`` as a channel of noise ``sigma: (B, 1)`` would, over one of noise ``design_sigma``.

    Amplified before the channel and attenuated by as much after it, y / a = h x + n / a: exactly the channel of noise
    sigma = design_sigma / a, with or without fading.
    """
    gain = design_sigma / sigma
    received = carry(symbols * gain, generator)
    return phy.Received(received.symbols / gain, received.csi, received.noise_variance / gain.square())
