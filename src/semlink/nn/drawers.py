# SPDX-License-Identifier: Apache-2.0
"""Two more networks that draw an image from a code: one smaller than :class:`ImageDecoder`, one larger."""

import math

import torch
from torch import Tensor, nn

from semlink.nn.blocks import ConvBlock, Residual
from semlink.nn.coders import LATENT_SIDE, ImageDecoder, padded_side


class PlainDecoder(nn.Module):
    """``(B, features) -> (B, C, S, S)``: a fully connected layer, then a transposed convolution at each doubling.

    The decoder of published inversion attacks, which name little more of it (Z. He, T. Zhang and R. B. Lee, "Model
    inversion attacks against collaborative inference", ACSAC 2019, inverse network). The output is linear.
    """

    def __init__(self, features: int, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        side = padded_side(image_shape)
        self.crop = side - image_shape[1]
        channels = max(width // 2, 8)
        layers: list[nn.Module] = [
            nn.Linear(features, channels * LATENT_SIDE**2),
            nn.Unflatten(1, (channels, LATENT_SIDE, LATENT_SIDE)),
            nn.BatchNorm2d(channels),
            nn.GELU(),
        ]
        for _ in range(int(math.log2(side // LATENT_SIDE))):
            narrower = max(channels // 2, 8)
            layers += [
                nn.ConvTranspose2d(channels, narrower, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(narrower),
                nn.GELU(),
            ]
            channels = narrower
        draw = nn.Conv2d(channels, image_shape[0], 3, padding=1)
        nn.init.constant_(draw.bias, 0.5)  # pyright: ignore[reportArgumentType]
        self.layers = nn.Sequential(*layers, draw)

    def forward(self, features: Tensor) -> Tensor:
        """Draw a batch of images; clamp to [0, 1] before looking at them."""
        near = self.crop // 2
        image = self.layers(features)
        return image[..., near : image.shape[-2] - self.crop + near, near : image.shape[-1] - self.crop + near]


class UNetDecoder(nn.Module):
    """``(B, features) -> (B, C, H, W)``: the draft of an :class:`ImageDecoder`, corrected by a U-Net.

        features ─> ImageDecoder ─> draft ─┬─> down ─> down ─> middle ─> up ─> up ─> + ─> image
                                           └────────────────────────────────────────┘

    The U-Net sees the whole draft at once and so can make distant parts agree. What it adds is next to nothing
    at first.
    Source of the U-Net: O. Ronneberger, P. Fischer and T. Brox, MICCAI 2015.
    """

    def __init__(self, features: int, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.draft = ImageDecoder(features, image_shape, width)
        self.padding = -image_shape[1] % 4
        fine = max(width // 4, 8)
        coarse, middle = 2 * fine, 4 * fine
        self.enter = ConvBlock(image_shape[0], fine)
        self.down = nn.ModuleList([ConvBlock(fine, coarse, pool=True), ConvBlock(coarse, middle, pool=True)])
        self.middle = nn.Sequential(Residual(middle), Residual(middle))
        self.up = nn.ModuleList([ConvBlock(middle + coarse, coarse), ConvBlock(coarse + fine, fine)])
        self.larger = nn.Upsample(scale_factor=2)
        self.leave = nn.Conv2d(fine, image_shape[0], 3, padding=1)
        nn.init.normal_(self.leave.weight, std=1e-3)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor) -> Tensor:
        """Draw a batch of images; clamp to [0, 1] before looking at them."""
        draft = self.draft(features)
        height, width = draft.shape[-2:]
        passed = [self.enter(nn.functional.pad(draft, (0, self.padding, 0, self.padding)))]
        for block in self.down:
            passed.append(block(passed[-1]))
        x = self.middle(passed.pop())
        for block in self.up:
            x = block(torch.cat([self.larger(x), passed.pop()], 1))
        return draft + self.leave(x)[..., :height, :width]
