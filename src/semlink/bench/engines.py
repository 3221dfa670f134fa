# SPDX-License-Identifier: Apache-2.0
"""Where cells are done: in this process, or in a pool of local processes; on a cluster, see ray_engine.py.

An engine offers ``slots`` and starts cells; a task is asked whether it has ended, and can be stopped.
"""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Protocol

import torch

from semlink.bench.store import Store
from semlink.bench.work import RESULTS, Result, work
from semlink.training import Moment, Watcher

#: Of a process that ended before it could say anything.
_SILENT = "its process ended without a word; it may have been killed"


class Task(Protocol):
    """A cell at work; ``message`` is why it failed, should its folder not tell."""

    message: str

    def poll(self) -> Result | None:
        """Return how it ended, None while it has not."""
        ...

    def stop(self) -> None:
        """End it; its checkpoint stays."""
        ...


class Engine(Protocol):
    """Does cells."""

    @property
    def slots(self) -> int:
        """How many at a time."""
        ...

    def start(self, store: Store, name: str, watch: Watcher) -> Task:
        """Start the cell ``name``; ``watch`` is shown its progress."""
        ...


@dataclass
class Ended:
    """A cell that is no longer at work, or never was."""

    result: Result
    message: str = _SILENT

    def poll(self) -> Result:
        """Return how it ended."""
        return self.result

    def stop(self) -> None:
        """Nothing is left to stop."""


class InProcess:
    """Does one cell after the other in this process, on all of its threads."""

    slots = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self, store: Store, name: str, watch: Watcher) -> Task:
        """Do the cell, and return when it has ended."""
        return Ended(work(store, name, self.device, watch))


class Processes:
    """Does each cell in a process of its own, with one torch thread; CUDA devices are shared out among them.

    ``slots`` are as many as there are processor cores, or CUDA devices, unless given; 8 at most.
    """

    def __init__(self, device: torch.device, slots: int | None = None) -> None:
        cores = torch.cuda.device_count() if device.type == "cuda" else len(os.sched_getaffinity(0))
        self.device, self.slots = device, slots or min(cores, 8)
        self.busy: list[_Process | None] = [None] * self.slots

    def start(self, store: Store, name: str, watch: Watcher) -> Task:
        """Start a process for the cell in a free slot."""
        slot = next(i for i, held in enumerate(self.busy) if held is None or held.process.poll() is not None)
        device = str(self.device)
        if self.device.type == "cuda" and self.device.index is None:
            device = f"cuda:{slot % torch.cuda.device_count()}"
        self.busy[slot] = task = _Process(store, name, device, watch)
        return task


class _Process:
    message = _SILENT

    def __init__(self, store: Store, name: str, device: str, watch: Watcher) -> None:
        self.folder, self.watch, self.shown = store.folder(name), watch, ""
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "semlink.bench.work", str(store.root), name, device],
                stdin=subprocess.PIPE,  # closed when this process ends, however it ends: then the child ends too
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )

    def poll(self) -> Result | None:
        with contextlib.suppress(OSError, ValueError, TypeError):  # not there yet, or half written
            text = (self.folder / "progress.json").read_text()
            if text != self.shown:
                self.shown = text
                self.watch(Moment(**json.loads(text)))
        status = self.process.poll()
        if status is None:
            return None
        return RESULTS.get(status, "failed")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
