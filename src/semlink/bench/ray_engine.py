# SPDX-License-Identifier: Apache-2.0
"""Doing cells on a Ray cluster, whose nodes share nothing but the network.

    store ──> inputs, what was begun ──> a node's own scratch store ──> work ──> the cell's files ──> store
                                              └── checkpoint, progress ──> keeper, on this node

A cell goes to a node with the files of all that it is made of, and comes back whole. While it trains, the keeper holds
its last checkpoint: should the node die, the cell goes on from there on another. Images are not sent: every node finds
them where SEMLINK_DATA says. Nodes must have the same Semlink.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from semlink import _version
from semlink._errors import SemlinkError
from semlink._files import Busy
from semlink.bench.code import modules_sha256
from semlink.bench.steps import STEPS
from semlink.bench.store import Store
from semlink.bench.work import Result, work
from semlink.training import Moment, Watcher, resolve_device

Files = dict[str, bytes]
TRIES = 5  # nodes that a cell may lose
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.5
_ENDS = ("done.json", "failed.json")  # written last: they say that the rest is whole


def connect(address: str | None) -> Any:
    """Return Ray, connected to a cluster: that at ``address``, "auto" for the one of this machine, None for a new one.

    Raises:
        SemlinkError: Ray is not installed, or nobody answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise SemlinkError("Ray is not installed; install it with: pip install 'semlink[ray]'") from None
    if ray.is_initialized():
        return ray
    remedy = "start one with 'ray start --head', or leave --address out to work on this machine alone"
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
        except (OSError, ValueError, OverflowError):
            raise SemlinkError(f"no Ray cluster answers at {address}; {remedy}") from None
    elif address not in (None, "auto"):
        raise SemlinkError(f"--address is '{address}': HOST:PORT or auto is expected")
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = " ".join(f"{error}".split())[:200]
        raise SemlinkError(f"no Ray cluster answers at {address or 'this machine'} ({why}); {remedy}") from None
    return ray


