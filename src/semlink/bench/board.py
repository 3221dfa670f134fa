# SPDX-License-Identifier: Apache-2.0
"""A bench on screen: cells done and left, time left, what is at work, and the best so far; on standard error."""

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from semlink.bench import record
from semlink.bench.estimate import Cost, kind_of, known
from semlink.bench.graph import Cell, Graph
from semlink.bench.store import Store
from semlink.bench.work import Result
from semlink.training import Moment, Watcher


class ScreenBoard:
    """Draws bars on a terminal; where there is none prints a line when a cell starts, ends, or ends an epoch.

    Use as a context manager.

    Args:
        store: where finished cells tell what they cost and what they reached.
    """

    def __init__(self, store: Store) -> None:
        self.console = Console(stderr=True)
        self.plain = not self.console.is_terminal
        self.store, self.costs = store, dict[str, Cost]()
        self.best: tuple[float, str] = (-math.inf, "")
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}"),
            console=self.console,
            disable=self.plain,
            transient=True,
        )
        self.cells: list[Cell] = []
        self.left: dict[str, Cell] = {}
        self.moments: dict[str, Moment] = {}
        self.begun: dict[str, float] = {}
        self.tasks: dict[str, TaskID] = {}
        self.slots, self.said_epoch = 1, dict[str, int]()
        self.whole: TaskID | None = None

    def begin(self, graph: Graph, waiting: list[Cell], slots: int) -> None:
        """Show how many cells there are and how many wait."""
        self.cells = list({cell.name: cell for cell in graph.cells}.values())  # two names may mean one cell
        self.left, self.slots = {cell.name: cell for cell in waiting}, slots
        self.costs = known(graph, self.store)
        done = len(self.cells) - len(waiting)
        for cell in self.cells:
            self._reached(cell)
        self.whole = self.bar.add_task(graph.recipe.name, total=len(self.cells), completed=done, said="")
        self.note(f"{graph.recipe.name}: {len(self.cells)} cells, {done} done")
        self._refresh()

    def start(self, cell: Cell) -> Watcher:
        """Show a cell at work."""
        self.begun[cell.name] = time.monotonic()
        self.tasks[cell.name] = self.bar.add_task(f"  {cell.label}", total=1.0, said="")
        if self.plain:
            self.note(f"started: {cell.label}")

        def watch(moment: Moment) -> None:
            self.moments[cell.name] = moment
            said = f"epoch {moment.epoch}/{moment.epochs}  " + _numbers(moment.validation or moment.losses)
            self.bar.update(self.tasks[cell.name], completed=moment.progress, said=said)
            ended = int(moment.progress * moment.epochs + 1e-6)  # the epoch that the validation is of
            if self.plain and ended > self.said_epoch.get(cell.name, 0):
                self.said_epoch[cell.name] = ended
                self.note(f"{cell.label}: epoch {ended}/{moment.epochs}  {_numbers(moment.validation)}")
            self._refresh()

        return watch

    def end(self, cell: Cell, result: Result, message: str) -> None:
        """Show how a cell ended, and what is left."""
        if cell.name in self.tasks:  # not if it could not be started
            self.bar.remove_task(self.tasks.pop(cell.name))
        self.moments.pop(cell.name, None)
        seconds = time.monotonic() - self.begun.pop(cell.name, time.monotonic())
        if result != "busy":
            self.left.pop(cell.name, None)
        if result == "done":
            self._reached(cell)
            self.costs.setdefault(kind_of(cell), Cost(seconds, 0))
        done = len(self.cells) - len(self.left)
        shown = {"done": f"done in {duration(seconds)}", "failed": f"FAILED: {message}", "busy": message}[result]
        tail = f"  [{done}/{len(self.cells)}, {self._time_left()}" if result != "busy" else ""
        tail += f"; best so far: {self.best[1]}]" if tail and self.best[1] else "]" if tail else ""
        if result != "busy" or self.plain:
            self.note(f"{cell.label}: {shown}{tail}")
        self._refresh()

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _refresh(self) -> None:
        if self.whole is not None:
            done = len(self.cells) - len(self.left)
            said = f"{done}/{len(self.cells)} cells, {self._time_left()}"
            said += f"  best so far: {self.best[1]}" if self.best[1] else ""
            self.bar.update(self.whole, completed=done, said=said)

    def _reached(self, cell: Cell) -> None:
        """Note the utility of a link that is evaluated, at the SNR that it is made for if that is in the grid."""
        if cell.step != "evaluate" or self.store.state(cell.name) != "done":
            return
        said = record.read(self.store.folder(cell.name) / "evaluate.json", record.EvaluateRecord)
        point = next((point for point in said.points if point["snr_db"] == said.recipe.snr_db), said.points[0])
        name, value = next((name, each) for name, each in point.items() if isinstance(each, record.Measurement))
        words = f"{name} {value.mean:.4g} {value.unit} at {point['snr_db']:g} dB ({cell.link}, seed {cell.seed})"
        self.best = max(self.best, (value.mean, words))

    def _time_left(self) -> str:
        """Return the time left at the pace of the cells that are done; more than that if a kind has none."""
        if not self.left:
            return "nothing left"
        total, unknown = 0.0, False
        for cell in self.left.values():
            cost = self.costs.get(kind_of(cell))
            if cell.name in self.moments:
                total += self.moments[cell.name].seconds_left
            elif cost:
                spent = time.monotonic() - self.begun[cell.name] if cell.name in self.begun else 0.0
                total += max(cost.seconds - spent, 0.0)
            else:
                unknown = True
        if unknown and not total:
            return "time left not known yet"
        return f"{'more than ' if unknown else ''}{duration(total / self.slots)} left"

    def __enter__(self) -> "ScreenBoard":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``9 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _numbers(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
