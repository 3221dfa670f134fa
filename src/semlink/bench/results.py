# SPDX-License-Identifier: Apache-2.0
"""What a bench found: every number with its interval, from the records in the store, and what is missing."""

import contextlib
import itertools
import shutil
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semlink import _version
from semlink._errors import SemlinkError
from semlink._files import atomic_path
from semlink.attacks import attacks
from semlink.bench import drawing, measures, record
from semlink.bench.graph import Cell, Graph
from semlink.bench.recipes import BenchRecipe, LinkEntry
from semlink.bench.record import Measurement, Record
from semlink.bench.rows import Measured, Row, rows
from semlink.bench.store import Store, now
from semlink.metrics import Interval, holm, paired_difference, seed_difference, seed_interval
from semlink.schemes import NetworkScheme, schemes

#: Per-image values are kept as float32 and numbers to six decimals: so far may a mean be off.
_ROUNDING = 1e-4


class Difference(record.Strict):
    """``second - first`` of one metric at one SNR, paired.

    ``over`` says what is paired: training seeds, or test images (each averaged over noise draws and ``seeds``).
    ``p_holm`` is corrected for all differences of the record that are over the same.
    """

    metric: str
    snr_db: float
    first: str
    second: str
    over: Literal["seeds", "images"]
    seeds: list[int]
    difference: Measurement
    p_value: float
    p_holm: float


class LinkCost(record.Strict):
    """What a link takes, by its parts; of a training that was not done here, what its record says.

    ``parameters`` and ``multiply_adds`` (an image) are those of the parts that a user holds, and of ``adversary`` the
    ones that training alone needs. ``epoch_seconds`` is the median over epochs and seeds, on ``machine``, which may
    have been busy. The rest a bench of costs measures alone, at which nothing is trained for any ``epochs``.
    """

    link: str
    parameters: dict[str, int]
    multiply_adds: dict[str, int]
    channel_uses: int
    payload_bits: float | None
    epochs: int
    epoch_seconds: float
    machine: str
    held: dict[str, int] = {}  # noqa: RUF012
    transmit_seconds: float | None = None
    receive_seconds: float | None = None
    training_bytes: int | None = None


class Made(record.Strict):
    """What cells of one step were made by and on; several of one step and scheme mean that versions are mixed."""

    step: str
    scheme: str
    attack: str | None
    cells: int
    semlink: str
    step_sha256: str
    libraries: dict[str, str]
    machine: dict[str, str | int]
    precision: str

    @property
    def of(self) -> str:
        """What was made: a step, its attack and its scheme."""
        return " ".join(filter(None, (self.step, self.attack, self.scheme)))

    @property
    def facts(self) -> dict[str, str]:
        """All that two cells of a step can differ in, by flat names."""
        facts = {"semlink": self.semlink, "step_sha256": self.step_sha256, "precision": self.precision}
        facts |= {f"libraries.{name}": version for name, version in self.libraries.items()}
        return facts | {f"machine.{name}": str(value) for name, value in self.machine.items()}


class CellState(record.Strict):
    """A cell: its name in the store, what it is, how it stands, the seconds it took, the error of its last try.

    ``link`` and ``seed`` are None of images that are prepared and of figures.
    """

    name: str
    label: str
    step: str
    link: str | None
    attack: str | None
    seed: int | None
    state: str
    seconds: float | None = None
    error: str | None = None
    declared: tuple[dict[str, str], ...] = ()


class Ceilings(record.Strict):
    """Upper bounds of what an attack under this threat can learn of an image, in bits, by name; see ceilings.py."""

    link: str
    attack: str
    seed: int
    snr_db: float
    bits: dict[str, float]


class Overhead(NamedTuple):
    """What users who share a channel spend on knowing it, for every block: uses of it, and reals that are fed back."""

    pilot_uses: int
    feedback_reals: int


