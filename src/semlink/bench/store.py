# SPDX-License-Identifier: Apache-2.0
"""The store: one folder a cell, named by what the cell depends on, so that nothing is computed twice.

<store>/store.json                          the format, written first
        cells/STEP-SUBJECT-CODE/cell.json   what the cell is for; written before work begins
                               /…           what its step writes; a checkpoint while it is at work
                               /done.json   written last: its presence means that the cell is finished
                               /failed.json the error of the last try, its traceback in log.txt
        benches/NAME/…                      what was last planned, recorded and drawn of a recipe

SUBJECT is a hash of all that determines a result but code: the cell's part of the recipe, the data and the cells it
builds on. CODE is a hash of the modules that its step imports. A cell made by other code serves only if a person has
declared that code to have the same results; see :mod:`semlink.bench.runner`.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal

import platformdirs

from semlink._errors import SemlinkError
from semlink._files import atomic_path, exclusive, sha256_file, write_text

FORMAT = 1
State = Literal["done", "failed", "begun", "new"]


def default_root() -> Path:
    """Return where the store lies: ``SEMLINK_STORE``, else a folder of the user's data."""
    given = os.environ.get("SEMLINK_STORE")
    return Path(given).expanduser() if given else Path(platformdirs.user_data_dir("semlink")) / "store"


def canonical(value: Any) -> str:
    """Return ``value`` as JSON that depends on its content alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def subject_of(step: str, spec: dict[str, Any], data_sha256: str, inputs: dict[str, str]) -> str:
    """Return the hash of all that determines a cell's result but code; ``inputs`` are names of cells by role."""
    what = {"step": step, "spec": spec, "data": data_sha256, "inputs": inputs, "format": FORMAT}
    return hashlib.sha256(canonical(what).encode()).hexdigest()


