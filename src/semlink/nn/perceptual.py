# SPDX-License-Identifier: Apache-2.0
"""LPIPS: distance of two images in the features of a network trained on ImageNet (R. Zhang et al., CVPR 2018).

image in [0, 1] ─> standardise ─> conv ReLU ─> ... ─> tap 1 ─> ... ─> tap 5        (VGG16 or AlexNet, frozen)
                                                │                 │
                                   unit length over channels   (each position)
                                                │                 │
distance = sum over taps of the spatial mean of head . (difference)^2             (LPIPS v0.1 heads)
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.autograd import Function

from semlink._errors import SemlinkError, check_name


class _Layer(NamedTuple):
    number: int  # in the published stack of features, which counts ReLU and pooling too
    channels: int
    kernel: int
    stride: int
    padding: int
    pooled: bool  # max-pooling comes before it
    tap: bool


@dataclass(frozen=True)
class _Network:
    title: str
    pool: tuple[int, int]  # kernel and stride
    layers: tuple[_Layer, ...]

    def upto(self, taps: int) -> list[_Layer]:
        """Return the layers that ``taps`` taps need."""
        ends = [i for i, layer in enumerate(self.layers) if layer.tap]
        return list(self.layers[: ends[taps - 1] + 1])

    def smallest(self, taps: int) -> int:
        """Return the least side of an image for which every layer up to the last tap has an output."""
        side = 1
        for layer in reversed(self.upto(taps)):
            side = max(1, (side - 1) * layer.stride + layer.kernel - 2 * layer.padding)
            if layer.pooled:
                side = (side - 1) * self.pool[1] + self.pool[0]
        return side


def _vgg16() -> _Network:
    layers, index = [], 0
    for block, (convolutions, channels) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        index += block > 0  # the pooling layer has a number of its own
        for i in range(convolutions):
            layers.append(_Layer(index, channels, 3, 1, 1, pooled=block > 0 and i == 0, tap=i == convolutions - 1))
            index += 2
    return _Network("VGG16", (2, 2), tuple(layers))


_NETWORKS = {
    "vgg16": _vgg16(),
    "alexnet": _Network(
        "AlexNet",
        (3, 2),
        (
            _Layer(0, 64, 11, 4, 2, pooled=False, tap=True),
            _Layer(3, 192, 5, 1, 2, pooled=True, tap=True),
            _Layer(6, 384, 3, 1, 1, pooled=True, tap=True),
            _Layer(8, 256, 3, 1, 1, pooled=False, tap=True),
            _Layer(10, 256, 3, 1, 1, pooled=False, tap=True),
        ),
    ),
}
_TAPS = 5
_CACHED = 1 << 17  # numbers of a tensor that are compared at a time, so that all that comes of them fits a cache
_CHUNK = 1 << 16  # pixels compared at a time on a CPU: caches make it 1.4 times as fast as 256 images at once


class Perceptual(nn.Module):
    """LPIPS on the features of VGG16 or AlexNet, with frozen weights.

    The weights are buffers outside the state dict: no optimiser, checkpoint or fingerprint sees them, and moving the
    module moves them. They are stored as float16 and used as float32; under autocast the convolutions follow it, but
    lengths and heads stay in float32. VGG16 takes images from 16x16 on, AlexNet from 31x31 on (with fewer taps, smaller
    ones).

    Args:
        net: ``vgg16`` or ``alexnet``.
        taps: how many of the five taps to use, from the first on; layers behind the last are neither loaded nor run.
            The sum of less than five is a training loss, not LPIPS.
        weights: safetensors file; by default ``weights/lpips-<net>-fp16.safetensors`` in the folder ``$SEMLINK_DATA``.

    Raises:
        SemlinkError: the net is unknown, ``taps`` is not 1 to 5, or the file is missing, damaged or another network's.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: Literal["vgg16", "alexnet"] = "vgg16", taps: int = 5, weights: Path | None = None) -> None:
        super().__init__()
        self.network = _NETWORKS[check_name("perceptual network", net, _NETWORKS)]
        if not 1 <= taps <= _TAPS:
            raise SemlinkError(f"taps is {taps}: a number from 1 to {_TAPS} is expected")
        self.taps = taps
        self.layers = self.network.upto(taps)
        self.smallest = self.network.smallest(taps)
        path = _default_path(net) if weights is None else weights
        for name, tensor in _read(path, self.network, self.layers).items():
            self.register_buffer(name.replace(".", "_"), tensor, persistent=False)
        # The published weights expect 2 x - 1, shifted and scaled; both affine steps are one here.
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        self.register_buffer("mean", ((1 + shift) / 2).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", (scale / 2).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "Perceptual":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the activations at each tap.

        Args:
            images: (B, C, H, W) floating, in [0, 1]; one channel is repeated to three.

        Returns:
            One (B, channels, h, w) tensor for each tap, float32 but under autocast.

        Raises:
            SemlinkError: the images have neither 1 nor 3 channels, or are too small for the network.
        """
        _, channels, height, width = images.shape
        if channels not in (1, 3):
            raise SemlinkError(f"images of {channels} channels: the perceptual distance takes 1 or 3")
        if min(height, width) < self.smallest:
            raise SemlinkError(
                f"images of {height}x{width} pixels are too small for {self.taps} taps of {self.network.title}, "
                f"which need {self.smallest}x{self.smallest}; use vgg16, fewer taps or perceptual = none"
            )
        x, found = (images.float() - self.mean) / self.deviation, []
        for layer in self.layers:
            if layer.pooled:
                x = F.max_pool2d(x, *self.network.pool)
            kernel, bias = self._of(f"features_{layer.number}_weight"), self._of(f"features_{layer.number}_bias")
            x = F.relu(F.conv2d(x, kernel, bias, layer.stride, layer.padding), inplace=True)  # nobody needs it before
            if layer.tap:
                found.append(x)
        return found

    def distance(self, features_x: Sequence[Tensor], features_y: Sequence[Tensor]) -> Tensor:
        """Return the distance of each pair from what :meth:`features` gave for both, (B,) float32.

        It serves where the features of an image are compared often; for one comparison calling the module is faster.
        """
        terms = [
            cast(Tensor, _UnitDistance.apply(x, y, self._of(f"heads_{i}")))
            for i, (x, y) in enumerate(zip(features_x, features_y, strict=True))
        ]
        return torch.stack(terms).sum(0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair, (B,) float32, for ``x, y: (B, C, H, W)`` in [0, 1] of the same shape.

        In training this is the way too: an image that needs no gradient costs no backward pass.

        Raises:
            SemlinkError: the shapes differ; otherwise as :meth:`features`.
        """
        if x.shape != y.shape:
            raise SemlinkError(
                f"images of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared; shapes must agree"
            )
        step = max(1, (_CHUNK if x.device.type == "cpu" else 16 * _CHUNK) // (x.shape[2] * x.shape[3]))
        pairs = zip(x.split(step), y.split(step), strict=True)
        return torch.cat([self.distance(self.features(a), self.features(b)) for a, b in pairs])

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name)


class _UnitDistance(Function):
    """Weighted squared distance of unit vectors over channels, in float32, as the mean over positions: (B,) float32.

    Arguments are two of (B, channels, h, w) and the weights of channels. A slice of positions at a time goes through
    all steps, slopes too, and stays in a processor's cache: as operations on whole tensors, which are larger than an
    image by far, this took more than half of an attacker's training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, head: Tensor) -> Tensor:
        rows = [each.permute(0, 2, 3, 1).reshape(-1, len(head)) for each in (x, y)]
        needed = ctx.needs_input_grad[:2]
        slopes = [torch.empty_like(each) if wanted else None for each, wanted in zip(rows, needed, strict=True)]
        found = torch.empty(len(rows[0]), device=x.device)
        step = max(1, _CACHED // len(head)) if x.device.type == "cpu" else len(found)
        for low in range(0, len(found), step):
            here = slice(low, low + step)
            units, inverses = zip(*(_unit(each[here].float()) for each in rows), strict=True)
            difference = units[0] - units[1]
            weighted = difference * head
            found[here] = (weighted * difference).sum(1)
            for slope, unit, inverse, sign in zip(slopes, units, inverses, (2, -2), strict=True):
                if slope is not None:
                    along = (weighted * unit).sum(1, keepdim=True)
                    slope[here] = (weighted - along * unit) * (sign * inverse)
        ctx.slopes, ctx.shape = slopes, (len(x), *x.shape[2:], len(head))
        return found.view(len(x), -1).mean(1)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        batch, height, width, channels = ctx.shape
        scale = (given[0] / (height * width))[:, None, None]
        found = []
        for slope in ctx.slopes:
            if slope is not None:
                slope = (slope.view(batch, -1, channels) * scale).to(slope.dtype).view(ctx.shape).permute(0, 3, 1, 2)
            found.append(slope)
        return (*found, None)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of unit length, and the inverse of their lengths; a row of zeros stays, its inverse is finite."""
    inverse = (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10).reciprocal()
    return x * inverse, inverse


def _default_path(net: str) -> Path:
    folder, name = os.environ.get("SEMLINK_DATA"), f"lpips-{net}-fp16.safetensors"
    if not folder:
        raise SemlinkError(
            f"the perceptual distance needs weights/{name} ({_NETWORKS[net].title} features and LPIPS heads) in the "
            "folder SEMLINK_DATA, which is not set; set it, or use perceptual = none, which trains without"
        )
    return Path(folder) / "weights" / name


def _read(path: Path, network: _Network, layers: Sequence[_Layer]) -> dict[str, Tensor]:
    """Return the tensors of ``layers`` and their heads by name, float32; SemlinkError if the file lacks them."""
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for layer in layers:
        shapes[f"features.{layer.number}.weight"] = (layer.channels, before, layer.kernel, layer.kernel)
        shapes[f"features.{layer.number}.bias"] = (layer.channels,)
        before = layer.channels
    for i, layer in enumerate(layer for layer in layers if layer.tap):
        shapes[f"heads.{i}"] = (layer.channels,)
    wanted = f"it should hold {network.title} features and LPIPS heads; perceptual = none trains without it"
    if not path.is_file():
        raise SemlinkError(f"perceptual weights {path} not found; {wanted}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in shapes}
    except (SafetensorError, OSError) as error:
        raise SemlinkError(f"perceptual weights {path} cannot be read ({error}); {wanted}") from None
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            raise SemlinkError(f"perceptual weights {path}: {name} has shape {found}, not {shape}; {wanted}")
    return tensors
