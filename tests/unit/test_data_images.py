# SPDX-License-Identifier: Apache-2.0
"""Image sets in memory and the augmentation of whole batches."""

import numpy as np
import pytest
import torch

from semlink.data import Augmentation, ImageSet, augment
from semlink.data.images import to_float


def _images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _all_views(image: np.ndarray, padding: int, flip: bool) -> list[np.ndarray]:
    """Every shift of one (C, H, W) image, by numpy's own reflection; mirrored if ``flip``."""
    _, height, width = image.shape
    padded = np.pad(image[..., ::-1] if flip else image, ((0, 0), (padding, padding), (padding, padding)), "reflect")
    return [
        padded[:, dy : dy + height, dx : dx + width] for dy in range(2 * padding + 1) for dx in range(2 * padding + 1)
    ]


def _which(view: torch.Tensor, views: list[np.ndarray]) -> int:
    """The one entry of ``views`` that ``view`` is."""
    found = [k for k, candidate in enumerate(views) if np.array_equal(view.numpy(), candidate)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("shape", [(40, 3, 8, 11), (40, 1, 7, 7)])
@pytest.mark.parametrize("padding", [1, 2, 3])
def test_every_image_is_one_of_its_shifts_and_flipped_as_asked(shape: tuple[int, ...], padding: int) -> None:
    images = _images(*shape)
    flipped = torch.arange(len(images)) % 3 == 0
    out = augment(images, Augmentation(padding, True), torch.Generator().manual_seed(2), flipped)
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    for image, view, mirrored in zip(images.numpy(), out, flipped.tolist(), strict=True):
        _which(view, _all_views(image, padding, mirrored))


def test_all_shifts_are_equally_likely_and_independent_of_each_other() -> None:
    count, padding = 5_000, 2
    image = _images(1, 1, 8, 8)
    out = augment(image.expand(count, -1, -1, -1), Augmentation(padding, False), torch.Generator().manual_seed(3))
    views = _all_views(image[0].numpy(), padding, False)
    table = {view.tobytes(): k for k, view in enumerate(views)}
    seen = np.bincount([table[row.tobytes()] for row in out.numpy()], minlength=25)
    spread = np.sqrt(count * (1 / 25) * (24 / 25))
    assert np.abs(seen - count / 25).max() < 5 * spread


def test_half_of_the_images_are_flipped_at_random() -> None:
    count = 4_000
    image = _images(1, 1, 5, 5)
    out = augment(image.expand(count, -1, -1, -1), Augmentation(0, True), torch.Generator().manual_seed(4))
    mirrored = (out == image.flip(3)).flatten(1).all(1)
    straight = (out == image).flatten(1).all(1)
    assert torch.equal(mirrored, ~straight)
    assert abs(mirrored.sum().item() - count / 2) < 5 * np.sqrt(count / 4)


def test_a_set_whose_mirror_images_are_foreign_is_never_flipped() -> None:
    images = _images(64, 1, 6, 6)
    everyone = torch.ones(64, dtype=torch.bool)
    out = augment(images, Augmentation(0, False), torch.Generator().manual_seed(5), everyone)
    assert torch.equal(out, images)


def test_images_become_floats_from_0_to_1_that_are_stored_channels_last() -> None:
    images = _images(16, 3, 8, 8)
    floats = to_float(images)
    assert floats.dtype == torch.float32
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(floats, images / 255)
    assert torch.equal(to_float(images[:, None]), images[:, None] / 255)


def test_same_seed_same_batch_and_any_memory_layout() -> None:
    images = _images(16, 3, 8, 8)
    a = augment(images, Augmentation(2, True), torch.Generator().manual_seed(6))
    b = augment(images.to(memory_format=torch.channels_last), Augmentation(2, True), torch.Generator().manual_seed(6))
    assert torch.equal(a, b)
    assert not torch.equal(a, augment(images, Augmentation(2, True), torch.Generator().manual_seed(7)))


def test_batch_is_exact_and_reaches_both_ends_of_the_range() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    whole = ImageSet(images, torch.tensor([3, 1, 4, 1]))
    pixels, targets = whole.batch(torch.tensor([3, 0]))
    assert torch.equal(pixels, torch.stack([images[3], images[0]]) / 255)
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert targets.tolist() == [1, 3]
    unmoved = augment(images[[3, 0]], Augmentation(0, False), torch.Generator())
    assert torch.equal(unmoved, images[[3, 0]])


def test_subset_and_to_keep_images_and_targets_together() -> None:
    whole = ImageSet(_images(10, 1, 2, 2), torch.arange(10))
    part = whole.subset(torch.tensor([7, 2])).to("cpu")
    assert len(part) == 2
    assert part.targets.tolist() == [7, 2]
    assert torch.equal(part.images, whole.images[[7, 2]])
