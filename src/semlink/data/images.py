# SPDX-License-Identifier: Apache-2.0
"""Image sets held as uint8 tensors in memory, and the augmentation of whole batches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """Return ``images``: (B, C, H, W) uint8 as float32 in [0, 1], stored channels-last; groups contiguous."""
    form = torch.channels_last if images.dim() == 4 else torch.contiguous_format
    # By a tensor: CUDA multiplies by the reciprocal of a number, which rounds otherwise than dividing.
    return images.to(torch.float32, memory_format=form).div_(torch.full((), 255.0, device=images.device))


@dataclass(frozen=True)
class Augmentation:
    """What keeps an image the image it is: shifts up to ``crop_padding`` pixels each way, and mirroring if ``flip``."""

    crop_padding: int
    flip: bool


@dataclass(frozen=True)
class ImageSet:
    """Images and what is to be known about them, or groups of K images, one of each of K users.

    Attributes:
        images: (N, C, H, W) uint8; groups are (N, K, C, H, W)
        targets: (N,) int64 class indices, or (N, A) float32 attributes in {0, 1}; of groups (N, K) or (N, K, A)
        persons: (N,) int64 numbers of the persons shown; None where nobody is, or they are not known
    """

    images: Tensor
    targets: Tensor
    persons: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return the images at ``indices``: (M,) int64, in that order."""
        indices = indices.to(self.images.device)
        return self._each(lambda held: held.index_select(0, indices))

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the set on ``device``."""
        return self._each(lambda held: held.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ImageSet":
        persons = None if self.persons is None else change(self.persons)
        return ImageSet(change(self.images), change(self.targets), persons)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) float32 in [0, 1], not augmented, and targets at ``indices``: (B,) int64."""
        part = self.subset(indices)
        return to_float(part.images), part.targets

    def members(self) -> list["ImageSet"]:
        """Return the images of each user of a set of groups; without several users it is its own only member."""
        if self.images.dim() == 4 or self.images.shape[1] == 1:
            return [self]
        return [ImageSet(self.images[:, k], self.targets[:, k]) for k in range(self.images.shape[1])]


@dataclass(frozen=True)
class DataSet:
    """Five disjoint splits of one published set of images.

    ``transceiver`` trains the link (and any adversary inside its training), ``validation`` selects the model,
    ``attacker`` and ``attacker_validation`` are all that an eavesdropper owns, and ``test`` is read once per run.

    Attributes:
        name, variant: what ``load`` was asked for.
        kind: "classes" (one of ``target_names``) or "attributes" (any number of them).
        target_names: class or attribute names, in the order of the targets.
        augmentation: the augmentation that suits the set.
        provenance: plain values that tell what was loaded: checksums of the content and of every split's indices.
    """

    name: str
    variant: str
    kind: Literal["classes", "attributes"]
    target_names: tuple[str, ...]
    transceiver: ImageSet
    validation: ImageSet
    attacker: ImageSet
    attacker_validation: ImageSet
    test: ImageSet
    augmentation: Augmentation
    provenance: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image, those of groups too."""
        channels, height, width = self.test.images.shape[-3:]
        return channels, height, width


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    """Return (size + 2 padding,) int64: the source of each position when an axis is padded by reflection."""
    position = torch.arange(-padding, size + padding, device=device).abs()
    return (size - 1) - ((size - 1) - position).abs()


def augment(
    images: Tensor, augmentation: Augmentation, generator: torch.Generator, flipped: Tensor | None = None
) -> Tensor:
    """Shift every image by its own random offset (borders reflected) and mirror some of them.

    The batch is gathered once by index, so the cost does not depend on how many different shifts were drawn:
    1.7 ms for 256 images of 32x32x3 on one processor core.

    Args:
        images: (B, C, H, W) uint8, on any device
        augmentation: how far to shift, and whether mirroring is allowed at all.
        generator: source of the shifts, and of the flips where ``flipped`` is not given; it may live on another device.
        flipped: (B,) bool, which images to mirror (before the shift), for schedules that alternate flips between
            epochs; by default half of them, drawn at random. Ignored where ``augmentation.flip`` is False.

    Returns:
        (B, C, H, W) uint8.
    """
    count, channels, height, width = images.shape
    padding, device = augmentation.crop_padding, images.device
    shifts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator, device=generator.device).to(device)
    rows = _reflected(height, padding, device)[shifts[0, :, None] + torch.arange(height, device=device)]
    columns = _reflected(width, padding, device)[shifts[1, :, None] + torch.arange(width, device=device)]
    if augmentation.flip:
        if flipped is None:
            flipped = torch.rand(count, generator=generator, device=generator.device) < 0.5
        columns = torch.where(flipped.to(device)[:, None], width - 1 - columns, columns)
    source = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    moved = images.reshape(count, channels, -1).gather(2, source.expand(-1, channels, -1))
    return moved.view(images.shape)