class Keeper:
    """Holds what a node said last of each cell; an actor on the node that the bench was started on."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, Files, dict[str, Any]]] = {}

    def keep(self, cell: str, node: str, files: Files | None, moment: dict[str, Any]) -> None:
        """Take a checkpoint, unless it is None, and progress."""
        before = self.held.get(cell, ("", {}, {}))[1]
        self.held[cell] = node, before if files is None else files, moment

    def look(self, cell: str) -> tuple[str, dict[str, Any]]:
        """Return the node that a cell is on, and its progress."""
        node, _, moment = self.held.get(cell, ("", {}, {}))
        return node, moment

    def take(self, cell: str) -> Files:
        """Return the last checkpoint, empty if there is none."""
        return self.held.get(cell, ("", {}, {}))[1]

    def forget(self, cell: str) -> None:
        """Drop what is held of a cell."""
        self.held.pop(cell, None)


class RayEngine:
    """Does each cell as a task of one processor core, or one GPU, anywhere in a Ray cluster.

    Raises:
        SemlinkError: as :func:`connect`.
    """

    def __init__(self, device: torch.device, address: str | None = None) -> None:
        self.ray, self.device = connect(address), device
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        self.keeper = self.ray.remote(num_cpus=0)(Keeper).options(scheduling_strategy=here).remote()
        needs = {"num_cpus": 1, "num_gpus": 1} if device.type == "cuda" else {"num_cpus": 1}
        self.task = self.ray.remote(max_retries=0, **needs)(do)
        self._put: dict[str, Any] = {}

    @property
    def slots(self) -> int:
        """Processor cores, or GPUs, of the cluster as it is now."""
        kind = "GPU" if self.device.type == "cuda" else "CPU"
        return max(1, int(self.ray.cluster_resources().get(kind, 0)))

    def start(self, store: Store, name: str, watch: Watcher) -> "_RayTask":
        """Send a cell to wherever there is room."""
        return _RayTask(self, store, name, watch)

    def files_of(self, store: Store, name: str) -> Any:
        """Return a reference to the files of a finished cell, sent to the cluster once."""
        if name not in self._put:
            self._put[name] = self.ray.put(_read(store.folder(name)))
        return self._put[name]


class _RayTask:
    def __init__(self, engine: RayEngine, store: Store, name: str, watch: Watcher) -> None:
        self.engine, self.store, self.name, self.watch = engine, store, name, watch
        self.message, self.lost, self.looked = "its node ended without a word", 0, 0.0
        self.reference = self._submit()

    def _submit(self) -> Any:
        content = self.store.content(self.name)
        inputs = {cell: self.engine.files_of(self.store, cell) for cell in content["inputs"].values()}
        begun, device = _read(self.store.folder(self.name)), self.engine.device.type
        return self.engine.task.remote(self.name, content, inputs, begun, device, self.engine.keeper, _version.VERSION)

    def poll(self) -> Result | None:
        """Return how it ended, None while it has not; a cell whose node was lost goes on elsewhere."""
        ray = self.engine.ray
        from ray.exceptions import RayError, RayTaskError

        if time.monotonic() - self.looked > _LOOK_SECONDS:
            self.looked = time.monotonic()
            _, moment = ray.get(self.engine.keeper.look.remote(self.name))
            if moment:
                self.watch(Moment(**moment))
        ready, _ = ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            result, files = ray.get(self.reference)
        except RayTaskError as error:  # the work itself cannot raise; what sends it can
            self.message = " ".join(f"{error.cause}".split())
            return "failed"
        except RayError as error:
            return self._lost(error)
        self._write(files)
        self.engine.keeper.forget.remote(self.name)
        return result

    def _lost(self, error: Exception) -> Result | None:
        """Go on from the last checkpoint, on another node."""
        self.lost += 1
        if self.lost > TRIES:
            self.message = f"{self.lost} nodes were lost at it ({type(error).__name__})"
            return "failed"
        self._write(self.engine.ray.get(self.engine.keeper.take.remote(self.name)))
        self.reference = self._submit()
        return None

    def _write(self, files: Files) -> None:
        with contextlib.suppress(Busy), self.store.hold(self.name) as folder:
            _write(folder, files)

    def stop(self) -> None:
        """End it; its last checkpoint is kept."""
        with contextlib.suppress(Exception):  # the cluster may be gone
            self.engine.ray.cancel(self.reference, force=True)
            self._write(self.engine.ray.get(self.engine.keeper.take.remote(self.name), timeout=_ANSWER_SECONDS))


def do(
    name: str,
    content: dict[str, Any],
    inputs: dict[str, Any],
    begun: Files,
    device: str,
    keeper: Any,
    version: str,
) -> tuple[Result, Files]:
    """Do a cell on the node that this runs on, and return how it ended and its files.

    Raises:
        SemlinkError: the node has another Semlink.
    """
    import ray

    torch.set_num_threads(1)
    node = ray.get_runtime_context().get_node_id()
    own = modules_sha256(*STEPS[content["step"]].modules(content["spec"])) if version == _version.VERSION else ""
    if own != content["code"]:
        raise SemlinkError(
            f"node {socket.gethostname()} has another Semlink ({_version.VERSION}) than the machine that the bench was "
            f"started on ({version}), or other code of it; install the same on all nodes"
        )
    scratch = Path(tempfile.mkdtemp(prefix="semlink-"))
    try:
        store = Store(scratch / "store")
        for cell, files in zip(inputs, ray.get(list(inputs.values())), strict=True):
            _write(store.folder(cell), files)
        _write(store.folder(name), begun)
        result = work(store, name, resolve_device(device), _Sender(keeper, name, node, store.folder(name)))
        return result, _read(store.folder(name))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Sender:
    """A watcher that sends progress, and the checkpoint whenever it is a new one, to the keeper."""

    def __init__(self, keeper: Any, name: str, node: str, folder: Path) -> None:
        self.keeper, self.name, self.node, self.folder = keeper, name, node, folder
        self.sent, self.kept = 0.0, ""

    def __call__(self, moment: Moment) -> None:
        """Send ``moment``, twice a second at most, but each checkpoint."""
        logs = sorted(self.folder.rglob("log.jsonl"))
        state = repr([log.stat().st_mtime_ns for log in logs])  # written after each epoch, just before the checkpoint
        if state != self.kept or time.monotonic() - self.sent > _LOOK_SECONDS:
            # This runs between steps of the training, in its thread, so that no file is half written.
            files = _read(self.folder) if logs and state != self.kept else None
            self.sent, self.kept = time.monotonic(), state
            self.keeper.keep.remote(self.name, self.node, files, asdict(moment))


def _read(folder: Path) -> Files:
    """Return the files of a cell's folder by their paths in it, but for locks, progress and files half written."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        passing = path.name in ("lock", "progress.json") or path.name.endswith(".part")
        if path.is_file() and not passing:
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _write(folder: Path, files: Files) -> None:
    """Write ``files``, those that say that a cell has ended last, and remove what is no more of it."""
    for stale in (path for path in _read(folder) if path not in files and files):
        (folder / stale).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: (name in _ENDS, name)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(files[name])
        part.replace(path)
