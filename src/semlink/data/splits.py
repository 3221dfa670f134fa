# SPDX-License-Identifier: Apache-2.0
"""Which image belongs to whom: splits fixed by index, the same on every machine.

Images are dealt in the order of SHA-256("NAME:INDEX"), which no library version can change, unlike the stream of a
random generator. INDEX counts the published training files from 0, test images following them; in CelebA it is the
number in the file name.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from semlink._errors import SemlinkError


class Split(NamedTuple):
    """Indices of each role's images: five (n,) int64 arrays that share no entry."""

    transceiver: np.ndarray
    validation: np.ndarray
    attacker: np.ndarray
    attacker_validation: np.ndarray
    test: np.ndarray


class Counts(NamedTuple):
    """Sizes of the roles that are dealt from the published training images; ``test`` is 0 where it is published."""

    transceiver: int
    validation: int
    attacker: int
    attacker_validation: int
    test: int = 0


COUNTS: dict[tuple[str, str], Counts] = {
    ("digits", "default"): Counts(2_500, 250, 1_000, 250, 1_000),
    ("mnist", "default"): Counts(45_000, 3_000, 10_800, 1_200),
    ("fashion-mnist", "default"): Counts(45_000, 3_000, 10_800, 1_200),
    ("cifar10", "default"): Counts(37_500, 2_500, 9_000, 1_000),
    ("cifar10", "authors-25k"): Counts(23_750, 1_250, 22_500, 2_500),
}


def fixed_order(name: str, indices: np.ndarray) -> np.ndarray:
    """Return ``indices``: (n,) int64 in the order of SHA-256("NAME:INDEX")."""
    keys = [hashlib.sha256(f"{name}:{index}".encode()).digest() for index in indices.tolist()]
    return indices[sorted(range(len(keys)), key=keys.__getitem__)]


def deal(name: str, variant: str, train: int, test: int) -> Split:
    """Split ``train`` published training images as ``COUNTS`` says; the ``test`` images that follow stay as they are.

    Raises:
        ValueError: the counts do not exhaust the training images.
    """
    counts = COUNTS[name, variant]
    if sum(counts) != train:
        raise ValueError(f"{name} {variant}: {sum(counts)} images are dealt, {train} are there")
    order = fixed_order(name, np.arange(train))
    parts = np.split(order, np.cumsum(counts)[:-1])
    if test:
        parts[-1] = np.arange(train, train + test)
    return Split(*parts)


def deal_partition(name: str, ids: np.ndarray, partition: np.ndarray) -> Split:
    """Split by the published partition: 0 trains the link, 1 is the attacker's, 2 is the test.

    The last tenth of 0 in the fixed order is the validation set, that of 1 the attacker's.

    Args:
        name: the data set, part of the key of the order.
        ids: (n,) int64
        partition: (n,) integers in {0, 1, 2}

    Raises:
        SemlinkError: a partition has too few images.
    """
    dealt = []
    for number, least in ((0, 2), (1, 2), (2, 1)):
        order = fixed_order(name, ids[partition == number])
        if len(order) < least:
            raise SemlinkError(
                f"{name} holds {len(order)} images of partition {number}, expected at least {least}; "
                f"add images of that partition (list_eval_partition.txt names them)"
            )
        tenth = max(1, len(order) // 10)
        dealt += [order] if number == 2 else [order[:-tenth], order[-tenth:]]
    return Split(*dealt)


def digest(indices: np.ndarray) -> str:
    """Return the SHA-256 of ``indices``: (n,) as little-endian int64."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
