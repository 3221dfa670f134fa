# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: atomic writes, checksums, and a lock that dies with its owner."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semlink._errors import SemlinkError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its name only if the block succeeds.

    The bytes are flushed to disk before the rename, so a crash leaves the old file or the new one, never a mixture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o644)  # mkstemp's 0600 would hide results from colleagues
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Busy(SemlinkError):
    """Another live process holds a folder."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process alone.

    The lock belongs to the operating system, which releases it when the process dies, however it dies.

    Raises:
        Busy: another live process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"{folder} is in use by another semlink process; wait for it to end or choose another --out"
            ) from None
        yield
