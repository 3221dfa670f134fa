# SPDX-License-Identifier: Apache-2.0
"""What an attacker may see, and what every attack offers."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from semlink._errors import check_whole
from semlink._registry import Registry
from semlink.nn import Phase
from semlink.nn.objective import Optimiser
from semlink.phy.combining import combine
from semlink.schemes import Link, Sent


@dataclass(frozen=True)
class Threat:
    """The eavesdropper's means.

    Attributes:
        snr_db: Es/N0 on her own channel, in dB, at each antenna; her noise is never Bob's.
        with_secret: she holds the scheme's key.
        antennas: of hers, or of those who collude; each has gains and noise of its own, and all are combined.
    """

    snr_db: float
    with_secret: bool = False
    antennas: int = 1

    def __post_init__(self) -> None:
        check_whole("antennas", self.antennas)

    def describe(self) -> dict[str, bool | int | float]:
        """Return what a record says of the threat."""
        return asdict(self)


class Tap:
    """All that an attack gets of its victim: what arrives at the eavesdropper's antenna, and nothing else.

    The victim is put in evaluation mode and runs without gradients; no attack can reach its weights through a tap.
    """

    def __init__(self, link: Link, threat: Threat) -> None:
        link.scheme.eval()  # in training mode it would go on measuring BatchNorm's statistics
        self._link = link
        self.threat = threat

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the victim sends."""
        return self._link.scheme.design.task.image_shape

    @property
    def features(self) -> int:
        """Real features per image: two for each channel use."""
        return 2 * self._link.scheme.design.channel_uses

    def intercept(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Have ``images: (B, C, H, W)`` sent and return what is heard, ``(B, features) float32``."""
        return self.hear(self._link.transmit(images, generator), generator)

    @torch.no_grad()
    def hear(self, sent: Sent, generator: torch.Generator, snr_db: float | None = None) -> Tensor:
        """Return what is heard of ``sent``, at ``snr_db`` instead of the threat's own if that is given."""
        level = self.threat.snr_db if snr_db is None else snr_db
        received = combine([self._link.channel(sent.symbols, level, generator) for _ in range(self.threat.antennas)])
        return self._link.scheme.observe(received, sent.header, self.threat.with_secret)


class Attack(nn.Module, ABC):
    """An attack that is trained: its phases, and the reconstruction that it then draws.

    ``forward(images, targets, generator)`` returns the named losses of one batch.
    """

    #: It is judged on so many test images at most; None if on all.
    most_images: ClassVar[int | None] = None

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap

    @abstractmethod
    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses on the attacker's own ``images``."""

    @abstractmethod
    def reconstruct(self, intercepted: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for ``intercepted: (B, features)``."""

    def phases(self, optimiser: Optimiser) -> list[Phase]:
        """Return what to train."""
        return [Phase("attack", self, optimiser)]


attacks: Registry[type[Attack]] = Registry("attack")
