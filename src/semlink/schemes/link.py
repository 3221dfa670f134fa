# SPDX-License-Identifier: Apache-2.0
"""A link: a scheme on a channel."""

import torch
from torch import Tensor

from semlink import phy
from semlink.schemes.base import Scheme, Sent


class Link:
    """What a user holds: transmit, channel, receive.

    Attributes:
        scheme: the transmitter and receiver (a ``torch.nn.Module``).
        medium: the channel model between them.
        snr_db: Es/N0 that the link is designed for, in dB.
    """

    def __init__(self, scheme: Scheme, medium: phy.Channel, snr_db: float) -> None:
        self.scheme = scheme.eval()
        self.medium = medium
        self.snr_db = snr_db
        # Unforeseeable, so that no two processes ever repeat a nonce or a noise; give a generator to repeat a result.
        self._generator = torch.Generator()
        self._generator.seed()

    @torch.no_grad()
    def transmit(self, images: Tensor, generator: torch.Generator | None = None) -> Sent:
        """Encode ``images: (B, C, H, W) float32 in [0, 1]`` into channel symbols (B, n)."""
        return self.scheme.transmit(images, generator or self._generator)

    def channel(
        self, symbols: Tensor, snr_db: float | Tensor | None = None, generator: torch.Generator | None = None
    ) -> phy.Received:
        """Carry ``symbols: (B, n) complex64`` at ``snr_db`` (the design SNR if None; (B,) sets one per image)."""
        return self.medium(symbols, self.snr_db if snr_db is None else snr_db, generator or self._generator)

    def deliver(self, images: Tensor, snr_db: float | Tensor, generator: torch.Generator) -> Tensor:
        """Return what the receiver makes of ``images`` sent at ``snr_db``."""
        sent = self.transmit(images, generator)
        return self.receive(self.channel(sent.symbols, snr_db, generator), sent.header)

    @torch.no_grad()
    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Return logits (B, outputs), or images (B, C, H, W) in [0, 1]."""
        output = self.scheme.receive(received, header).float()
        return output.clamp(0, 1) if self.scheme.design.task.kind == "reconstruct" else output