class BenchRecord(record.Strict):
    """A recipe and all that was found.

    ``positives`` are the test images with each attribute, by data set; ``ceilings`` stand beside every judgement.
    """

    format: int = record.FORMAT
    kind: Literal["bench"] = "bench"
    name: str
    title: str
    variant: str
    semlink: str = _version.VERSION
    code_sha256: str
    recipe: dict[str, Any]
    recipe_sha256: str
    data: dict[str, dict[str, Any]]
    positives: dict[str, dict[str, int]] = {}  # noqa: RUF012
    made: list[Made]
    cells: list[CellState]
    rows: list[Row]
    differences: list[Difference]
    ceilings: list[Ceilings] = []  # noqa: RUF012
    costs: list[LinkCost] = []  # noqa: RUF012
    written: str

    def poor(self) -> set[tuple[str, str]]:
        """Return link and attack of those that with some seed draw worse than the mean image, on the same images.

        That is said at the SNR that they were trained at, as by each judgement. Whoever does so has not learned what
        there is to learn, and says nothing of the defence. A record of an earlier version says only how the mean image
        does on the most images that any attack on the link was judged on; there all are held to that.
        """
        held = {row.key: row for row in self.rows if row.metric == "psnr_db"}
        found = set[tuple[str, str]]()
        for link, attack, metric, snr_db in held:
            if snr_db is None or attack is None or attack not in self.recipe["attacks"]:
                continue
            trained = self.recipe["attacks"][attack]["snr_db"]
            own = self.recipe["links"][link]["snr_db"] if trained is None else trained
            drawn = held.get((link, attack, metric, own), held[link, attack, metric, snr_db])
            most = held.get((link, "mean_image", metric, None))
            guesses = drawn.mean_image or (most.seeds if most else {})
            if any(record.is_worse(each, guesses.get(seed)) for seed, each in drawn.seeds.items()):
                found.add((link, attack))
        return found

    def over_a_range(self, attack: str | None) -> bool:
        """Whether an attack is trained over the range of SNRs of a network, whatever SNR its record names."""
        key = self.recipe["attacks"].get(attack, {}).get("attack")
        return key in attacks.keys() and attacks[key].tapped.of_network  # noqa: SIM118

    def overhead(self, link: str) -> Overhead | None:
        """Return what a link of several users spends on CSI, None of another link.

        The scheme says it: whoever is told no channel needs no pilots. Otherwise each antenna of each transmitter sends
        one of as many orthogonal sequences. What is fed back is all of H, as numbers.
        """
        entry = LinkEntry.model_validate(self.recipe["links"][link])
        kind, users = schemes[entry.scheme], measures.users(entry)
        if not issubclass(kind, NetworkScheme):
            return None
        sent, heard = (int(measures.option(entry, f"{end}_antennas") or 0) for end in ("transmit", "receive"))
        reals = 2 * users**2 * sent * heard if kind.feedback else 0
        return Overhead(users * sent if kind.told_receiver else 0, reals)

    @property
    def missing(self) -> list[CellState]:
        """The cells that are not done."""
        return [cell for cell in self.cells if cell.state != "done"]

    def mixed(self) -> list[str]:
        """Return a sentence for each thing in which cells of one step differ, though nobody asked for it.

        A reader must know that numbers of different code, libraries, machines or precisions stand side by side. The
        code of two schemes differs anyway, so it is compared within a scheme and attack.
        """
        found: dict[tuple[str, str], dict[str, None]] = {}
        for made in self.made:
            for what, value in made.facts.items():
                group = made.of if what == "step_sha256" else made.step
                found.setdefault((group, what), {})[value[:12] if what == "step_sha256" else value] = None
        mixed = {key: values for key, values in found.items() if len(values) > 1}
        return [f"{what} is {' or '.join(values)} in cells of '{group}'" for (group, what), values in mixed.items()]


