# SPDX-License-Identifier: Apache-2.0
"""Running the cells of a recipe: what is done is left, what is ready is started, what fails sinks only its heirs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from semlink._errors import SemlinkError
from semlink._files import Busy
from semlink.bench import links
from semlink.bench.engines import Ended, Engine, Task
from semlink.bench.graph import Cell, Graph, Settle
from semlink.bench.steps import STEPS, recipe_of, witness
from semlink.bench.store import Store
from semlink.bench.work import Result
from semlink.training import Watcher

_WAIT_SECONDS = 0.1
_BUSY_SECONDS = 2.0


class Board(Protocol):
    """Shows how a bench goes on."""

    def begin(self, graph: Graph, waiting: list[Cell], slots: int) -> None:
        """Show what there is to do."""
        ...

    def start(self, cell: Cell) -> Watcher:
        """Show that a cell is at work; what is returned is shown its moments."""
        ...

    def end(self, cell: Cell, result: Result, message: str) -> None:
        """Show how a cell ended."""
        ...

    def note(self, text: str) -> None:
        """Show a remark."""
        ...


@dataclass
class Outcome:
    """What came of a run: names of cells that were found done, made, failed (with their errors) or blocked by those."""

    found: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)


def run(graph: Graph, store: Store, engine: Engine, board: Board) -> Outcome:
    """Do every cell of ``graph`` that is not done; another process may be at the same store.

    A finished cell whose files are damaged is set aside and made anew.
    """
    outcome = Outcome()
    cells = {cell.name: cell for cell in graph.cells}  # what is the same under two names of the recipe is one cell
    for cell in cells.values():
        if store.is_sound(cell.name):
            outcome.found.append(cell.name)
        elif store.state(cell.name) == "done":
            try:
                if aside := store.set_aside(cell.name):
                    board.note(f"{cell.label} is damaged and is made anew; the old files are in {aside}")
            except Busy:  # another process sets it aside
                pass
            except OSError as error:  # a full disk
                outcome.failed[cell.name] = f"it is damaged, and cannot be set aside: {error}"
    waiting = [cell for cell in cells.values() if cell.name not in (*outcome.found, *outcome.failed)]
    board.begin(graph, waiting, engine.slots)
    running: dict[str, tuple[Cell, Task]] = {}
    not_before: dict[str, float] = {}
    try:
        while waiting or running:
            for cell in list(waiting):
                if any(name in outcome.failed or name in outcome.blocked for name in cell.inputs.values()):
                    waiting.remove(cell)
                    outcome.blocked.append(cell.name)
                    continue
                ready = all(name in outcome.found or name in outcome.made for name in cell.inputs.values())
                if ready and len(running) < engine.slots and time.monotonic() >= not_before.get(cell.name, 0.0):
                    if task := _start(cell, store, engine, board):
                        waiting.remove(cell)
                        running[cell.name] = (cell, task)
                        continue
                    if cell.name not in not_before:
                        board.note(f"{cell.label}: another process is at it; what it makes is taken")
                    not_before[cell.name] = time.monotonic() + _BUSY_SECONDS
            at_work = len(running)
            for cell, task in list(running.values()):
                if (said := task.poll()) is None:
                    continue
                del running[cell.name]
                result, message = _ending(cell, store, task, said)
                board.end(cell, result, message)
                if result == "done":
                    outcome.made.append(cell.name)
                elif result == "failed":
                    outcome.failed[cell.name] = message
                else:
                    waiting.append(cell)
                    not_before[cell.name] = time.monotonic() + _BUSY_SECONDS
            if (running or waiting) and len(running) == at_work:
                time.sleep(_WAIT_SECONDS)
    finally:
        for _, task in running.values():
            task.stop()
    return outcome


def _start(cell: Cell, store: Store, engine: Engine, board: Board) -> Task | None:
    """Start a cell; None if another process is at it."""
    try:
        store.claim(cell.name, _content(cell))
        return engine.start(store, cell.name, board.start(cell))
    except Busy:
        return None
    except OSError as error:  # a full disk; no more processes
        return Ended("failed", f"{error}")


def _ending(cell: Cell, store: Store, task: Task, result: Result) -> tuple[Result, str]:
    """Return how a cell has ended, whatever its process said in the end, and why."""
    try:
        if store.state(cell.name) == "done":
            return "done", ""
        if result == "busy":
            raise Busy
        if store.state(cell.name) != "failed":
            with store.hold(cell.name):
                store.fail(cell.name, task.message)
        return "failed", store.failure(cell.name)
    except Busy:
        return "busy", "another process is at it"
    except OSError as error:
        return "failed", f"{error}"


def _content(cell: Cell) -> dict[str, Any]:
    return {
        "step": cell.step,
        "subject": cell.subject,
        "code": cell.code,
        "label": cell.label,
        "spec": cell.spec,
        "inputs": cell.inputs,
    }


def warner(note: Callable[[str], None]) -> Settle:
    """Return what says, once, that cells made by other code are made anew."""
    said: list[Cell] = []

    def settle(cell: Cell, others: list[Path]) -> str:
        if not said:
            said.append(cell)
            note(
                "some cells were made by other code and are made anew; if the change cannot alter results, stop this "
                "and give --same-code 'the reason': a trial proves it and keeps them"
            )
        return cell.name

    return settle


def prover(store: Store, device: torch.device, reason: str, note: Callable[[str], None]) -> Settle:
    """Return what takes cells made by other code, if a trial under this code has the bits of one under that code.

    The trial repeats the cell's step on a few images. Bits can only be compared on the machine, with the libraries,
    the number of threads and the precision that made the cell.
    """

    def settle(cell: Cell, others: list[Path]) -> str:
        inputs = {role: store.folder(name) for role, name in cell.inputs.items()}
        for folder in others:
            held = store.done(folder.name)["witness"]
            threads = torch.get_num_threads()
            torch.set_num_threads(held["machine"]["threads"])
            try:
                own = witness(cell.step, cell.spec | _same_precision(cell.spec, held), inputs, device)
            finally:
                torch.set_num_threads(threads)
            if own["machine"] != held["machine"] or own["precision"] != held["precision"]:
                note(f"{cell.label} was made on another machine or with other libraries; its bits cannot be compared")
            elif not own["sha256"]:
                note(f"{cell.label}: what it is made of is not there, so that nothing can be compared")
            elif own["sha256"] != held["sha256"]:
                note(f"{cell.label}: this code gives other results than the code that made {folder.name}")
            else:
                store.declare(folder.name, cell.code, reason)
                note(f"{cell.label}: a trial has the same bits, {folder.name} is taken")
                return folder.name
        return cell.name

    return settle


def _same_precision(spec: dict[str, Any], held: dict[str, Any]) -> dict[str, str]:
    return {"precision": held["precision"]} if spec.get("precision") == "auto" else {}


def adopt(graph: Graph, store: Store, folder: Path, device: torch.device) -> Cell:
    """Take the run folder ``folder``, made by ``semlink train``, as a trained link of ``graph``.

    Raises:
        SemlinkError: it is no finished run; no link of the recipe is that one; it was made by other code.
    """
    trained = links.read_run(folder)
    links.load(folder)  # weights that are damaged are refused here
    shown = trained.recipe.model_dump(exclude={"precision", "start"})
    fitting = [cell for cell in graph.cells if cell.step == "train" and cell.spec["recipe"] == shown]
    fitting = [cell for cell in fitting if cell.spec["precision"] in ("auto", trained.recipe.precision)]
    if not fitting:
        raise SemlinkError(
            f"{folder} holds {trained.recipe.scheme} on {trained.recipe.data}, {trained.recipe.snr_db:g} dB, "
            f"preset {trained.recipe.preset}, seed {trained.recipe.seed}, which is no link of "
            f"recipe '{graph.recipe.name}'; leave it out, or change the recipe"
        )
    cell = fitting[0]
    if store.state(cell.name) == "done":
        return cell
    if {trained.step_sha256, trained.started_by_step_sha256} != {cell.code}:
        raise SemlinkError(f"{folder} was trained by other code than this Semlink's; train the link again")
    sets = links.image_sets(trained.recipe)
    if _plain(trained.data) != _plain(sets.provenance):
        raise SemlinkError(f"{folder} was trained on other images than {trained.recipe.data} has now; train it again")
    schedule = cell.spec["sizes"]["schedule"] | {"training_images": len(sets.transceiver)}
    if _plain(trained.schedule) != _plain(schedule):
        raise SemlinkError(f"{folder} was trained on another schedule than preset {trained.recipe.preset} has now")
    files = STEPS["train"].files[::-1]  # the record last
    if lacking := [name for name in files if not (folder / Path(name).name).is_file()]:
        raise SemlinkError(f"{folder} lacks {Path(lacking[0]).name}; restore it from a copy, or train the link again")
    store.claim(cell.name, _content(cell))
    with store.hold(cell.name):
        store.adopt(cell.name, folder, files)
        spec = cell.spec | {"precision": recipe_of(cell.spec, store.folder(cell.name) / "run", device).precision}
        proof = witness("train", spec, {}, device)
        store.finish(cell.name, list(files), float(trained.timing["training_seconds"]), proof)
    return cell


def _plain(value: Any) -> Any:
    """Return ``value`` as it comes out of JSON, where a tuple is a list."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
