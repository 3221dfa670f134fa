# SPDX-License-Identifier: Apache-2.0
"""Verbs on benches: run a recipe, show what was found, compare two."""

import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semlink._errors import SemlinkError
from semlink.cli.common import argument, deliver, device_for, say

if TYPE_CHECKING:
    import torch

    from semlink.bench.engines import Engine
    from semlink.bench.estimate import Cost
    from semlink.bench.graph import Graph
    from semlink.bench.results import BenchRecord
    from semlink.bench.runner import Outcome
    from semlink.bench.store import Store
    from semlink.report.claims import Judgement


@dataclass(kw_only=True)
class _Stored:
    store: Path | None = None
    """Folder of all cells; SEMLINK_STORE, or a folder of the user's data, if left out."""
    json: bool = False
    """Print the record as JSON on standard output, and nothing else there."""

    def _root(self) -> Path:
        from semlink.bench.store import default_root

        return self.store or default_root()

    def _is_there(self) -> bool:
        return (self._root() / "store.json").is_file()

    def _open(self, *, make: bool = False) -> "Store":
        from semlink.bench.store import Store

        if not make and not self._is_there():
            raise SemlinkError(f"there is no store at {self._root()}; 'semlink bench' makes one, --store names another")
        return Store(self._root())


@dataclass(kw_only=True)
class Bench(_Stored):
    """Run a recipe to its end; what was done before is not done again.

    example: semlink bench start --plan
    """

    name: str = argument()
    """A recipe of the package, as start, or a TOML file."""
    variant: str | None = None
    """A reading that the recipe names."""
    plan: bool = False
    """Only show what would be done, how long it takes and how much disk it needs."""
    engine: Literal["processes", "in-process", "ray"] = "processes"
    """A process of one thread for each cell at work, one cell after the other in this process, or a Ray cluster."""
    address: str | None = None
    """HOST:PORT of a Ray cluster, or auto for that of this machine; a new one on this machine if left out."""
    workers: int | None = None
    """Processes at a time; as many as processor cores or CUDA devices if left out, 8 at most."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    adopt: list[Path] = field(default_factory=list)
    """Run folders made by 'semlink train' that are taken in place of training."""
    same_code: str | None = None
    """Why changed code has the same results; a trial must prove it, then cells made before are kept."""
    out: Path | None = None
    """Folder that also takes the record and the figures."""

    def run(self) -> int:
        """Run, then print the table; 1 if a cell failed."""
        from semlink.bench import recipes

        if self.workers is not None and self.workers < 1:
            raise SemlinkError(f"--workers is {self.workers}: at least 1 is needed")
        if self.out and self.out.exists() and not self.out.is_dir():
            raise SemlinkError(f"--out is {self.out}, which is a file; give a folder")
        if self.address is not None and self.engine != "ray":
            raise SemlinkError(f"--address is of a Ray cluster, and the engine is '{self.engine}'; add --engine ray")
        if self.workers is not None and self.engine == "ray":
            raise SemlinkError("--workers is of the engine 'processes'; a Ray cluster has as many as its nodes offer")
        recipe = recipes.load(self.name, self.variant)  # a typo is answered before torch is loaded

        from semlink.bench import estimate, pictures, results, runner
        from semlink.bench.board import ScreenBoard
        from semlink.bench.graph import build
        from semlink.report import bench as report

        device, store = device_for(self.device), self._open(make=True)
        engine = self._engine(device)
        with ScreenBoard(store) as board:
            reason, note = self.same_code, board.note
            graph = build(recipe, store, runner.prover(store, device, reason, note) if reason else runner.warner(note))
            for folder in self.adopt:
                note(f"{folder} is taken as {runner.adopt(graph, store, folder, device).label}")
            if self.plan:
                costs = estimate.costs(graph, store, device, note)
                plan = _plan(graph, store, costs)
                say(json.dumps(plan) if self.json else report.planned(graph, store, costs, engine.slots))
                return 0
            graph.save(results.folder_of(recipe, store))
            outcome = runner.run(graph, store, engine, board)
        found, path = results.write(graph, store)
        self._copy([path])
        say(found.model_dump_json() if self.json else f"{report.shown(found)}\n\nRecord: {path}")
        _complain(graph, store, outcome)
        drawn = [*results.draw(graph, store, found), *pictures.draw(path.parent, found, store)]
        self._copy(drawn)
        if drawn and not self.json:
            say(*(f"Figure: {each}" for each in drawn if each.suffix == ".png"))
        return 1 if outcome.failed else 0

    def _engine(self, device: "torch.device") -> "Engine":
        from semlink.bench import engines

        if self.engine == "ray":
            from semlink.bench.ray_engine import RayEngine

            return RayEngine(device, self.address)
        return engines.InProcess(device) if self.engine == "in-process" else engines.Processes(device, self.workers)

    def _copy(self, files: list[Path]) -> None:
        """Put ``files`` where ``out`` says, if anywhere."""
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        for each in files:
            if self.out.resolve() != each.parent.resolve():
                shutil.copyfile(each, self.out / each.name)


@dataclass(kw_only=True)
class BenchShow(_Stored):
    """Print the table of a recipe, and which of its cells are missing.

    example: semlink bench show start
    """

    name: str = argument()
    """A recipe of the package, or a TOML file."""
    variant: str | None = None
    """A reading that the recipe names."""
    out: Path | None = None
    """File that also takes the record."""

    def run(self) -> None:
        """Print."""
        from semlink.bench import graph, recipes, results
        from semlink.report import bench as report

        recipe, store = recipes.load(self.name, self.variant), self._open()
        planned = graph.load(results.folder_of(recipe, store), recipe)
        found, path = results.write(planned, store)
        deliver(path, self.out)
        say(found.model_dump_json() if self.json else report.shown(found))


@dataclass(kw_only=True)
class BenchCompare(_Stored):
    """Show what changed between two benches, and which numbers differ by more than chance.

    example: semlink bench compare results/start/record.json start
    """

    first: str = argument()
    """A record of a bench, as *.json, or a recipe that was run here, RECIPE or RECIPE@VARIANT."""
    second: str = argument()
    """The other."""

    def run(self) -> None:
        """Print what changed."""
        from semlink.bench.compare import compare
        from semlink.report import bench as report

        files = all(name.endswith(".json") for name in (self.first, self.second))
        store = None if files and not self.store and not self._is_there() else self._open()  # two files need none
        first, second = (_record(name, store) for name in (self.first, self.second))
        found = compare(first, second, store)
        if self.json:
            say(found.model_dump_json())
        else:
            say(report.compared(found, self.first, self.second))


def _plan(graph: "Graph", store: "Store", costs: "dict[str, Cost]") -> dict[str, Any]:
    cells = [
        {"name": cell.name, "label": cell.label, "state": store.state(cell.name), **asdict(costs[cell.name])}
        for cell in graph.cells
    ]
    return {"recipe": graph.recipe.name, "variant": graph.recipe.variant, "store": str(store.root), "cells": cells}


def _complain(graph: "Graph", store: "Store", outcome: "Outcome") -> None:
    """Say on standard error which cells failed, where their logs are, and what could not be done for want of them."""
    for cell in graph.cells:
        if cell.name in outcome.failed:
            log = store.folder(cell.name) / "log.txt"
            sys.stderr.write(f"failed: {cell.label}: {outcome.failed[cell.name]}; its log is {log}\n")
    if outcome.blocked:
        sys.stderr.write(f"{len(outcome.blocked)} cells wait for those; the same command tries again\n")


def _record(name: str, store: "Store | None") -> "BenchRecord":
    """Return the record in a file, or that of a recipe in the store."""
    from semlink.bench import graph, recipes, record, results

    if store is None or name.endswith(".json"):
        return record.read(Path(name), results.BenchRecord)
    base, _, variant = name.rpartition("@") if "@" in Path(name).name else (name, "", "")
    recipe = recipes.load(base, variant or None)
    return results.gather(graph.load(results.folder_of(recipe, store), recipe), store)


@dataclass(kw_only=True)
class Claims:
    """Hold what the two papers claim to records, and say which claims hold.

    example: semlink claims --ids A8 B4
    """

    results: Path = Path("results")
    """Folder of records, as 'semlink bench --out' writes them."""
    ids: list[str] = field(default_factory=list)
    """Only these claims, with every comparison."""
    json: bool = False
    """Print the verdicts as JSON on standard output, and nothing else there."""
    out: Path | None = None
    """File that takes the page, in Markdown."""

    def run(self) -> None:
        """Judge and print."""
        from semlink._errors import check_name
        from semlink._files import write_text
        from semlink.report import claims

        every = {each.id: each for each in claims.claims()}
        chosen = [every[check_name("claim", each, every)] for each in self.ids] or list(every.values())
        held = claims.records(self.results)
        found = [claims.judge(each, held) for each in chosen]
        if self.out is not None:
            write_text(self.out, claims.markdown(found))
        if self.json:
            say(json.dumps([each.claim.model_dump(exclude={"tests"}) | _said(each) for each in found], indent=1))
        else:
            say(*claims.text(found, bool(self.ids)))


@dataclass
class Results:
    """Gather landed records into one page: figures, the tables behind them, what is missing.

    example: semlink results --out docs/results.md
    """

    results: Path = Path("results")
    """Folder of records, as 'semlink bench --out' writes them."""
    out: Path = Path("results.md")
    """File that takes the page, in Markdown; figures are linked to from there."""
    json: bool = False
    """Print the page's path as JSON."""

    def run(self) -> None:
        """Write the page."""
        from semlink._files import write_text
        from semlink.report import overview

        if self.out.is_dir():
            raise SemlinkError(f"{self.out} is a folder; --out names the file that takes the page")
        write_text(self.out, overview.markdown(self.results, self.out))
        say(json.dumps({"page": str(self.out)}) if self.json else f"Page: {self.out}")


def _said(each: "Judgement") -> dict[str, Any]:
    comparisons = [finding._asdict() for finding in each.findings]
    return {"verdict": each.verdict, "comparisons": comparisons, "missing": each.missing}