def gather(graph: Graph, store: Store) -> BenchRecord:
    """Return what is in the store of the cells of ``graph``.

    Raises:
        SemlinkError: a record is damaged.
    """
    done = [cell for cell in graph.cells if cell.link is not None and store.state(cell.name) == "done"]
    records = {cell.name: record.of_step(store.folder(cell.name), cell.step) for cell in done}
    measured = [Measured(cell.link or "", cell.attack, cell.seed or 0, records[cell.name]) for cell in done]
    wanted, cells = graph.recipe.evaluation.metrics, [_state(cell, store) for cell in graph.cells]
    found = list(rows(measured, graph.recipe.links, graph.recipe.attacks, wanted))
    return BenchRecord(
        name=graph.recipe.name,
        title=graph.recipe.title,
        variant=graph.recipe.variant,
        code_sha256=record.code_sha256(),
        recipe=graph.recipe.model_dump(),
        recipe_sha256=graph.recipe.sha256,
        data={data_key(each.data["name"], each.data["variant"]): each.data for each in records.values()},
        positives={
            data_key(each.data["name"], each.data["variant"]): each.positives
            for each in records.values()
            if isinstance(each, record.EvaluateRecord) and each.positives
        },
        made=_made(done, records),
        cells=cells,
        rows=found,
        differences=_differences(graph.recipe, cells, found, store),
        ceilings=[
            Ceilings(
                link=each.link,
                attack=each.attack or "",
                seed=each.seed,
                snr_db=bounds["snr_db"],
                bits={name: round(bits, 3) for name, bits in bounds.items() if name != "snr_db"},
            )
            for each in measured
            if isinstance(each.record, record.JudgeRecord)
            for bounds in each.record.ceilings_bits
        ],
        costs=_costs(measured),
        written=now(),
    )


def _costs(measured: Iterable[Measured]) -> list[LinkCost]:
    """Return the cost of each link that was measured, trained or fetched, by the record of its first seed."""
    made: dict[str, list[record.TrainRecord | record.CostRecord]] = {}
    for each in measured:
        if each.attack is None and isinstance(each.record, record.TrainRecord | record.CostRecord):
            made.setdefault(each.link, []).append(each.record)
    found = []
    for link, records in made.items():
        first, seconds, alone = records[0], list[float](), dict[str, Any]()
        for each in records:
            if isinstance(each, record.CostRecord):
                seconds.append(each.epoch_seconds)
                names = ("held", "transmit_seconds", "receive_seconds", "training_bytes")
                alone = alone or {name: getattr(each, name) for name in names}
            else:
                seconds += [row["epoch_seconds"] for row in each.history]
        found.append(
            LinkCost(
                link=link,
                parameters=first.parameters,
                multiply_adds=first.multiply_adds,
                channel_uses=first.channel_uses,
                payload_bits=first.payload_bits,
                epochs=len(first.history) if isinstance(first, record.TrainRecord) else 0,
                epoch_seconds=round(statistics.median(seconds), 3) if seconds else 0.0,
                machine=str(first.machine["processor" if first.machine["device"] == "cpu" else "device"]),
                **alone,
            )
        )
    return found


def data_key(name: str, variant: str) -> str:
    """Return what a data set is called in a record."""
    return name if variant == "default" else f"{name}/{variant}"


def per_image(cells: Iterable[CellState], store: Store, row: Row) -> dict[int, Tensor]:
    """Return, for each training seed of a row, its value for each test image, noise draws averaged: (n,) float64.

    A seed is left out if the store lacks its values, or has others than the row was made of: a record may come from
    another machine, where a cell of the same name came to other numbers.

    Raises:
        SemlinkError: a file is damaged.
    """
    found = {}
    for cell in cells:
        about = (cell.link, cell.attack) == (row.link, row.attack) and cell.step in ("evaluate", "judge")
        if about and cell.state == "done" and cell.seed is not None and (measured := row.seeds.get(cell.seed)):
            values = _values(store.folder(cell.name) / f"{cell.step}.safetensors", f"{row.metric}@{row.snr_db:g}")
            values *= 100 if measured.unit == "%" else 1
            if len(values) and abs(float(values.mean()) - measured.mean) < _ROUNDING:
                found[cell.seed] = values
    return found


