# SPDX-License-Identifier: Apache-2.0
"""What every scheme is: all that happens to an image before the antenna and after it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError
from semlink._registry import Registry
from semlink.nn import Backbone, Phase
from semlink.nn.objective import Optimiser
from semlink.schemes.task import Task

Carry = Callable[[Tensor, torch.Generator], phy.Received]


@dataclass(frozen=True)
class Sent:
    """What leaves the transmitter for a batch of images.

    Attributes:
        symbols: (B, n) complex64 channel symbols; analog codes have unit mean energy per image. Of K users together
            (B, K, Nt, n), every antenna's symbols.
        payload_bits: bits per image of a digital payload, None for an analog code.
        header: public side information, one row per image (None for most schemes); anyone may read it.
    """

    symbols: Tensor
    payload_bits: float | None = None
    header: Tensor | None = None

    @property
    def channel_uses(self) -> int:
        """Complex symbols per image and antenna."""
        return self.symbols.shape[-1]


@dataclass(frozen=True)
class Design:
    """The dimensions of a link that its builder chooses; schemes add their own on top."""

    task: Task
    channel_uses: int
    backbone: Backbone


class Scheme(nn.Module, ABC):
    """A transmitter and its receiver.

    A subclass in a file of its own registers itself under its key and implements :meth:`transmit` and
    :meth:`receive`; the defaults below then train it with one optimiser on its task's loss.
    """

    #: What an attacker must hold to read the symbols as the receiver does; None if nothing.
    secret: ClassVar[str | None] = None

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design

    @abstractmethod
    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Encode ``images: (B, C, H, W) in [0, 1]``."""

    @abstractmethod
    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Return logits (B, outputs) or images (B, C, H, W); images may leave [0, 1] while training."""

    def observe(self, received: phy.Received, header: Tensor | None, with_secret: bool) -> Tensor:
        """Return ``(B, 2n) float32``: what any receiver of the symbols can feed to a network of its own.

        Raises:
            SemlinkError: ``with_secret`` is asked of a scheme that has none.
        """
        del header
        if with_secret:
            raise SemlinkError("this scheme has no key, so there is no attack 'with the key'; leave the option out")
        return phy.to_features(phy.equalise(received))

    @property
    def core(self) -> "Scheme":
        """The scheme that holds the networks: this one, or the one that it wraps; trained weights go there."""
        return self

    @property
    def group_shape(self) -> tuple[int, ...]:
        """The shape of what is sent at once: (C, H, W) of an image."""
        return self.design.task.image_shape

    def adapt(self, snr_db: float) -> bool:
        """Tell the transmitter the channel's Es/N0 in dB; return whether what it sends depends on that."""
        del snr_db
        return False

    def describe(self) -> dict[str, Any]:
        """Return what the record of a trained link says of it beside its numbers, in JSON's types."""
        return {}

    def prepare(self, images: Tensor) -> None:
        """Measure what must be measured before training on ``images: (N, C, H, W)`` of the transceiver's split."""

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return what to train; ``carry(symbols, generator)`` is the training channel."""
        return [Phase("transceiver", TaskObjective(self, carry, label_smoothing), optimiser)]


class TaskObjective(nn.Module):
    """The whole link on its task: image, symbols, channel, output, loss."""

    def __init__(self, scheme: Scheme, carry: Carry, label_smoothing: float) -> None:
        super().__init__()
        self.scheme = scheme
        self.carry = carry
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the task loss of one batch."""
        sent = self.scheme.transmit(images, generator)
        output = self.scheme.receive(self.carry(sent.symbols, generator), sent.header)
        return {"loss": self.scheme.design.task.loss(output.float(), images, targets, self.label_smoothing)}


schemes: Registry[type[Scheme]] = Registry("scheme")
