# SPDX-License-Identifier: Apache-2.0
"""Images of K users who send at the same time."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from semlink._errors import SemlinkError
from semlink.data.images import DataSet, ImageSet

_ROLES = ("transceiver", "validation", "attacker", "attacker_validation", "test")


def group(name: str, users: Sequence[DataSet]) -> DataSet:
    """Return groups of one image of each user, role by role, as many as the smallest of their sets has images.

    The first user's images stay in their order; those of user k are dealt by a fixed order of its own, so that the
    groups are the same everywhere. Two users of one set send the same image as often as chance has it: about once.

    Raises:
        SemlinkError: the users' images differ in shape.
    """
    first = users[0]
    for other in users:
        if other.image_shape != first.image_shape:
            raise SemlinkError(f"images of {other.name} and {first.name} differ in shape; users must send alike images")
    digest = hashlib.sha256("/".join(user.provenance["sha256"] for user in users).encode()).hexdigest()
    splits = {
        role: {
            "n": min(user.provenance["splits"][role]["n"] for user in users),
            "sha256": hashlib.sha256(
                "/".join(user.provenance["splits"][role]["sha256"] for user in users).encode()
            ).hexdigest(),
        }
        for role in _ROLES
    }
    provenance = first.provenance | {"name": name, "sha256": digest, "splits": splits, "users": [u.name for u in users]}
    roles = {role: _together([getattr(user, role) for user in users]) for role in _ROLES}
    return replace(first, name=name, provenance=provenance, **roles)


def _together(sets: Sequence[ImageSet]) -> ImageSet:
    count = min(len(each) for each in sets)
    orders = [_order(k, len(each))[:count] for k, each in enumerate(sets)]
    chosen = [each.subset(order) for each, order in zip(sets, orders, strict=True)]
    return ImageSet(torch.stack([c.images for c in chosen], 1), torch.stack([c.targets for c in chosen], 1))


def _order(user: int, count: int) -> torch.Tensor:
    """Return the order of a user's images, that of SHA-256("USER:INDEX"): the same whatever the libraries."""
    if user == 0:
        return torch.arange(count)
    keys = [hashlib.sha256(f"{user}:{index}".encode()).digest() for index in range(count)]
    return torch.tensor(sorted(range(count), key=keys.__getitem__))
