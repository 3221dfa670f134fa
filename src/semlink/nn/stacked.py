# SPDX-License-Identifier: Apache-2.0
"""Layers of K users side by side: each user has weights of their own, one batched product does them all."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from semlink._errors import check_whole


class StackedLinear(nn.Module):
    """K linear layers, one a user.

    Args:
        users: K.
        inputs, outputs: features of each user.
    """

    def __init__(self, users: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # as torch.nn.Linear begins
        self.weight = nn.Parameter(torch.empty(users, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(users, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: (B, K, inputs)`` to ``(B, K, outputs)``."""
        return torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).transpose(0, 1)


def stacked_mlp(users: int, widths: Sequence[int]) -> nn.Sequential:
    """Return K networks of linear layers from ``widths[0]`` to ``widths[-1]`` features, a ReLU between two layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.ReLU()] if layers else []
        layers += [StackedLinear(users, inputs, outputs)]
    return nn.Sequential(*layers)


class SemanticEncoder(nn.Module):
    """Paper B's semantic encoders, one a user: a fully connected layer and a ReLU.

    Args:
        users: K.
        image_shape: (C, H, W).
        width: features of each user.
    """

    def __init__(self, users: int, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.layer = StackedLinear(users, math.prod(image_shape), check_whole("width", width))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images: (B, K, C, H, W)`` to ``(B, K, width)``."""
        return self.layer(images.flatten(2)).relu()


class SemanticDecoder(nn.Module):
    """Paper B's semantic decoders, one a user: a fully connected layer and a hyperbolic tangent.

    Its range (-1, 1) is mapped to that of pixels: flat black and white, of which SSIM makes much, are its saturations.
    That is the logistic function, ``tanh(a) / 2 + 1 / 2 = 1 / (1 + exp(-2 a))``, which takes a third of the time.

    Args:
        users: K.
        width: features of each user.
        image_shape: (C, H, W).
    """

    def __init__(self, users: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.layer = StackedLinear(users, width, math.prod(image_shape))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features: (B, K, width)`` to images ``(B, K, C, H, W)`` in (0, 1)."""
        return (2 * self.layer(features)).sigmoid().unflatten(2, self.image_shape)


class ConvolutionalEncoder(nn.Module):
    """Semantic encoders with residual blocks, one a user, for who can afford them (paper B, section III-B).

    Two stages, each of a convolution of stride 2 and a residual block of two; then a fully connected layer. Users are
    the groups of every convolution.

    Args:
        users: K.
        image_shape: (C, H, W), sides that are multiples of 4.
        width: features of each user.
        channels: of the first stage; the second has twice as many.
    """

    def __init__(self, users: int, image_shape: tuple[int, int, int], width: int, channels: int = 16) -> None:
        super().__init__()
        colours, height, rows = image_shape
        stages = []
        for inputs, outputs in ((colours, channels), (channels, 2 * channels)):
            down = nn.Conv2d(users * inputs, users * outputs, 3, stride=2, padding=1, groups=users)
            stages += [down, nn.ReLU(), _Residual(users, outputs)]
        self.users, self.stages = users, nn.Sequential(*stages)
        self.layer = StackedLinear(users, 2 * channels * (height // 4) * (rows // 4), width)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images: (B, K, C, H, W)`` to ``(B, K, width)``."""
        maps = self.stages(images.flatten(1, 2))
        return self.layer(maps.unflatten(1, (self.users, -1)).flatten(2)).relu()


class ConvolutionalDecoder(nn.Module):
    """What a :class:`ConvolutionalEncoder` does, backwards; its range is that of :class:`SemanticDecoder`.

    Args:
        users, width, image_shape, channels: as ConvolutionalEncoder.
    """

    def __init__(self, users: int, width: int, image_shape: tuple[int, int, int], channels: int = 16) -> None:
        super().__init__()
        colours, height, rows = image_shape
        self.image_shape, self.maps = image_shape, (users * 2 * channels, height // 4, rows // 4)
        self.layer = StackedLinear(users, width, 2 * channels * (height // 4) * (rows // 4))
        stages = []
        for inputs, outputs in ((2 * channels, channels), (channels, channels)):
            up = nn.Conv2d(users * inputs, users * outputs, 3, padding=1, groups=users)
            stages += [nn.Upsample(scale_factor=2), up, nn.ReLU(), _Residual(users, outputs)]
        last = nn.Conv2d(users * channels, users * colours, 3, padding=1, groups=users)
        self.stages = nn.Sequential(*stages, last)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features: (B, K, width)`` to images ``(B, K, C, H, W)`` in (0, 1)."""
        maps = self.layer(features).relu().flatten(1).unflatten(1, self.maps)
        return (2 * self.stages(maps)).sigmoid().unflatten(1, (-1, self.image_shape[0]))


class _Residual(nn.Module):
    """Add to each user's map what two convolutions make of it, (B, K channels, H, W)."""

    def __init__(self, users: int, channels: int) -> None:
        super().__init__()
        maps = users * channels
        first, second = (nn.Conv2d(maps, maps, 3, padding=1, groups=users) for _ in range(2))
        self.layers = nn.Sequential(first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return (x + self.layers(x)).relu()


#: Semantic encoders and decoders by name.
NETWORKS = {
    "fully-connected": (SemanticEncoder, SemanticDecoder),
    "convolutional": (ConvolutionalEncoder, ConvolutionalDecoder),
}
