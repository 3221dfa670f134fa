# SPDX-License-Identifier: Apache-2.0
"""Batches: every image at most once an epoch, the same order whenever asked, both mirror images in two epochs."""

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.data import Augmentation, ImageSet
from semlink.training import Batches, seeded

FLIP = Augmentation(crop_padding=0, flip=True)


def numbered(n: int, first: int = 0) -> ImageSet:
    """Image i is dark but for its left column, which holds i."""
    images = torch.zeros(n, 1, 4, 4, dtype=torch.uint8)
    images[:, 0, :, 0] = torch.arange(n)[:, None] + 1
    return ImageSet(images, torch.arange(first, first + n))


def targets_of(batches: Batches, epoch: int, stream: str = "s") -> torch.Tensor:
    return torch.cat([targets for _, targets in batches.epoch(epoch, stream)])


def test_an_epoch_shows_every_image_at_most_once_and_images_keep_their_targets():
    batches = Batches([numbered(50)], 16, None, seed=1)
    assert batches.rounds == 3
    for epoch in range(3):
        seen = []
        for images, targets in batches.epoch(epoch, "s"):
            assert images.shape == (16, 1, 4, 4)
            assert images.dtype == torch.float32
            assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), targets + 1)
            seen.append(targets)
        assert torch.cat(seen).unique().numel() == 48


@pytest.mark.parametrize("augmentation", [None, Augmentation(1, flip=True)])
def test_colour_images_are_stored_channels_last_as_convolutions_want_them(augmentation):
    colour = ImageSet(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.zeros(8))
    [(images, _)] = Batches([colour], 8, augmentation, seed=1).epoch(0, "s")
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_images_left_out_are_others_in_other_epochs():
    batches = Batches([numbered(50)], 16, None, seed=1)
    shown = torch.cat([targets_of(batches, epoch) for epoch in range(5)])
    assert shown.unique().numel() == 50


def test_the_order_depends_on_seed_epoch_and_stream_alone():
    def content(seed: int, epoch: int, stream: str, before: int = 0) -> torch.Tensor:
        batches = Batches([numbered(40)], 8, Augmentation(2, flip=True), seed)
        for earlier in range(before):
            list(batches.epoch(earlier, stream))
        return torch.cat([images for images, _ in batches.epoch(epoch, stream)])

    first = content(1, 3, "a")
    assert torch.equal(first, content(1, 3, "a", before=3))  # a resumed run sees what the other would have
    for other in (content(2, 3, "a"), content(1, 4, "a"), content(1, 3, "b")):
        assert not torch.equal(first, other)


def test_flips_alternate_so_that_two_epochs_show_both_mirror_images():
    batches = Batches([numbered(64)], 16, FLIP, seed=5)
    plain = numbered(64).images.float() / 255
    mirrored: list[torch.Tensor] = []
    for epoch in range(4):
        flags = torch.zeros(64, dtype=torch.bool)
        for images, targets in batches.epoch(epoch, "s"):
            as_is = (images == plain[targets]).flatten(1).all(1)
            flipped = (images == plain[targets].flip(-1)).flatten(1).all(1)
            assert (as_is ^ flipped).all()
            flags[targets] = flipped
        mirrored.append(flags)
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2])
    assert torch.equal(mirrored[1], mirrored[3])
    assert 12 <= mirrored[0].sum() <= 52  # a random half of 64: five deviations of 4 either way


def test_a_set_that_must_not_be_mirrored_is_not():
    batches = Batches([numbered(32)], 8, Augmentation(0, flip=False), seed=5)
    plain = numbered(32).images.float() / 255
    for epoch in (0, 1):
        for images, targets in batches.epoch(epoch, "s"):
            assert torch.equal(images, plain[targets])


def test_shifts_differ_between_images_steps_and_epochs():
    batches = Batches(
        [ImageSet(numbered(1).images.repeat(64, 1, 1, 1), torch.arange(64))], 16, Augmentation(2, False), 5
    )
    shown = [torch.cat([images for images, _ in batches.epoch(epoch, "s")]) for epoch in (0, 1)]
    assert shown[0].unique(dim=0).shape[0] > 3  # of one image, several shifts in one epoch
    steps = shown[0].split(16)
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(shown[0], shown[1])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_shares_of_the_processes_are_disjoint_and_make_the_batch(world):
    users = [numbered(50), numbered(70, 100)]
    whole = Batches(users, 16 // world * world, None, seed=1)
    shares = [Batches(users, 16, None, seed=1, rank=rank, world=world) for rank in range(world)]
    assert {share.rounds for share in shares} == {whole.rounds}
    parts = [list(share.epoch(2, "s")) for share in shares]
    for step, (images, targets) in enumerate(whole.epoch(2, "s")):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), targets)
        assert targets.unique().numel() == targets.numel()


def test_users_are_stacked_and_the_smallest_sets_the_pace():
    users = [numbered(24), numbered(24, 100), numbered(33, 200)]
    batches = Batches(users, 8, Augmentation(1, flip=True), seed=2)
    shown = list(batches.epoch(0, "s"))
    assert len(shown) == batches.rounds == 3
    for images, targets in shown:
        assert images.shape == (8, 3, 1, 4, 4)  # groups of one image of each user
        assert torch.equal(targets // 100, torch.arange(3).expand(8, 3))
    orders = torch.cat([targets for _, targets in shown]) % 100
    assert not torch.equal(orders[:, 0], orders[:, 1])  # users are not shuffled alike


def test_a_set_smaller_than_a_batch_is_one_batch():
    batches = Batches([numbered(5)], 64, None, seed=0)
    assert batches.rounds == 1
    assert targets_of(batches, 0).sort().values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("n", "size", "world"), [(3, 64, 4), (64, 1, 2), (0, 8, 1)])
def test_a_batch_that_cannot_be_shared_is_refused(n, size, world):
    with pytest.raises(SemlinkError, match=f"cannot be shared by {world} processes; use fewer"):
        Batches([numbered(n)], size, None, seed=0, world=world)


def test_seeded_streams_repeat_and_are_unrelated():
    def draw(*purpose: str | int) -> torch.Tensor:
        return torch.randn(20_000, generator=seeded(*purpose))  # pyright: ignore[reportArgumentType]

    assert torch.equal(draw(1, "noise", 2), draw(1, "noise", 2))
    streams = [draw(1, "noise", 2), draw(2, "noise", 2), draw(1, "noise", 3), draw(1, "order", 2), draw(1, "noise")]
    correlation = torch.corrcoef(torch.stack(streams)) - torch.eye(5)
    assert correlation.abs().max() < 5 / 20_000**0.5
    assert seeded(-7, "noise").initial_seed() >= 0


@pytest.mark.parametrize("augmentation", [None, Augmentation(1, flip=True)])
@pytest.mark.parametrize("users", [1, 3])
def test_batches_are_put_together_on_the_device_that_holds_the_images(augmentation, users):
    # The meta device stands for any other: an operation that mixes its tensors with the processor's fails.
    batches = Batches([numbered(24)] * users, 8, augmentation, seed=2)
    here = list(batches.epoch(1, "s"))
    batches.to("meta")
    there = list(batches.epoch(1, "s"))
    assert len(here) == len(there) == 3
    for (images, targets), others in zip(here, there, strict=True):
        assert [(x.shape, x.dtype) for x in others] == [(images.shape, images.dtype), (targets.shape, targets.dtype)]
        assert {x.device.type for x in others} == {"meta"}
