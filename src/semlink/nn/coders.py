# SPDX-License-Identifier: Apache-2.0
"""Encoder, classifying receiver and image decoder around one 4x4 latent map.

                 Whitening        stages: ConvBlock (pool), ConvBlock          1x1
    image (C,S,S) ───────> (8C,S,S) ───────> ... ───────> (width,4,4) ───────> latent (L,4,4)

Images of 28x28 are padded to 32x32; the number of stages is log2(S / 4): three for 32x32, four for 64x64.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from semlink._errors import SemlinkError
from semlink.nn.blocks import ConvBlock, Residual, Whitening

LATENT_SIDE = 4


@dataclass(frozen=True)
class Backbone:
    """Size of a link's networks.

    Attributes:
        width: channels of the deepest encoder stage; each earlier stage has about half of the next.
        head: channels of the receiver's last layer.
    """

    width: int
    head: int

    def stages(self, side: int) -> list[int]:
        """Channels of each stage for images of ``side`` pixels, shallow to deep.

        The first stage, where positions are most and multiply-adds dearest, gets 3/4 of the halved width.
        """
        count = int(math.log2(side // LATENT_SIDE))
        widths = [max(8, self.width >> (count - 1 - i)) for i in range(count)]
        return [max(8, 3 * widths[0] // 4), *widths[1:]]


def padded_side(image_shape: tuple[int, int, int]) -> int:
    """Return the side that images of ``image_shape = (C, H, W)`` are padded to: a power of two, at least 8.

    Raises:
        SemlinkError: the images are not square, or smaller than 5 pixels.
    """
    _, height, width = image_shape
    if height != width or height < 5:
        raise SemlinkError(f"images of {height}x{width} pixels: square images of 5 pixels or more are supported")
    return 1 << (height - 1).bit_length()


class Encoder(nn.Module):
    """``(B, C, S, S) in [0, 1] -> (B, latent_channels, 4, 4)``, unnormalised.

    ``bias`` of the last layer is left out where a normalisation follows that would take it out again.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_channels: int, backbone: Backbone, bias: bool = True
    ) -> None:
        super().__init__()
        side = padded_side(image_shape)
        self.padding = side - image_shape[1]
        self.whitening = Whitening(image_shape[0])
        layers: list[nn.Module] = []
        channels = self.whitening.channels_out
        for width in backbone.stages(side):
            layers += [ConvBlock(channels, width, pool=True), ConvBlock(width, width)]
            channels = width
        self.stages = nn.Sequential(*layers, nn.Conv2d(channels, latent_channels, 1, bias=bias))

    def forward(self, images: Tensor) -> Tensor:
        """Encode a batch of images."""
        near = self.padding // 2
        far = self.padding - near
        images = F.pad(images, (near, far, near, far))
        return self.stages(F.gelu(self.whitening(images)))


class Classifier(nn.Module):
    """``(B, latent_channels, 4, 4) -> (B, outputs)`` logits."""

    def __init__(self, latent_channels: int, outputs: int, backbone: Backbone) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBlock(latent_channels, backbone.width),
            Residual(backbone.width),
            nn.MaxPool2d(2),  # pooled first: the widest layer, with most parameters, runs on 2x2 positions only
            ConvBlock(backbone.width, backbone.head),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.logits = nn.Linear(backbone.head, outputs, bias=False)

    def forward(self, latent: Tensor) -> Tensor:
        """Classify a batch of received latent maps."""
        return self.logits(self.layers(latent)) / 8  # keeps early logits small, which large steps need


class ImageDecoder(nn.Module):
    """``(B, features) -> (B, C, S, S)``: draws an image from a code of any arrangement.

    The first layer is fully connected, so no order of the features is harder than another. Beside it a linear shortcut
    reads the features as a 4x4 map, as DeepJSCC sends them: what is linear in the code is learned in a few hundred
    steps (without it a probe on a code that hardly compresses was 10 dB lower after 245 steps). The output is linear
    (not a sigmoid): 0 and 1 are reached exactly after the caller clamps, and gradients do not vanish there.
    """

    def __init__(self, features: int, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        side = padded_side(image_shape)
        self.crop = side - image_shape[1]
        self.width = width
        self.seed = nn.Linear(features, width * LATENT_SIDE**2)
        layers: list[nn.Module] = [nn.BatchNorm2d(width), nn.GELU(), Residual(width)]
        channels = width
        for _ in range(int(math.log2(side // LATENT_SIDE))):
            narrower = max(channels // 2, 8)
            layers += [nn.Upsample(scale_factor=2), ConvBlock(channels, narrower), Residual(narrower)]
            channels = narrower
        self.layers = nn.Sequential(*layers)
        self.padding = -features % LATENT_SIDE**2
        self.block = side // LATENT_SIDE
        depth = (features + self.padding) // LATENT_SIDE**2
        self.shortcut = nn.Conv2d(depth, image_shape[0] * self.block**2, 1, bias=False)
        nn.init.zeros_(self.shortcut.weight)
        self.draw = nn.Conv2d(channels, image_shape[0], 3, padding=1)
        nn.init.constant_(self.draw.bias, 0.5)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor) -> Tensor:
        """Draw a batch of images; clamp to [0, 1] before looking at them."""
        latent = self.seed(features).unflatten(1, (self.width, LATENT_SIDE, LATENT_SIDE))
        code = F.pad(features, (0, self.padding)).unflatten(1, (-1, LATENT_SIDE, LATENT_SIDE))
        image = self.draw(self.layers(latent)) + F.pixel_shuffle(self.shortcut(code), self.block)
        near = self.crop // 2
        far = self.crop - near
        return image[..., near : image.shape[-2] - far, near : image.shape[-1] - far]
