# SPDX-License-Identifier: Apache-2.0
"""Groups of images of users who send at once."""

import hashlib
import itertools
import json

import pytest
import torch

from semlink import data
from semlink._errors import SemlinkError
from semlink.bench import preparer
from semlink.data import ImageSet
from semlink.data.groups import group
from semlink.data.splits import Split
from semlink.training import Batches

SIZES = {"transceiver": 2500, "validation": 250, "attacker": 1000, "attacker_validation": 250, "test": 1000}


@pytest.fixture(scope="module")
def alone() -> data.DataSet:
    return data.load("digits")


@pytest.fixture(scope="module")
def three() -> data.DataSet:
    return data.load("digits", users=3)


def test_a_group_holds_an_image_of_each_user(alone, three):
    assert three.image_shape == alone.image_shape == (1, 28, 28)
    assert (three.name, three.kind, three.target_names) == ("digits", "classes", alone.target_names)
    for role, count in SIZES.items():
        of, own = getattr(three, role), getattr(alone, role)
        assert len(of) == count
        assert (of.images.shape, of.images.dtype) == ((count, 3, 1, 28, 28), torch.uint8)
        assert (of.targets.shape, of.targets.dtype) == ((count, 3), torch.int64)
        assert torch.equal(of.images[:, 0], own.images)  # the first user's stay in their order
        at = {image.numpy().tobytes(): i for i, image in enumerate(own.images)}
        for k in range(3):
            order = torch.tensor([at[image.numpy().tobytes()] for image in of.images[:, k]])
            assert torch.equal(order.sort().values, torch.arange(count))  # every image once
            assert torch.equal(of.targets[:, k], own.targets[order])


def same(images, one, other):
    return int((images[:, one] == images[:, other]).flatten(1).all(1).sum())


def test_users_of_one_set_are_dealt_independently(three):
    for role in SIZES:
        for one, other in itertools.combinations(range(3), 2):
            assert same(getattr(three, role).images, one, other) <= 5  # one on average, whatever the number of images


def test_groups_are_the_same_everywhere(three):
    again = data.load("digits", users=3)
    more = data.load("digits", users=4)
    for role in SIZES:
        assert torch.equal(getattr(three, role).images, getattr(again, role).images)
        assert torch.equal(getattr(more, role).images[:, :3], getattr(three, role).images)  # a new user moves no other
    assert hashlib.sha256(three.test.images[:50].numpy().tobytes()).hexdigest()[:16] == FIRST_GROUPS


#: SHA-256 of the first test groups of three: a change deals all groups anew, and with them all results.
FIRST_GROUPS = "455aa32a5de87829"


def test_one_user_is_a_group_too_and_none_is_not(alone):
    assert data.load("digits", users=1).test.images.shape == (1000, 1, 1, 28, 28)
    assert torch.equal(data.load("digits", users=1).test.images[:, 0], alone.test.images)
    assert data.load("digits", users=None).test.images.shape == (1000, 1, 28, 28)


def test_the_provenance_says_whose_images_they_are(alone, three):
    said = three.provenance
    assert said == json.loads(json.dumps(said))
    assert (said["name"], said["users"], said["variant"]) == ("digits", ["digits"] * 3, "default")
    assert {role: part["n"] for role, part in said["splits"].items()} == SIZES
    pairs = data.load("digits", users=2).provenance
    digests = [alone.provenance["sha256"], said["sha256"], pairs["sha256"]]
    assert len(set(digests)) == 3
    for role in SIZES:
        held = {each["splits"][role]["sha256"] for each in (alone.provenance, said, pairs)}
        assert len(held) == 3


def test_the_attackers_share_is_apart_in_groups_too():
    sets = data.load("digits", "shadow", users=2)
    assert sets.variant == sets.provenance["variant"] == "shadow"
    own, hers = data.load("digits"), sets.transceiver.images[:, 0]
    assert torch.equal(hers, own.attacker.images)


def test_users_are_parted_again(three):
    members = three.test.members()
    assert [member.images.shape for member in members] == [(1000, 1, 28, 28)] * 3
    for k, member in enumerate(members):
        assert torch.equal(member.images, three.test.images[:, k])
        assert torch.equal(member.targets, three.test.targets[:, k])
    for alone in (members[0], data.load("digits", users=1).test):  # of which the latter are groups of one
        (single,) = alone.members()
        assert single is alone
    few = three.test.subset(torch.tensor([4, 2]))
    assert torch.equal(few.images, three.test.images[[4, 2]])
    images, targets = three.test.batch(torch.tensor([4, 2]))
    assert (images.shape, images.dtype) == ((2, 3, 1, 28, 28), torch.float32)
    assert torch.equal(images, three.test.images[[4, 2]].float() / 255)
    assert torch.equal(targets, three.test.targets[[4, 2]])


