# SPDX-License-Identifier: Apache-2.0
"""The images of a bench: read, checked and split once, before anything is trained on them, and what they are.

A set that must be decoded is so now, into the cache that all later steps read; what is kept in the store are the
SHA-256 of every split's content and the number of images of each class or attribute.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

import torch

from semlink import data
from semlink.bench import code, record
from semlink.data import DataSet, ImageSet
from semlink.training import describe_machine

ROLES = ("transceiver", "validation", "attacker", "attacker_validation", "test")


def prepare(name: str, variant: str, device: torch.device, out: Path) -> record.PrepareRecord:
    """Read the set ``name`` in the splits of ``variant`` and write what it is to ``out``.

    Raises:
        SemlinkError: a file is missing or not the published one.
    """
    sets = data.load(name, variant)
    found = record.PrepareRecord(
        code_sha256=record.code_sha256(),
        step_sha256=code.modules_sha256(__name__),
        libraries={library: version(library) for library in record.LIBRARIES},
        machine=describe_machine(device),
        data=sets.provenance,
        image_shape=sets.image_shape,
        splits=splits(sets),
    )
    record.write(out, found)
    return found


def splits(sets: DataSet) -> dict[str, record.Prepared]:
    """Return what the images of each role are."""
    return {
        role: record.Prepared(images=len(each), sha256=content_sha256(each), targets=_counts(each, sets.target_names))
        for role in ROLES
        for each in [getattr(sets, role)]
    }


def content_sha256(images: ImageSet) -> str:
    """Return the hash of all pixels and targets, in their order."""
    digest = hashlib.sha256(images.images.contiguous().numpy().data)
    digest.update(images.targets.contiguous().numpy().data)
    return digest.hexdigest()


def _counts(images: ImageSet, names: tuple[str, ...]) -> dict[str, int]:
    targets = images.targets
    classes = not targets.is_floating_point()
    counts = (
        torch.bincount(targets.flatten(), minlength=len(names)) if classes else targets.flatten(0, -2).sum(0).long()
    )
    return dict(zip(names, counts.tolist(), strict=True))
