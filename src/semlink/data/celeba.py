# SPDX-License-Identifier: Apache-2.0
"""CelebA as 64x64 tensors: decoded once from the user's files, then read from a cache."""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from semlink._errors import SemlinkError
from semlink.data.formats import FACE_PIXELS, read_attributes, read_face, read_partition, verify
from semlink.data.sources import FILES, cache_root, data_root, how_to_get, missing
from semlink.data.splits import Split, deal_partition
from semlink.data.workshop import workshop

_LAYOUT = 2  # to be raised when the content of the cache file changes for the same input
_CHUNK = 256


class Prepared(NamedTuple):
    """Images (N, 3, 64, 64) uint8 and targets (N, 40) uint8, one split after the other as ``split`` numbers them.

    ``persons`` are numbers of the persons shown, (N,) int64, None if they were not supplied.
    """

    images: Tensor
    targets: Tensor
    split: Split
    names: tuple[str, ...]
    sha256: str
    source: str
    persons: Tensor | None


def image_folder() -> Path:
    """Return the folder of the JPEG files."""
    return data_root() / "celeba" / "img_align_celeba"


def image_files() -> list[tuple[str, int, int]]:
    """Return name, bytes and modification time (ns) of every JPEG file, sorted.

    Raises:
        SemlinkError: there is none.
    """
    try:
        with os.scandir(image_folder()) as entries:
            found = [(e.name, e.stat()) for e in entries if e.name.endswith(".jpg")]
    except (FileNotFoundError, NotADirectoryError):
        raise missing("celeba", image_folder()) from None
    if not found:
        raise SemlinkError(f"{image_folder()} holds no JPEG file, expected 000001.jpg ...; {how_to_get('celeba')}")
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def load_prepared() -> Prepared:
    """Return CelebA as far as the user has it, from the cache if the files are those it was made from.

    Raises:
        SemlinkError: a file is missing, damaged or not the published one; a person appears in two splits.
    """
    files = image_files()
    for file in FILES["celeba"]:
        verify("celeba", file)
    identity = data_root() / "celeba" / "identity_CelebA.txt"
    made_from = [
        _LAYOUT,
        [file.sha256 for file in FILES["celeba"]],
        hashlib.sha256(identity.read_bytes()).hexdigest() if identity.exists() else None,
        files,
    ]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]
    cached = cache_root() / "celeba" / f"celeba64-{key}.safetensors"
    prepared = _read(cached)
    if prepared is None:
        with workshop(cached.parent) as scratch:
            prepared = _read(cached)  # another process may have made it while this one waited
            if prepared is None:
                prepared = _prepare([name for name, _, _ in files], identity if identity.exists() else None)
                _write(prepared, scratch / cached.name)
                (scratch / cached.name).replace(cached)
    return prepared


def _prepare(files: list[str], identity: Path | None) -> Prepared:
    root = data_root() / "celeba"
    partition = read_partition(root / "list_eval_partition.txt")
    names, rows = read_attributes(root / "list_attr_celeba.txt", set(files))
    listed = {int(file.removesuffix(".jpg")): file for file in files if file in partition and file in rows}
    ids = np.array(sorted(listed), dtype=np.int64)
    split = deal_partition("celeba", ids, np.array([partition[listed[i]] for i in ids.tolist()]))
    person_of = check_identities(identity, split, listed) if identity is not None else None
    order = [listed[i] for i in np.concatenate(split).tolist()]
    images = _decode(order)
    targets = np.stack([rows[file] for file in order])
    checked = "identities checked" if identity else "official partition, identities not supplied"
    source = f"user-supplied: {len(order):,} of {len(partition):,} images; {checked}"
    return Prepared(
        torch.from_numpy(images),
        torch.from_numpy(targets),
        split,
        names,
        _sum(images, targets, split, names),
        source,
        torch.tensor([person_of[file] for file in order]) if person_of is not None else None,
    )


def _decode(files: list[str]) -> np.ndarray:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    images = np.empty((len(files), 3, FACE_PIXELS, FACE_PIXELS), np.uint8)
    paths = [image_folder() / file for file in files]
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,  # Pillow decodes outside the interpreter lock
    ):
        task = progress.add_task("Preparing CelebA (once)", total=len(files))
        for start in range(0, len(files), _CHUNK):  # in chunks, so that an error or Ctrl-C stops it at once
            for offset, pixels in enumerate(pool.map(read_face, paths[start : start + _CHUNK])):
                images[start + offset] = pixels
            progress.update(task, completed=min(start + _CHUNK, len(files)))
    return images


def check_identities(path: Path, split: Split, files: dict[int, str]) -> dict[str, int]:
    """Check that no person is in two of: link (training and validation), attacker, test; return the person by file.

    Args:
        path: identity_CelebA.txt, one file name and one person's number a line.
        split: ids of the images of each role.
        files: the file name of each id.

    Raises:
        SemlinkError: a person is in two of them, or an image has no person.
    """
    person_of = read_partition(path)
    seen: dict[int, tuple[str, str]] = {}
    roles: dict[str, Iterable[np.ndarray]] = {
        "transceiver": (split.transceiver, split.validation),
        "attacker": (split.attacker, split.attacker_validation),
        "test": (split.test,),
    }
    for role, parts in roles.items():
        for file in (files[i] for part in parts for i in part.tolist()):
            if file not in person_of:
                raise SemlinkError(f"{path} names no person for {file}; supply the complete official list")
            other, other_file = seen.setdefault(person_of[file], (role, file))
            if other != role:
                raise SemlinkError(
                    f"{path} gives {other_file} ({other}) and {file} ({role}) the same person {person_of[file]}, "
                    "expected no person in two splits; use the official identity and partition lists"
                )
    return person_of


def _sum(images: np.ndarray, targets: np.ndarray, split: Split, names: tuple[str, ...]) -> str:
    """Return the SHA-256 of pixels, targets and ids, in the order of the splits, and of the attribute names."""
    total = hashlib.sha256(images.data)
    total.update(targets.data)
    total.update(np.concatenate(split).astype("<i8").tobytes())
    total.update(" ".join(names).encode())
    return total.hexdigest()


def _write(prepared: Prepared, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"ids.{role}": torch.from_numpy(ids) for role, ids in prepared.split._asdict().items()}
    metadata = {"names": json.dumps(prepared.names), "sha256": prepared.sha256, "source": prepared.source}
    try:
        persons = {} if prepared.persons is None else {"persons": prepared.persons}
        save_file({"images": prepared.images, "targets": prepared.targets, **persons, **tensors}, path, metadata)
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise SemlinkError(
            f"cannot write the prepared CelebA to {path.parent.parent} ({reason}); free some space"
        ) from None


def _read(path: Path) -> Prepared | None:
    """Return what ``path`` holds, or None if it is not there or not as it was written."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata()
            images, targets = stored.get_tensor("images"), stored.get_tensor("targets")
            split = Split(*(stored.get_tensor(f"ids.{role}").numpy() for role in Split._fields))
            persons = stored.get_tensor("persons") if "persons" in stored.keys() else None  # noqa: SIM118
        names, sha256, source = tuple(json.loads(metadata["names"])), metadata["sha256"], metadata["source"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None
    if _sum(images.numpy(), targets.numpy(), split, names) != sha256:
        return None
    return Prepared(images, targets, split, names, sha256, source, persons)