def test_batches_are_groups_that_are_dealt_anew(three):
    batches = Batches(three.transceiver.members(), 100, None, seed=0)
    assert batches.rounds == 25
    shown = [torch.cat([images for images, _ in batches.epoch(epoch, "s")]) for epoch in range(2)]
    pixels = three.transceiver.images.flatten(2).long().sum(2)  # a fingerprint of each image
    for epoch in shown:
        assert epoch.shape == (2500, 3, 1, 28, 28)
        for k in range(3):
            found = (epoch[:, k] * 255).round().long().flatten(1).sum(1)
            assert torch.equal(found.sort().values, pixels[:, k].sort().values)  # every image of the user once
    assert not torch.equal(shown[0], shown[1])
    images, targets = next(iter(batches.epoch(0, "s")))
    assert (images.shape, targets.shape) == ((100, 3, 1, 28, 28), (100, 3))


def test_groups_are_described_by_their_content(three):
    said = preparer.splits(three)
    for role, count in SIZES.items():
        of = getattr(three, role)
        raw = of.images.contiguous().numpy().tobytes() + of.targets.contiguous().numpy().tobytes()
        assert (said[role].images, said[role].sha256) == (count, hashlib.sha256(raw).hexdigest())
        assert said[role].targets == {str(digit): int((of.targets == digit).sum()) for digit in range(10)}
        assert sum(said[role].targets.values()) == 3 * count
    attributes = ImageSet(torch.zeros(3, 2, 1, 2, 2), torch.tensor([[[1.0, 0.0], [1.0, 1.0]]] * 3))
    assert preparer._counts(attributes, ("Smiling", "Hat")) == {"Smiling": 6, "Hat": 3}


def small(name, sizes, shape=(1, 28, 28), first=0):
    def some(count):
        images = torch.arange(count).view(-1, 1, 1, 1).expand(count, *shape).to(torch.uint8).contiguous()
        return ImageSet(images, torch.arange(first, first + count))

    splits = {role: {"n": count, "sha256": f"{name}{role}"} for role, count in sizes.items()}
    return data.DataSet(
        name,
        "default",
        "classes",
        ("a",),
        **{role: some(count) for role, count in sizes.items()},
        augmentation=data.Augmentation(0, False),
        provenance={"name": name, "sha256": name, "splits": splits},
    )


def test_the_smaller_set_says_how_many_groups_there_are():
    few, many = dict.fromkeys(Split._fields, 5), dict.fromkeys(Split._fields, 12)
    both = group("a+b", [small("a", many), small("b", few, first=100)])
    for role in Split._fields:
        assert getattr(both, role).images.shape == (5, 2, 1, 28, 28)
        assert getattr(both, role).targets[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert sorted(getattr(both, role).targets[:, 1].tolist()) == [100, 101, 102, 103, 104]
        assert both.provenance["splits"][role]["n"] == 5
    assert both.provenance["users"] == ["a", "b"]
    assert group("b+a", [small("b", few), small("a", many)]).provenance["sha256"] != both.provenance["sha256"]


def test_sets_of_other_shapes_are_refused():
    sizes = dict.fromkeys(Split._fields, 3)
    with pytest.raises(SemlinkError, match="images of b and a differ in shape; users must send alike images"):
        group("a+b", [small("a", sizes), small("b", sizes, (3, 32, 32))])
    for name in ("mnist+cifar10", "digits+celeba", "digits+mnist+cifar10"):
        with pytest.raises(SemlinkError, match="differ in shape; users must send alike images"):
            data.describe(name)


def test_names_of_several_sets():
    assert data.members("mnist") == ["mnist"]
    assert data.members("mnist+fashion-mnist+mnist") == ["mnist", "fashion-mnist", "mnist"]
    assert data.describe("mnist+fashion-mnist") == data.describe("mnist")
    assert data.variants("mnist+fashion-mnist") == ["default", "shadow"]
    assert data.variants("cifar10+cifar10") == ["default", "authors-25k", "shadow"]
    for call in (data.members, data.describe, data.variants, data.load):
        with pytest.raises(SemlinkError, match="unknown data set 'minst'; did you mean 'mnist'"):
            call("digits+minst")
        with pytest.raises(SemlinkError, match="unknown data set ''"):
            call("digits+")
    with pytest.raises(SemlinkError, match=r"unknown variant of digits\+mnist 'x'"):
        data.load("digits+mnist", "x")


@pytest.mark.real_data("mnist", "fashion-mnist")
def test_each_user_has_a_set_of_its_own():
    both = data.load("mnist+fashion-mnist")
    digits, clothes = data.load("mnist"), data.load("fashion-mnist")
    assert both.name == both.provenance["name"] == "mnist+fashion-mnist"
    assert both.provenance["users"] == ["mnist", "fashion-mnist"]
    assert both.test.images.shape == (10000, 2, 1, 28, 28)
    assert torch.equal(both.test.images[:, 0], digits.test.images)
    assert torch.equal(
        both.test.images[:, 1].long().sum((1, 2, 3)).sort().values,
        clothes.test.images.long().sum((1, 2, 3)).sort().values,
    )
    three = data.load("mnist+fashion-mnist", users=3)
    assert three.provenance["users"] == ["mnist", "fashion-mnist", "mnist"]  # in turn
    assert torch.equal(three.test.images[:, :2], both.test.images)
    assert not torch.equal(three.test.images[:, 2], three.test.images[:, 0])
