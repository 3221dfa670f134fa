# SPDX-License-Identifier: Apache-2.0
"""Doing one cell, in this process; ``python -m semlink.bench.work STORE CELL DEVICE`` does it in a process of its own.

A process of its own ends when its parent does: its standard input is a pipe that the parent holds open.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from semlink._errors import SemlinkError
from semlink._files import Busy
from semlink.bench.code import modules_sha256
from semlink.bench.steps import STEPS, witness
from semlink.bench.store import Store
from semlink.training import Moment, Watcher, keep_memory, resolve_device

Result = Literal["done", "failed", "busy"]
#: What the exit status of a process of its own says.
RESULTS: dict[int, Result] = {0: "done", 1: "failed", 3: "busy"}


def work(store: Store, name: str, device: torch.device, watch: Watcher) -> Result:
    """Do the cell ``name``, or go on with it; whatever goes wrong is noted in its folder."""
    try:
        with store.hold(name) as folder:
            return _work(store, name, folder, device, watch)
    except Busy:
        return "busy"


def _work(store: Store, name: str, folder: Path, device: torch.device, watch: Watcher) -> Result:
    if store.state(name) == "done":
        return "done"
    begun = time.perf_counter()
    try:
        content = store.content(name)
        step, spec = STEPS[content["step"]], content["spec"]
        if modules_sha256(*step.modules(spec)) != content["code"]:
            raise SemlinkError("the code has changed since this bench was started; start it again")
        inputs = {role: store.folder(cell) for role, cell in content["inputs"].items()}
        step.run(spec, inputs, folder, device, watch)
        seconds = max(time.perf_counter() - begun, _training_seconds(folder, content["step"]))
        store.finish(name, list(step.files), seconds, witness(content["step"], spec, inputs, device))
    except Busy:  # a folder in this one
        raise
    except Exception as error:
        with contextlib.suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            store.fail(name, " ".join(f"{error}".split()) or type(error).__name__)
        return "failed"
    return "done"


def _training_seconds(folder: Path, step: str) -> float:
    """Return the seconds of all sessions that a training took, 0 of other steps."""
    path = folder / {"train": "run", "attack": "attack"}.get(step, "") / "record.json"
    return float(json.loads(path.read_text())["timing"]["training_seconds"]) if path.exists() else 0.0


class _Progress:
    """A watcher that leaves its last moment in a file, for the parent to show."""

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0.0

    def __call__(self, moment: Moment) -> None:
        """Write ``moment``, twice a second at most."""
        if time.perf_counter() - self.written > 0.5:
            self.written = time.perf_counter()
            with contextlib.suppress(OSError):
                self.path.write_text(json.dumps(asdict(moment)))


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold at the end
        pass
    os._exit(1)


def main(root: str, name: str, device: str) -> int:
    """Do a cell and return the exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_memory()
    store = Store(Path(root))
    result = work(store, name, resolve_device(device), _Progress(store.folder(name) / "progress.json"))
    return next(status for status, meaning in RESULTS.items() if meaning == result)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