class Store:
    """A store at ``root``, made if there is none.

    Raises:
        SemlinkError: ``root`` is a file, holds other things, or is a store of a newer Semlink.
    """

    def __init__(self, root: Path) -> None:
        self.root, path = root, root / "store.json"
        if root.exists() and not root.is_dir():
            raise SemlinkError(f"the store {root} is a file; point SEMLINK_STORE or --store at a folder")
        # Listed before the look at store.json: another process may be making the store at this very moment.
        held = [entry.name for entry in root.iterdir()] if root.is_dir() else []
        if not path.exists():
            if any(not name.startswith(".store.json.") for name in held):
                raise SemlinkError(f"{root} is not empty and not a store; point SEMLINK_STORE or --store elsewhere")
            write_text(path, json.dumps({"format": FORMAT}))
        version = _read(path, f'write {{"format": {FORMAT}}} into it').get("format")
        if version != FORMAT:
            raise SemlinkError(
                f"the store {root} has format {version}, this Semlink works with format {FORMAT}; "
                "use the Semlink that made it, or point SEMLINK_STORE or --store elsewhere"
            )

    def folder(self, cell: str) -> Path:
        """Return the folder of a cell."""
        return self.root / "cells" / cell

    def bench(self, name: str) -> Path:
        """Return the folder of what belongs to a recipe as a whole."""
        return self.root / "benches" / name.replace("/", "-")

    def name_for(self, step: str, subject: str, code: str) -> str:
        """Return the name of the finished cell that serves, or else of the one to make with ``code``."""
        own = f"{step}-{subject[:16]}-{code[:8]}"
        if self.state(own) == "done":
            return own
        for folder in self.others(step, subject, own):
            if any(each["code"] == code for each in self.done(folder.name)["declared"]):
                return folder.name
        return own

    def others(self, step: str, subject: str, own: str) -> list[Path]:
        """Return the sound finished cells of the same subject that were made by other code than ``own``."""
        found = sorted((self.root / "cells").glob(f"{step}-{subject[:16]}-????????"))
        return [folder for folder in found if folder.name != own and self.is_sound(folder.name)]

    def state(self, cell: str) -> State:
        """Return whether a cell is done, failed at its last try, was begun, or is new."""
        folder = self.folder(cell)
        if (folder / "done.json").exists():
            return "done"
        if (folder / "failed.json").exists():
            return "failed"
        return "begun" if folder.exists() else "new"

    def done(self, cell: str) -> dict[str, Any]:
        """Return what is said of a finished cell: spec, files with their SHA-256, seconds, witness, declared code.

        Raises:
            SemlinkError: the file is damaged.
        """
        return _read(self.folder(cell) / "done.json")

    def failure(self, cell: str) -> str:
        """Return the error that a cell failed with."""
        try:
            return str(_read(self.folder(cell) / "failed.json")["error"])
        except (SemlinkError, KeyError):
            return "unknown"

    def is_sound(self, cell: str) -> bool:
        """Return whether a cell is finished and every file of it is what was recorded."""
        try:
            files = self.done(cell)["files"]
            return all(sha256_file(self.folder(cell) / name) == sha256 for name, sha256 in files.items())
        except (SemlinkError, OSError, KeyError, TypeError, AttributeError):
            return False

    def set_aside(self, cell: str) -> Path | None:
        """Move what a damaged cell holds, so that it is made anew and can still be looked at; return where it is now.

        None if another process has done so meanwhile.

        Raises:
            Busy: another process is at it.
        """
        with self.hold(cell) as folder:
            if self.state(cell) != "done" or self.is_sound(cell):
                return None
            aside = next(path for n in count(1) if not (path := folder.with_name(f"{cell}.damaged-{n}")).exists())
            aside.mkdir()
            # The lock stays, for others may be about to take it. done.json goes last: until then the cell is damaged.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == "done.json"):
                if path.name != "lock":
                    path.rename(aside / path.name)
            return aside

    def claim(self, cell: str, content: dict[str, Any]) -> None:
        """Write what a cell is for, unless that is there already, and remove what a try that ended badly has left.

        Raises:
            Busy: another process is at it.
        """
        with self.hold(cell) as folder:
            for left in (*folder.glob(".*.part"), folder / "failed.json", folder / "progress.json"):
                left.unlink(missing_ok=True)
            if not (folder / "cell.json").exists():
                write_text(folder / "cell.json", json.dumps(content, indent=1))

    def content(self, cell: str) -> dict[str, Any]:
        """Return what was claimed."""
        return _read(self.folder(cell) / "cell.json")

    @contextlib.contextmanager
    def hold(self, cell: str) -> Iterator[Path]:
        """Hold a cell for this process alone.

        Raises:
            Busy: another live process holds it; the lock of a dead one is free.
        """
        with exclusive(self.folder(cell)):
            yield self.folder(cell)

    def finish(self, cell: str, files: list[str], seconds: float, witness: dict[str, Any]) -> None:
        """Declare a cell done; the caller holds it and has written ``files``."""
        folder = self.folder(cell)
        content = self.content(cell) | {
            "finished": now(),
            "seconds": round(seconds, 1),
            "files": {name: sha256_file(folder / name) for name in files},
            "witness": witness,
            "declared": [],
        }
        (folder / "progress.json").unlink(missing_ok=True)
        write_text(folder / "done.json", json.dumps(content, indent=1))

    def fail(self, cell: str, error: str) -> None:
        """Note the error that a cell failed with; the next run tries it again."""
        write_text(self.folder(cell) / "failed.json", json.dumps({"error": error, "when": now()}))

    def declare(self, cell: str, code: str, reason: str) -> None:
        """Add ``code`` to those whose results are the cell's own."""
        with self.hold(cell) as folder:
            content = self.done(cell)
            content["declared"].append({"code": code, "reason": reason, "when": now()})
            write_text(folder / "done.json", json.dumps(content, indent=1))

    def adopt(self, cell: str, source: Path, files: Sequence[str]) -> None:
        """Copy ``files`` of a held, unfinished cell from the folder ``source``; the last tells that the rest is whole.

        What was begun there is removed.
        """
        whole = self.folder(cell) / files[-1]
        whole.unlink(missing_ok=True)
        shutil.rmtree(whole.parent, ignore_errors=True)
        for name in files:
            with atomic_path(self.folder(cell) / name) as part:
                shutil.copyfile(source / Path(name).name, part)


def now() -> str:
    """Return the time in UTC, as records say it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path, remedy: str = "remove its folder, and it is made anew") -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SemlinkError(f"{path} cannot be read: {(error.strerror or 'unknown').lower()}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SemlinkError(f"{path} is damaged: a JSON object is expected; {remedy}")
    return found
