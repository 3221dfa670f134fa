# SPDX-License-Identifier: Apache-2.0
"""Splits: disjoint, exhaustive, the same everywhere."""

import hashlib

import numpy as np
import pytest

from semlink._errors import SemlinkError
from semlink.data.splits import COUNTS, deal, deal_partition, digest, fixed_order

PUBLISHED = {"digits": (5_000, 0), "mnist": (60_000, 10_000), "fashion-mnist": (60_000, 10_000)}
PUBLISHED["cifar10"] = (50_000, 10_000)
FIRST_CIFAR10 = [28566, 29379, 35678, 11446, 28441]
TRANSCEIVER_CIFAR10 = "934d65ae01f7cd09d038733e5f75e21e7831f81a72f2844c434a550cb2aa6fb1"


@pytest.mark.parametrize(("name", "variant"), COUNTS)
def test_splits_share_no_index_and_leave_none_out(name: str, variant: str) -> None:
    train, test = PUBLISHED[name]
    split = deal(name, variant, train, test)
    together = np.concatenate(split)
    assert len(together) == train + test
    np.testing.assert_array_equal(np.sort(together), np.arange(train + test))
    if test:
        np.testing.assert_array_equal(split.test, np.arange(train, train + test))


def test_sizes_are_those_all_accuracy_targets_mean() -> None:
    assert [len(part) for part in deal("cifar10", "default", 50_000, 10_000)] == [37_500, 2_500, 9_000, 1_000, 10_000]
    halves = deal("cifar10", "authors-25k", 50_000, 10_000)
    assert len(halves.transceiver) + len(halves.validation) == 25_000
    assert len(halves.attacker) + len(halves.attacker_validation) == 25_000
    assert [len(part) for part in deal("mnist", "default", 60_000, 10_000)] == [45_000, 3_000, 10_800, 1_200, 10_000]
    assert [len(part) for part in deal("digits", "default", 5_000, 0)] == [2_500, 250, 1_000, 250, 1_000]


def test_order_is_that_of_sha256_whatever_the_order_given() -> None:
    indices = np.arange(50)
    by_definition = sorted(range(50), key=lambda i: hashlib.sha256(b"cifar10:%d" % i).hexdigest())
    np.testing.assert_array_equal(fixed_order("cifar10", indices), by_definition)
    shuffled = np.random.default_rng(0).permutation(indices)
    np.testing.assert_array_equal(fixed_order("cifar10", shuffled), by_definition)


def test_splits_never_change() -> None:
    split = deal("cifar10", "default", 50_000, 10_000)
    assert split.transceiver[:5].tolist() == FIRST_CIFAR10
    assert digest(split.transceiver) == TRANSCEIVER_CIFAR10


def test_digest_is_of_little_endian_int64() -> None:
    assert digest(np.array([1, 256])) == hashlib.sha256(b"\1" + bytes(7) + b"\0\1" + bytes(6)).hexdigest()


def test_counts_that_do_not_exhaust_the_images_are_refused() -> None:
    with pytest.raises(ValueError, match="50000 images are dealt, 49999"):
        deal("cifar10", "default", 49_999, 10_000)


def test_partition_decides_the_role() -> None:
    ids = np.arange(1, 301)
    partition = np.repeat([0, 1, 2], 100)
    split = deal_partition("celeba", ids, partition)
    assert [len(part) for part in split] == [90, 10, 90, 10, 100]
    assert set(split.transceiver) | set(split.validation) == set(range(1, 101))
    assert set(split.attacker) | set(split.attacker_validation) == set(range(101, 201))
    assert set(split.test) == set(range(201, 301))
    np.testing.assert_array_equal(
        np.concatenate([split.transceiver, split.validation]), fixed_order("celeba", np.arange(1, 101))
    )


@pytest.mark.parametrize("counts", [(1, 5, 5), (5, 1, 5), (5, 5, 0)])
def test_partition_too_small_is_named(counts: tuple[int, int, int]) -> None:
    partition = np.repeat([0, 1, 2], counts)
    with pytest.raises(SemlinkError, match="images of partition"):
        deal_partition("celeba", np.arange(len(partition)), partition)