def _values(path: Path, name: str) -> Tensor:
    """Return a tensor of a file as float64, empty if it is not there."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name).double() if name in file.keys() else torch.empty(0)  # noqa: SIM118
    except FileNotFoundError:
        return torch.empty(0)
    except SafetensorError as error:
        raise SemlinkError(f"{path} is damaged ({error}); run the bench again, which makes it anew") from None


def paired_images(a: dict[int, Tensor], b: dict[int, Tensor]) -> Interval | None:
    """Return the difference ``a - b`` paired by test image, averaged over the common seeds; None if it cannot be."""
    common = sorted(a.keys() & b.keys())
    if not common or any(a[seed].shape != b[seed].shape for seed in common):
        return None
    first, second = (torch.stack([each[seed] for seed in common]).mean(0) for each in (a, b))
    return paired_difference(first, second)


def over_seeds(a: Row, b: Row) -> Interval | None:
    """Return the difference ``a - b`` over training seeds, paired where both used the same; None if it cannot be."""
    if a.over_seeds is None or b.over_seeds is None:
        return None
    common = sorted(a.seeds.keys() & b.seeds.keys())
    paired = len(common) == len(a.seeds) == len(b.seeds)
    first, second = (
        torch.tensor([row.seeds[seed].mean for seed in (common if paired else row.seeds)], dtype=torch.float64)
        for row in (a, b)
    )
    return seed_difference(first, second, paired=paired)


def gap(users: Iterable[Row]) -> tuple[float, Measurement | None]:
    """Return by how much the best served user is ahead of the worst, and that over training seeds if there are several.

    It is taken within a training and then averaged. Over images it has no interval here: their users' values are not
    kept side by side.
    """
    rows = list(users)
    common = set[int].intersection(*({*row.seeds} for row in rows))
    means = [[row.seeds[seed].mean for row in rows] for seed in sorted(common)]
    gaps = torch.tensor([max(each) - min(each) for each in means], dtype=torch.float64)
    over = Measurement.of(seed_interval(gaps), rows[0].shown.unit) if len(gaps) > 1 else None
    return float(gaps.mean()), over


def _differences(recipe: BenchRecipe, cells: list[CellState], rows: list[Row], store: Store) -> list[Difference]:
    """Compare every row with the first of the same metric, SNR, images and kind: link or attack.

    A link that names another to be held ``against`` is compared with that one.
    """
    named = {(row.link, row.metric, row.snr_db): row for row in rows if row.attack is None}
    found: list[tuple[Row, Row, Literal["seeds", "images"], list[int], Interval]] = []
    first: dict[tuple[str, float, str, str, bool], Row] = {}
    for row in rows:
        if row.snr_db is None:
            continue
        entry = recipe.links[row.link]
        reference = first.setdefault((row.metric, row.snr_db, entry.data, entry.variant, row.attack is None), row)
        if row.attack is None and entry.against is not None:
            reference = named.get((entry.against, row.metric, row.snr_db))
        if reference is row or reference is None:
            continue
        if (interval := over_seeds(row, reference)) is not None:
            found.append((reference, row, "seeds", sorted({*row.seeds, *reference.seeds}), interval))
        values = per_image(cells, store, row), per_image(cells, store, reference)
        if (interval := paired_images(*values)) is not None:
            found.append((reference, row, "images", sorted(values[0].keys() & values[1].keys()), interval))
    differences = []
    for over in ("seeds", "images"):
        mine = [each for each in found if each[2] == over]
        corrected = holm([p_value(each[-1]) for each in mine])
        for (reference, row, _, seeds, interval), p_holm in zip(mine, corrected, strict=True):
            differences.append(
                Difference(
                    metric=row.metric,
                    snr_db=row.snr_db or 0.0,
                    first=reference.name,
                    second=row.name,
                    over=over,
                    seeds=seeds,
                    difference=Measurement.of(interval, row.shown.unit),
                    p_value=p_value(interval),
                    p_holm=p_holm,
                )
            )
    return differences


def p_value(difference: Interval) -> float:
    """Return the p-value of a difference; ValueError of an interval that was not tested."""
    if difference.p_value is None:
        raise ValueError(f"{difference} was not tested")
    return difference.p_value


def _made(done: list[Cell], records: dict[str, Record]) -> list[Made]:
    counted: dict[str, tuple[dict[str, Any], int]] = {}
    for cell in done:
        found = records[cell.name]
        what = {
            "step": cell.step,
            "scheme": found.recipe.scheme,
            "attack": getattr(found, "attack", None),
            "semlink": found.semlink,
            "step_sha256": found.step_sha256,
            "libraries": found.libraries,
            "machine": found.machine,
            "precision": getattr(found, "settings", {}).get("precision", found.recipe.precision),
        }
        held = counted.get(repr(what), (what, 0))
        counted[repr(what)] = (what, held[1] + 1)
    return [Made(cells=count, **what) for what, count in counted.values()]


def _state(cell: Cell, store: Store) -> CellState:
    state = store.state(cell.name)
    shown: dict[str, Any] = {name: getattr(cell, name) for name in ("name", "label", "step", "link", "attack", "seed")}
    shown |= {"state": state}
    if state == "done":
        done = store.done(cell.name)
        shown |= {"seconds": done.get("seconds"), "declared": done.get("declared")}
    if state == "failed":
        shown |= {"error": store.failure(cell.name)}
    try:
        return CellState(**shown)
    except ValidationError:
        folder = store.folder(cell.name)
        raise SemlinkError(f"{folder / 'done.json'} is damaged; remove {folder}, and run the bench again") from None


def write(graph: Graph, store: Store) -> tuple[BenchRecord, Path]:
    """Gather, write the record beside the graph, and return both; an unchanged record is left as it is."""
    found, path = gather(graph, store), folder_of(graph.recipe, store) / "record.json"
    with contextlib.suppress(SemlinkError):  # there is none, or none that this Semlink reads: it is written anew
        held = record.read(path, BenchRecord)
        if held.model_dump(exclude={"written"}) == found.model_dump(exclude={"written"}):
            return held, path
    record.write(path, found)
    return found, path


def draw(graph: Graph, store: Store, found: BenchRecord) -> list[Path]:
    """Put the figures of a bench beside its record and return their paths, PNG before PDF.

    A figure whose cell is done is copied. Of another those links are drawn that are there, and it says so; one that
    could not be drawn though all of them are is left out. Beside SSIM stands that of equation 8, where it was measured.
    """
    folder, paths = folder_of(graph.recipe, store), list[Path]()
    for cell in graph.cells:
        if cell.step != "draw":
            continue
        done, of = store.is_sound(cell.name), list(cell.inputs.values())
        there = sum(store.state(name) == "done" for name in of)
        if not done and (there == len(of) or not drawing.curves(cell.spec, found.rows)):
            continue
        unfinished = "" if there == len(of) else f"unfinished: {there} of {len(of)} measurements are there"
        other = drawing.by_equation_8(cell.spec)
        specs = [cell.spec, *([other] if other and drawing.curves(other, found.rows) else [])]
        for spec, name in itertools.product(specs, drawing.FILES):
            path = folder / f"{spec['name'].replace(' ', '-')}{Path(name).suffix}"
            if done and spec is cell.spec:
                with atomic_path(path) as part:
                    shutil.copyfile(store.folder(cell.name) / name, part)
            else:
                drawing.draw(path, spec, found.rows, unfinished)
            paths.append(path)
    return paths


def folder_of(recipe: BenchRecipe, store: Store) -> Path:
    """Return the folder of what belongs to a recipe and variant as a whole."""
    return store.bench(recipe.name + ("" if recipe.variant == "default" else f"@{recipe.variant}"))
