# SPDX-License-Identifier: Apache-2.0
"""The adversary that a scheme trains against: she draws the image from what she receives.

    image ─> transmitter ─> her own channel ─> what she hears (B, F) ─> ImageDecoder ─> drawing (B, C, H, W)
      └─────────────────────── mean squared error, which she minimises ─────────────────────┘

The transmitter gains what she lacks, the bounded privacy of an image:

    privacy = min( |drawing - image|^2 / |mean image - image|^2, 1 )        mean image: of the transceiver's split

0 is a perfect drawing; 1 one that is no nearer to the image than the drawing of someone who has heard nothing. It lies
in [0, 1], so however it is weighed it ends; -MSE has no end, and outgrows every task. And from 1 on it is flat: a code
that makes her draw negatives, further from the image than the mean is, or that blows her drawings up, gains neither
value nor gradient over one that tells her nothing. (To whoever is trained afterwards a negative is a turned sign.)

She is kept good in two ways. She takes k steps for each of the transmitter's, each on a 2k-th of a new batch, so that a
round costs half a pass through the encoder more and not k passes. And she starts anew, weights, statistics
and optimiser, at set shares of training (R restarts: after 1 / (R + 1), 2 / (R + 1), ...), because a code may hide from
one decoder what any other would find. Her weights after a restart follow from a stored seed and the number of the
restart; that number is stored too, so a run that is resumed restarts her when, and as, the whole run would have.

Neither player moves the other, or what the other has measured: while she listens the victim is in evaluation mode, as
it will be when it is attacked, and its BatchNorm statistics, codeword counts and the like stand still; while the victim
learns she is in evaluation mode. She trains on the transceiver's images: the attacker's split is for those who judge
the link, who are never her. They are trained from scratch, on other images, wider, at their own SNR.

Source: T. Xiao et al., "Adversarial learning of privacy-preserving and task-oriented representations", AAAI 2020, for
the game; the bound, the shared batch and the restarts are ours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink._errors import check_whole
from semlink.nn.coders import ImageDecoder
from semlink.nn.objective import Annealed, Optimiser, Phase, Telling

_TINY = 1e-6  # of the mean image's squared error: an image that is the mean image betrays nothing


class Adversary(nn.Module):
    """An inner adversary: part of a scheme's training state, no part of the link.

    Whoever counts a link's parameters leaves out modules of this class.

    Args:
        features: F, what she hears of an image.
        image_shape: (C, H, W).
        backbone_width: of the link; her decoder has half of it, 64 at most: less than the presets' attackers have, and
            enough to learn fast (at 8, a picture that took 64 channels 60 steps took more than 100).
        steps: k, optimiser steps for each of the victim's.
        restarts: R, how often she starts anew.

    Attributes:
        features: F.
        mean_image: (C, H, W) float32, measured by :meth:`measure`; grey until then.
        seed: of her restarts, drawn when she is made.
        restarted: how often she has.

    Raises:
        SemlinkError: ``steps`` is no whole number of 1 or more, or ``restarts`` none of 0 or more.
    """

    mean_image: Tensor
    seed: Tensor
    restarted: Tensor

    def __init__(
        self, features: int, image_shape: tuple[int, int, int], backbone_width: int, steps: int, restarts: int
    ) -> None:
        super().__init__()
        self.steps, self.restarts = (
            check_whole("option adversary_steps", steps),
            check_whole("option restarts", restarts, least=0),
        )
        self.features = features
        self._size = (features, image_shape, max(8, min(64, backbone_width // 2)))
        self.decoder = ImageDecoder(*self._size)
        self.register_buffer("mean_image", torch.full(image_shape, 0.5))
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("restarted", torch.tensor(0))

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Set the mean image from ``images: (N, C, H, W) float32`` of the transceiver's split."""
        self.mean_image.copy_(images.mean(0))

    def forward(self, heard: Tensor) -> Tensor:
        """Draw images (B, C, H, W) float32, unclamped, from ``heard: (B, F)``."""
        return self.decoder(heard).float()

    def privacy(self, heard: Tensor, images: Tensor) -> Tensor:
        """Return the bounded privacy of each image, (B,) in [0, 1], from a drawing that does not move her."""
        with still(self):
            return self.bounded(self(heard), images)

    def bounded(self, drawn: Tensor, images: Tensor) -> Tensor:
        """Return ``min(|drawn - image|^2 / |mean image - image|^2, 1)``, (B,), for images (B, C, H, W)."""
        ignorant = (self.mean_image - images).square().mean((1, 2, 3))
        relative = (drawn - images).square().mean((1, 2, 3)) / ignorant.clamp_min(_TINY)
        return relative.clamp_max(1)

    def restart_if_due(self, progress: float) -> bool:
        """Start anew if a restart is due at ``progress`` in [0, 1) of training; return whether one was."""
        due = min(int(progress * (self.restarts + 1) + 1e-9), self.restarts)
        if due <= int(self.restarted):
            return False
        self.restarted.fill_(due)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.seed) + due)
            self.decoder.load_state_dict(ImageDecoder(*self._size).state_dict())
        return True


class Game(Annealed, ABC):
    """The victim's objective while an adversary learns too; ``forward`` returns its losses, as every phase's module."""

    @abstractmethod
    def hear(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the adversary hears of ``images``, (B, F); called without gradient, the victim in evaluation."""

    def phases(self, victim: nn.Module, adversary: Adversary, optimiser: Optimiser) -> list[Phase]:
        """Return the players of a round: the victim, all but her, on this objective; then her, several steps."""
        adversary.restarted.zero_()  # of this training; weights that a link is started from may bring another's
        hers = list(adversary.parameters())
        known = set(map(id, hers))
        mine = [p for p in victim.parameters() if id(p) not in known]
        told = Telling.of(optimiser, self.at)
        # Adam at a constant rate: she must never cool, for what she learns from goes on moving.
        own = _Restarting("adamw", learning_rate=3e-3, adversary=adversary)
        listening = _Listening(adversary, victim, self.hear)
        return [
            Phase("transceiver", self, told, mine),
            Phase("adversary", listening, own, hers, steps=adversary.steps),
        ]


class _Listening(nn.Module):
    """Her objective: to draw what she hears."""

    def __init__(
        self, adversary: Adversary, victim: nn.Module, hear: Callable[[Tensor, torch.Generator], Tensor]
    ) -> None:
        super().__init__()
        self.adversary = adversary
        self.victim = victim
        self.hear = hear

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return her squared error on this step's share of the batch."""
        del targets
        images = images[: -(-len(images) // (2 * self.adversary.steps))]
        with torch.no_grad(), still(self.victim):
            heard = self.hear(images, generator)
        return {"loss": F.mse_loss(self.adversary(heard), images)}


@dataclass(frozen=True)
class _Restarting(Optimiser):
    """Her optimiser; it restarts her when the loop tells it that this is due, and then starts anew itself."""

    adversary: Adversary = field(kw_only=True)
    built: list[torch.optim.Optimizer] = field(default_factory=list, kw_only=True)

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimiser, and remember it."""
        self.built.append(super().build(parameters))
        return self.built[-1]

    def rate_at(self, progress: float) -> float:
        """Restart her if that is due, and return the learning rate."""
        if self.adversary.restart_if_due(progress):
            for each in self.built:
                each.state.clear()
        return super().rate_at(progress)


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Put ``module`` in evaluation mode, so that nothing it measures in training moves; then as every part was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
