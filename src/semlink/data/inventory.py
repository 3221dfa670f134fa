# SPDX-License-Identifier: Apache-2.0
"""What of the published files is there, at a glance (``status``) and byte by byte (``check``)."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from semlink._errors import SemlinkError, check_name
from semlink.data.celeba import image_files, image_folder
from semlink.data.formats import read_face, verify
from semlink.data.sets import digits_file, load
from semlink.data.sources import FACTS, FILES, Published, folder, locate


@dataclass(frozen=True)
class FileStatus:
    """One file (or CelebA's folder of images): "ok", "missing" or "damaged", and one line that says more."""

    path: Path
    state: Literal["ok", "missing", "damaged"]
    detail: str


@dataclass(frozen=True)
class SetStatus:
    """One line of ``semlink data list``; ``folder`` is None for the set that is installed with Semlink."""

    name: str
    title: str
    content: str
    licence: str
    state: Literal["embedded", "complete", "incomplete", "absent"]
    folder: Path | None


def status() -> list[SetStatus]:
    """Return an overview of all sets and the perceptual weights, judged by the presence and size of their files."""
    found = []
    for name, facts in FACTS.items():
        if name == "digits":
            found.append(SetStatus(name, facts.title, facts.content, facts.licence, "embedded", None))
            continue
        present = [_plausible(file) for file in FILES[name]]
        if name == "celeba":
            present.append(image_folder().is_dir() and any(image_folder().glob("*.jpg")))
        state = "complete" if all(present) else "incomplete" if any(present) else "absent"
        found.append(SetStatus(name, facts.title, facts.content, facts.licence, state, folder(name)))
    return found


def check(name: str) -> list[FileStatus]:
    """Read every file of a set and compare it with its published checksum; decode every image of CelebA.

    Raises:
        SemlinkError: the set is unknown. Damage is reported, not raised.
    """
    check_name("data set", name, FACTS)
    if name == "digits":
        return [_judge(digits_file(), partial(load, name), "5,000 images, embedded, SHA-256 verified")]
    found = [_check_file(name, file) for file in FILES[name]]
    return [*found, *_check_faces()] if name == "celeba" else found


def _plausible(file: Published) -> bool:
    path = locate(file)
    return path.is_file() and (path.suffix == ".gz" or path.stat().st_size == file.size)


def _check_file(name: str, file: Published) -> FileStatus:
    return _judge(locate(file), partial(verify, name, file), f"{file.size:,} bytes, SHA-256 verified")


def _judge(path: Path, test: partial, detail: str) -> FileStatus:
    try:
        test()
    except SemlinkError as error:
        return FileStatus(path, "damaged" if path.exists() else "missing", str(error))
    return FileStatus(path, "ok", detail)


def _check_faces() -> list[FileStatus]:
    """Return one status for the folder of images and one for every image that cannot be decoded."""
    try:
        paths = [image_folder() / name for name, _, _ in image_files()]
    except SemlinkError as error:
        return [FileStatus(image_folder(), "missing", str(error))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faces = pool.map(lambda path: _judge(path, partial(read_face, path), ""), paths)
        bad = [face for face in faces if face.state != "ok"]
    if bad:
        return [FileStatus(image_folder(), "damaged", f"{len(bad):,} of {len(paths):,} images are damaged"), *bad]
    return [FileStatus(image_folder(), "ok", f"{len(paths):,} of 202,599 images, all decoded")]
