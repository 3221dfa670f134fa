# SPDX-License-Identifier: Apache-2.0
"""What an attacker may see, and what every attack offers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink._errors import SemlinkError, check_name, check_whole
from semlink._registry import Registry
from semlink.nn import Phase
from semlink.nn.objective import Optimiser
from semlink.phy.channel import Channel, Received, channels
from semlink.phy.combining import combine
from semlink.schemes import Link, Network, Scheme, Sent

#: What an attack may be given beside what arrives at her antennas: the encoder with its weights, or the codebook.
Grant = Literal["encoder", "codebook"]


@dataclass(frozen=True)
class Threat:
    """The eavesdropper's means.

    Attributes:
        snr_db: Es/N0 on her own channel, in dB, at each antenna; her noise is never Bob's.
        with_secret: she holds the scheme's key.
        antennas: of hers, or of those who collude; each has gains and noise of its own, and all are combined.
        transmissions: of the same image that she hears, each with the noise and the nonce that the scheme draws for it.
        channel: key of the model of her own channel, as ``rayleigh``; None if it is of the link's kind.
        csi: she knows the gains of her channel.

    Raises:
        SemlinkError: a number makes no sense, the channel is unknown, or several receptions are to be combined whose
            gains she does not know.
    """

    snr_db: float
    with_secret: bool = False
    antennas: int = 1
    transmissions: int = 1
    channel: str | None = None
    csi: bool = True

    def __post_init__(self) -> None:
        check_whole("antennas", self.antennas)
        check_whole("transmissions", self.transmissions)
        if self.channel is not None:
            check_name("channel", self.channel, channels.keys())
        if not self.csi and self.antennas * self.transmissions > 1:
            raise SemlinkError(
                "several receptions are combined by their gains, which an eavesdropper without CSI does not know; "
                "give her 1 antenna and 1 transmission, or csi"
            )

    def describe(self) -> dict[str, bool | int | float | str | None]:
        """Return what a record says of the threat."""
        return asdict(self)


def medium_of(link: Link, threat: Threat) -> Channel:
    """Return the model of the eavesdropper's own channel.

    Raises:
        SemlinkError: she cannot be on it while the link is on its own.
    """
    if threat.channel is None:
        return link.medium
    medium = channels[threat.channel]()
    if not medium.beside(link.medium):
        raise SemlinkError(f"nobody is on channel '{threat.channel}' while the link is on its own: name another")
    return medium


class Tap:
    """All that an attack gets of its victim: what arrives at the eavesdropper's antennas, and what she is granted.

    The victim is put in evaluation mode and runs without gradients; an attack that does not state in ``sees`` that it
    is given the encoder cannot reach it through a tap.

    Args:
        link: the victim.
        threat: the eavesdropper's means.
        sees: what else the attack is given.

    Raises:
        SemlinkError: the link is of several users, or of one where those are meant.
    """

    #: Whether it taps a network of several users.
    of_network: ClassVar[bool] = False

    def __init__(self, link: Link, threat: Threat, sees: frozenset[Grant] = frozenset()) -> None:
        if isinstance(link, Network) != self.of_network:
            raise SemlinkError(
                "this attack is by the receivers of a network of several users, and the link is of one"
                if self.of_network
                else "this attack is on a link of one user; on a network of several there is 'cross-link'"
            )
        link.scheme.eval()  # in training mode it would go on measuring BatchNorm's statistics
        self._link = link
        self.threat = threat
        self.sees = sees
        self._medium = medium_of(link, threat)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the victim sends."""
        return self._link.scheme.design.task.image_shape

    @property
    def features(self) -> int:
        """Real features per image: two for each channel use."""
        return 2 * self._link.scheme.design.channel_uses

    @property
    def victim(self) -> Link:
        """The link itself, for an attack that sees the encoder or the codebook."""
        if not self.sees:
            raise RuntimeError("this attack does not state that it is given anything of the link but what it sends")
        return self._link

    def send(self, images: Tensor, generator: torch.Generator) -> list[Sent]:
        """Have ``images: (B, C, H, W)`` sent as often as she hears them, in the victim's arithmetic."""
        # In bfloat16 a scale may fall on the other side of its threshold, an index to another codeword: what she would
        # learn from is not what will be sent.
        with torch.autocast(images.device.type, enabled=False):
            return [self._link.transmit(images, generator) for _ in range(self.threat.transmissions)]

    def intercept(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Have ``images: (B, C, H, W)`` sent and return what is heard, ``(B, features) float32``."""
        return self.hear(self.send(images, generator), generator)

    @torch.no_grad()
    def hear(self, sent: Sent | Sequence[Sent], generator: torch.Generator, snr_db: float | None = None) -> Tensor:
        """Return what is heard of ``sent``, transmissions of the same images.

        All receptions are combined by their gains; what lies under different keys is first read, then averaged.

        Args:
            sent: one message, or several of the same images.
            generator: draws her noise.
            snr_db: Es/N0 instead of the threat's own.
        """
        messages = [sent] if isinstance(sent, Sent) else list(sent)
        level = self.threat.snr_db if snr_db is None else snr_db
        heard = [[self._receive(each, level, generator) for _ in range(self.threat.antennas)] for each in messages]
        if all(each.header is None for each in messages):
            heard, messages = [[received for each in heard for received in each]], messages[:1]
        scheme, secret = self._link.scheme, self.threat.with_secret
        if len(messages) > 1 and not secret and _under_keys(scheme, messages):
            raise SemlinkError(
                "transmissions under fresh nonces are in different orders, and without the key their mean tells less "
                "than one of them; give her 1 transmission, or the key"
            )
        with torch.autocast(messages[0].symbols.device.type, enabled=False):
            read = [scheme.observe(combine(h), m.header, secret) for h, m in zip(heard, messages, strict=True)]
        return read[0] if len(read) == 1 else torch.stack(read).mean(0)

    def _receive(self, sent: Sent, snr_db: float, generator: torch.Generator) -> Received:
        received = self._medium(sent.symbols, snr_db, generator)
        return received if self.threat.csi else replace(received, csi=None)


def _under_keys(scheme: Scheme, messages: Sequence[Sent]) -> bool:
    """Say whether what is sent of the same images differs by keyed nonces."""
    if scheme.secret is None or getattr(scheme.core, "cipher", None) == "none":
        return False
    first, *others = (each.header for each in messages)
    return first is not None and any(each is None or not torch.equal(first, each) for each in others)


class Attack(nn.Module, ABC):
    """An attack that is trained on the attacker's own images.

    ``forward(images, targets, generator)`` returns the named losses of one batch. It either draws images, or infers
    what they show: see :class:`Drawing` and :class:`Inference`.
    """

    #: What it is given beside what arrives at her antennas.
    sees: ClassVar[frozenset[Grant]] = frozenset()
    #: It is judged on so many test images at most; None if on all.
    most_images: ClassVar[int | None] = None
    #: What it hears through.
    tapped: ClassVar[type[Tap]] = Tap

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap

    @abstractmethod
    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses on the attacker's own ``images``."""

    def phases(self, optimiser: Optimiser) -> list[Phase]:
        """Return what to train."""
        return [Phase("attack", self, optimiser)]


class Drawing(Attack):
    """An attack that draws the image; built with ``(tap, width, taps)``."""

    @abstractmethod
    def reconstruct(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for ``intercepted: (B, features)``, heard at ``snr_db``."""


class Inference(Attack):
    """An attack that names the class or the attributes of the image; built with ``(tap, width, kind, outputs)``.

    Args:
        tap: what she hears.
        kind: of the targets, ``classes`` or ``attributes``.
    """

    def __init__(self, tap: Tap, kind: str) -> None:
        super().__init__(tap)
        self.kind = kind

    @abstractmethod
    def infer(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Return logits (B, outputs) for ``intercepted: (B, features)``, heard at ``snr_db``."""

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, the cross-entropy in nats, a mean over attributes if the targets are such."""
        logits = self.infer(self.tap.intercept(images, generator), self.tap.threat.snr_db).float()
        if self.kind == "classes":
            return {"loss": F.cross_entropy(logits, targets)}
        return {"loss": F.binary_cross_entropy_with_logits(logits, targets)}


attacks: Registry[type[Attack]] = Registry("attack")
