# SPDX-License-Identifier: Apache-2.0
"""Generative inversion: a flow that carries noise to images which could have been sent, given what was heard.

    heard ─> ImageDecoder ─> draft ──────────────┐
    heard ─> linear ─> shift and scale ──────┐   │
                                             ▼   ▼
    x_t = (1 - t) noise + t image, t ─> velocity network ─> v        loss: |v - (image - noise)|^2 + |draft - image|^2

    noise = x_0 ─> x_t + v / STEPS, STEPS times ─> x_1, a sample of the posterior

A decoder trained on squared error draws the mean of all images that fit what was heard, which is blurred and may be no
image at all. Samples are images; their spread says what was not heard. ``reconstruct`` is the mean of several samples,
``sample`` one.

May see and may not see: as decoder inversion; it is trained on the attacker's own images through her own noise.

Source: Y. Lipman et al., "Flow matching for generative modeling", ICLR 2023, with straight (optimal transport) paths,
eq. (20)-(23) for sigma_min = 0; conditioning on intercepted features and their draft is ours.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink._errors import SemlinkError
from semlink.attacks.base import Drawing, Tap, attacks
from semlink.nn import ImageDecoder

STEPS = 16  # of Euler, from noise to an image
SAMPLES = 8  # whose mean is the reconstruction
_WAVES = 8  # pairs of sines and cosines that tell the time


def _block(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    """Return a convolution with group norm; batch norm, whose statistics mix all times, drew too many common images."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.MaxPool2d(2) if pool else nn.Identity(),
        nn.GroupNorm(8, channels_out),
        nn.GELU(),
    )


class Velocity(nn.Module):
    """``(x: (B, C, S, S), draft: as x, t: (B,), heard: (B, F)) -> (B, C, S, S)``: a U-Net of two levels."""

    def __init__(self, features: int, channels: int, width: int) -> None:
        super().__init__()
        fine, coarse = 8 * max(width // 64, 2), 8 * max(width // 32, 4)
        self.enter = _block(2 * channels, fine)
        self.down = _block(fine, coarse, pool=True)
        self.condition = nn.Linear(features + 2 * _WAVES, 2 * coarse)
        self.middle = nn.Sequential(_block(coarse, coarse), _block(coarse, coarse))
        self.up = _block(coarse + fine, fine)
        self.leave = nn.Conv2d(fine + 2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, draft: Tensor, t: Tensor, heard: Tensor) -> Tensor:
        """Return the velocity."""
        seen = torch.cat([x, draft], 1)
        passed = self.enter(seen)
        frequencies = math.pi * 2.0 ** torch.arange(_WAVES, device=t.device) / 4
        waves = torch.cat([(t[:, None] * frequencies).sin(), (t[:, None] * frequencies).cos()], 1)
        shift, scale = self.condition(torch.cat([heard, waves], 1))[..., None, None].chunk(2, 1)
        inner = self.middle(self.down(passed) * (1 + scale) + shift)
        outer = self.up(torch.cat([F.interpolate(inner, passed.shape[2:]), passed], 1))
        return self.leave(torch.cat([outer, seen], 1))


@attacks.register("generative")
class Generative(Drawing):
    """Generative inversion.

    Args:
        tap: what she hears.
        width: channels of the draft's decoder at 4x4; the velocity network has a quarter of them.
        taps: VGG16 layers of a perceptual loss; 0, for a flow learns the distribution of images and has no use for one.

    Raises:
        SemlinkError: a perceptual loss is asked for.
    """

    most_images = 1000  # each is drawn SAMPLES times in STEPS steps

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        if taps:
            raise SemlinkError("attack 'generative' has no perceptual loss; use it with perceptual 'none'")
        super().__init__(tap)
        self.decoder = ImageDecoder(tap.features, tap.image_shape, width)
        self.velocity = Velocity(tap.features, tap.image_shape[0], width)

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, ``flow`` and ``mse``, the draft's, on a batch."""
        del targets
        heard = self.tap.intercept(images, generator)
        draft = self.decoder(heard).float()
        t = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        target = 2 * images.float() - 1
        v = self.velocity((1 - t) * noise + t * target, 2 * draft.detach() - 1, t.flatten(), heard).float()
        losses = {"flow": F.mse_loss(v, target - noise), "mse": F.mse_loss(draft, images)}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    @torch.no_grad()
    def sample(self, intercepted: Tensor, generator: torch.Generator) -> Tensor:
        """Return an image (B, C, H, W) in [0, 1] of each posterior."""
        draft = 2 * self.decoder(intercepted).float() - 1
        x = torch.randn(draft.shape, generator=generator, device=draft.device)
        for step in range(STEPS):
            t = torch.full((len(x),), (step + 0.5) / STEPS, device=x.device)  # the middle of the step
            x = x + self.velocity(x, draft, t, intercepted).float() / STEPS
        return ((x + 1) / 2).clamp(0, 1)

    def reconstruct(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Return the mean of SAMPLES samples, always of the same noise."""
        del snr_db
        generator = torch.Generator(intercepted.device).manual_seed(0)
        return torch.stack([self.sample(intercepted, generator) for _ in range(SAMPLES)]).mean(0)
