# SPDX-License-Identifier: Apache-2.0
"""Augmented batches from image sets in memory, for one link or for K joint users."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from semlink._errors import SemlinkError
from semlink.data import Augmentation, ImageSet, augment
from semlink.data.images import to_float


def seeded(seed: int, *purpose: str | float, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one purpose of one run; other purposes, epochs or seeds give unrelated streams."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Batches:
    """Shuffled, augmented batches.

    Yields ``images (B, C, H, W) float32, targets (B, …)``; for K > 1 users, whose sets must have images of one shape,
    ``(B, K, …)`` of both: groups that are dealt anew each epoch. The order of epoch e depends on the seed and e alone,
    so a resumed run sees the batches that the run it continues would have seen, and several processes share those that
    one would have seen alone. Flips alternate: an image is mirrored in every second epoch, starting with a random half
    of the set, so that two epochs show every image both ways (K. Jordan, arXiv:2404.00498, section 3.6).

    Args:
        users: one image set per user.
        batch_size: images of each user per step, over all ``world`` processes; fewer if a set is smaller, or if they
            cannot be shared out evenly.
        augmentation: None shows every image as it is.
        rank, world: this process's share of each batch.

    Raises:
        SemlinkError: a batch would not give every process an image.
    """

    def __init__(
        self,
        users: Sequence[ImageSet],
        batch_size: int,
        augmentation: Augmentation | None,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        smallest = min(len(user) for user in users)
        self.users, self.augmentation, self.seed = list(users), augmentation, seed
        self.batch_size = min(batch_size, smallest) // world * world
        self.rank, self.world = rank, world
        if not self.batch_size:
            raise SemlinkError(
                f"batches of {min(batch_size, smallest)} images cannot be shared by {world} processes; use fewer"
            )
        self.rounds = smallest // self.batch_size
        self._mirrored = [torch.rand(len(u), generator=seeded(seed, "mirror", k)) < 0.5 for k, u in enumerate(users)]

    def to(self, device: torch.device | str) -> None:
        """Hold the images on ``device``, where batches are put together and augmented from now on."""
        self.users = [user.to(device) for user in self.users]

    def epoch(self, epoch: int, stream: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``rounds`` batches of epoch ``epoch``; each ``stream`` has an order of its own."""
        orders = [
            torch.randperm(len(user), generator=seeded(self.seed, stream, epoch, "order", k))
            for k, user in enumerate(self.users)
        ]
        share = self.batch_size // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for step in range(self.rounds):
            here = slice(step * self.batch_size, (step + 1) * self.batch_size)
            parts = [self._load(k, order[here], epoch, stream, step) for k, order in enumerate(orders)]
            images, targets = parts[0]
            if len(parts) > 1:
                images, targets = torch.stack([p[0] for p in parts], 1), torch.stack([p[1] for p in parts], 1)
            yield to_float(images[mine]), targets[mine]  # once for all users, after the bytes were put together

    def _load(self, user: int, indices: Tensor, epoch: int, stream: str, step: int) -> tuple[Tensor, Tensor]:
        image_set = self.users[user]
        part = image_set.subset(indices)
        if self.augmentation is None:
            return part.images, part.targets
        shifts = seeded(self.seed, stream, epoch, "shift", user, step, 0)  # of the whole batch, whoever shares in it
        mirrored = self._mirrored[user][indices] ^ bool(epoch % 2)
        return augment(part.images, self.augmentation, shifts, mirrored), part.targets
