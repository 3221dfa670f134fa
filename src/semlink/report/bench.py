# SPDX-License-Identifier: Apache-2.0
"""A bench as text for the terminal."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from semlink.bench import pictures
from semlink.bench.board import duration
from semlink.bench.compare import Changed, Compared, Comparison
from semlink.bench.drawing import baselines, by_equation_8, called, methods, title
from semlink.bench.estimate import Cost
from semlink.bench.graph import Graph
from semlink.bench.record import Measurement
from semlink.bench.results import BenchRecord, Difference, gap
from semlink.bench.rows import BASELINES, CONSTANT, Row
from semlink.bench.store import Store
from semlink.report.text import columns, decimals, intervals

SIGNIFICANT = 0.05
REAL_BITS = 32  # of a number that is fed back, if it is sent as receivers hold it


def shown(found: BenchRecord) -> str:
    """Return a bench's tables, with the differences within each, and what is missing."""
    lines = [found.title, origin(found), ""]
    for table in tables(found):
        lines += [*columns(table), ""]
    return "\n".join([*lines, *legend(found), *remarks(found)])


def tables(found: BenchRecord) -> list[list[list[str]]]:
    """Return a bench's tables as rows of cells, the first of each its head: of links, then of attacks, by metric."""
    numbers = [table + _differences(found, rows) for rows, table in numbers_of(found)]
    return numbers + ([costs_of(found)] if found.costs else [])


def numbers_of(found: BenchRecord) -> list[tuple[list[Row], list[list[str]]]]:
    """Return, for each metric of links and then of attacks, its rows and its table without differences."""
    held: dict[tuple[bool, str], list[Row]] = {}
    for row in found.rows:
        held.setdefault((row.attacked, row.metric.partition(".")[0]), []).append(row)
    order = [metric.partition(".")[0] for metric in found.recipe["evaluation"]["metrics"]]
    keys = sorted(held, key=lambda key: (key[0], order.index(key[1])))
    return [(held[key], _table(found, held[key])) for key in keys]


def planned(graph: Graph, store: Store, costs: dict[str, Cost], workers: int) -> str:
    """Return what a run would do, how long it would take and how much disk it would need."""
    todo = [cell for cell in graph.cells if store.state(cell.name) != "done"]
    rows = [["step", "cells", "done", "to do", "time each", "time", "disk"]]
    for step in dict.fromkeys(cell.step for cell in graph.cells):
        every = [cell for cell in graph.cells if cell.step == step]
        left = [cell for cell in every if cell in todo]
        seconds = [costs[cell.name].seconds for cell in left]
        each = duration(sum(seconds) / len(left)) if left else "–"
        disk = sum(costs[cell.name].disk_bytes for cell in left)
        counts = [len(every), len(every) - len(left), len(left)]
        rows.append([step, *map(str, counts), each, duration(sum(seconds)) if left else "–", _size(disk)])
    begun = [cell.label for cell in todo if store.state(cell.name) == "begun"]
    failed = [f"{cell.label} ({store.failure(cell.name)})" for cell in todo if store.state(cell.name) == "failed"]
    seconds = sum(costs[cell.name].seconds for cell in todo)
    longest = max([_longest(cell.name, graph, costs, todo) for cell in todo], default=0.0)
    total = max(seconds / workers, longest)
    lines = [f"{graph.recipe.title} ({graph.recipe.name}, variant {graph.recipe.variant})", *columns(rows)]
    if todo:
        disk = _size(sum(costs[cell.name].disk_bytes for cell in todo))
        lines.append(f"in all about {duration(total)} with {workers} at a time, {disk} of disk in {store.root}")
    else:
        lines.append("nothing is left to do")
    lines += [f"begun, and goes on from its checkpoint: {label}" for label in begun]
    lines += [f"failed before, and is tried again: {label}" for label in failed]
    return "\n".join(lines)


def compared(found: Comparison, first: str, second: str) -> str:
    """Return what changed between two benches, and which numbers differ significantly."""
    lines = [f"first:  {first}", f"second: {second}", ""]
    same = "nothing changed: the same recipe, data, code, libraries and machine"
    lines += ["changed:", *(f"  {_change(each)}" for each in found.changed)] if found.changed else [same]
    differing = [each for each in found.numbers if each.p_value < 1]
    lines += ["", *_comparison(differing)] if differing else [""]
    total, equal = len(found.numbers), len(found.numbers) - len(differing)
    count = sum(each.p_holm < SIGNIFICANT for each in differing)
    lines.append(f"of {total} numbers of both {equal} are equal, {count} differ significantly")
    if differing:
        lines += [_starred(total, "differences"), "[low, high]: 95 % intervals"]
    for name, rows in (("first", found.only_first), ("second", found.only_second)):
        alone: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            alone.setdefault((title(row.metric), _snr(row.snr_db)), []).append(row.name)
        lines += [f"only in the {name}: {title} at {snr} of {'; '.join(of)}" for (title, snr), of in alone.items()]
    return "\n".join(lines)


def _table(found: BenchRecord, rows: list[Row]) -> list[list[str]]:
    """Return the cells of a metric of links, or of attacks: numbers, baselines, and differences from the first row."""
    grid = sorted({row.snr_db for row in rows if row.snr_db is not None})
    texts = dict(zip([row.key for row in rows], intervals([row.shown for row in rows]), strict=True))
    hears = "Eve" if rows[0].attacked else "Bob"
    lines = [[f"{title(rows[0].metric.partition('.')[0])}, {hears} at", *map(_snr, grid), "n"]]
    named: dict[str, dict[float, Row]] = {}
    for row in rows:
        if row.snr_db is not None:
            named.setdefault(called(row.name, row.metric), {})[row.snr_db] = row
    for name, at in named.items():
        cells = [texts[at[snr].key] if snr in at else "missing" for snr in grid]
        lines.append([name, *cells, _units(found, next(iter(at.values())))])
    lines += _gaps(rows, grid)
    for name, row in baselines(rows).items():
        lines.append([name, texts[row.key], *[""] * (len(grid) - 1), _units(found, row)])
    return lines


def _gaps(rows: list[Row], grid: list[float]) -> list[list[str]]:
    """Return a line for each link or attack of several users: how far the best served is ahead of the worst."""
    held: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        if row.snr_db is not None and row.metric.partition(".")[2].isdigit():
            held.setdefault(row.name, {}).setdefault(row.snr_db, []).append(row)
    places, lines = decimals([row.shown for row in rows]), []
    for name, at in held.items():
        found = {snr: gap(users) for snr, users in at.items() if len(users) > 1}
        over = [each for _, each in found.values() if each]
        cells = intervals(over) if len(over) == len(found) else [f"{mean:.{places}f}" for mean, _ in found.values()]
        said = dict(zip(found, cells, strict=True))
        count = f"{over[0].n} seeds" if len(over) == len(found) and over else "one training"
        lines += (
            [[f"{name}, best less worst user", *(said.get(snr, "missing") for snr in grid), count]] if found else []
        )
    return lines


def costs_of(found: BenchRecord) -> list[list[str]]:
    """Return the cells of what each link takes; of a column that no link fills there is none."""

    def counts(name: str, of: str) -> list[str]:
        values = [getattr(each, name).get(of) for each in found.costs]
        return ["" if value is None else f"{value:,}" for value in values]

    def milliseconds(name: str) -> list[str]:
        values = [getattr(each, name) for each in found.costs]
        return ["" if value is None else f"{1e3 * value:.2f}" for value in values]

    def spent(of: str, times: int = 1) -> list[str]:
        return ["" if each is None else f"{times * getattr(each, of):,}" for each in overheads]

    ends, overheads = ("transmitter", "receiver"), [found.overhead(each.link) for each in found.costs]
    columns = {
        "parameters": counts("parameters", "total"),
        **{f"of the {end}": counts("held", end) for end in ends},
        "in training alone": counts("parameters", "adversary"),
        **{f"multiply-adds, {end}": counts("multiply_adds", end) for end in (*ends, "adversary")},
        "channel uses": [str(each.channel_uses) for each in found.costs],
        "pilot uses": spent("pilot_uses"),
        "reals fed back": spent("feedback_reals"),
        "bits fed back": spent("feedback_reals", REAL_BITS),
        "ms to transmit": milliseconds("transmit_seconds"),
        "ms to receive": milliseconds("receive_seconds"),
        "s an epoch": [f"{each.epoch_seconds:.1f}" for each in found.costs],
        "MB at most": [
            "" if each.training_bytes is None else f"{each.training_bytes / 1e6:.0f}" for each in found.costs
        ],
        "on": [each.machine for each in found.costs],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    return [["Cost", *columns], *([each.link, *row] for each, *row in zip(found.costs, *columns.values(), strict=True))]


def _differences(found: BenchRecord, rows: list[Row]) -> list[list[str]]:
    """Return the differences between rows of a table, for each pair over seeds if there are such, else over images."""
    grid = sorted({row.snr_db for row in rows if row.snr_db is not None})
    names, metrics = {row.name for row in rows}, {row.metric for row in rows}
    held = _preferred(d for d in found.differences if d.metric in metrics and {d.first, d.second} <= names)
    if not held:
        return []
    texts = dict(zip(held, intervals([each.difference for each in held.values()]), strict=True))
    lines = []
    for reference in dict.fromkeys(first for first, _, _ in held):
        lines.append([f"minus {reference}:", *[""] * (len(grid) + 1)])
        for name in dict.fromkeys(name for first, name, _ in held if first == reference):
            keys = [(reference, name, snr) for snr in grid]
            cells = [texts[key] + _star(held[key].p_holm) if key in held else "" for key in keys]
            one = next(held[key] for key in keys if key in held)
            lines.append([f"  {name}", *cells, _pairing(one.over, one.difference)])
    return lines


def _preferred(differences: Iterable[Difference]) -> dict[tuple[str, str, float], Difference]:
    """Return one difference for each of what is compared with what, at which SNR: over seeds rather than images."""
    found: dict[tuple[str, str, float], Difference] = {}
    for each in differences:  # those over seeds stand first
        found.setdefault((each.first, called(each.second, each.metric), each.snr_db), each)
    return found


def _comparison(numbers: list[Compared]) -> list[str]:
    """Return the table of numbers that differ, metric by metric."""
    lines = [["", "SNR", "first", "second", "second - first", "p (Holm)", "n"]]
    for metric in dict.fromkeys(each.metric for each in numbers):
        mine = [each for each in numbers if each.metric == metric]
        places = decimals([each.difference for each in mine])
        lines.append([title(metric), *[""] * 6])
        for each, text in zip(mine, intervals([each.difference for each in mine]), strict=True):
            sides = [f"{side.mean:.{places}f}" for side in (each.first, each.second)]
            p_value = "< 0.001" if each.p_holm < 0.001 else f"{each.p_holm:.3f}"
            pairing = _pairing(each.over, each.difference)
            lines.append([f"  {each.name}", _snr(each.snr_db), *sides, text + _star(each.p_holm), p_value, pairing])
    return columns(lines)


def _units(found: BenchRecord, row: Row) -> str:
    """Return what the interval of a row counts, where seeds of the recipe are missing, and if an attack is too weak."""
    wanted = found.recipe["links"][row.link]["seeds"]
    units = f"{row.shown.n} seeds" if row.over_seeds else f"{row.shown.n} images"
    if row.attack not in BASELINES and len(row.seeds) < len(wanted):
        units += f" (seed{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))} of {len(wanted)})"
    whole = (row.link, "mean_image", row.metric, None)
    most = next((each.shown.n for each in found.rows if each.key == whole), 0)
    if row.mean_image and (own := next(iter(row.mean_image.values()))).n < most:
        units += f", where the mean image scores {own.mean:.2f}"
    poor = (row.link, row.attack) in found.poor()
    return units + ", not converged" * (row.converged is False) + ", worse than the mean image" * poor


def _pairing(over: str, difference: Measurement) -> str:
    """Return what a difference is over."""
    if over == "intervals":
        return "unpaired"
    return f"{difference.n} {over}, {'paired' if difference.method.startswith('paired') else 'unpaired'}"


def legend(found: BenchRecord) -> list[str]:
    """Return what intervals and stars mean, and the counts behind them."""
    if not found.rows:
        return []
    lines = [
        f"[low, high]: 95 % intervals; {methods([row.shown for row in found.rows])}",
        "one over seeds speaks of the scheme, one over images only of the link that was trained",
    ]
    counts = Counter(each.over for each in found.differences)
    used = sorted({each.over for each in _preferred(found.differences).values()})
    lines += [_starred(counts[over], f"differences over {over}") for over in used]
    for data, positives in found.positives.items():
        shown = {row.metric.partition(".")[2]: row.shown.n for row in found.rows if row.attack == CONSTANT}
        counted = ", ".join(f"{name} {positives[name]:,} of {n:,}" for name, n in shown.items() if name in positives)
        lines += [f"test images of {data} with the attribute: {counted}"] if counted else []
    return lines


def _ceilings(found: BenchRecord) -> list[str]:
    """Return what no attack can exceed where bits were measured: for each link, threats alike named once."""
    if not any(
        metric.partition(".")[0] in ("infonce_bits", "label_bits") for metric in found.recipe["evaluation"]["metrics"]
    ):
        return []
    said: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for link in dict.fromkeys(each.link for each in found.ceilings):
        for attack in dict.fromkeys(each.attack for each in found.ceilings if each.link == link):
            mine = [each for each in found.ceilings if (each.link, each.attack) == (link, attack)]
            bounds = {_snr(each.snr_db): f"{each.bits['least']:.1f} bit at {_snr(each.snr_db)}" for each in mine}
            said.setdefault((link, tuple(bounds.values())), []).append(attack)
    return [
        f"of an image no attack learns more: {link} ({', '.join(of)}): {', '.join(bounds)}"
        for (link, bounds), of in said.items()
    ]


def remarks(found: BenchRecord) -> list[str]:
    """Return ceilings, what weakens the numbers, and what is missing."""
    lines = _ceilings(found)
    if found.poor() or any(row.converged is False for row in found.rows):
        lines.append(
            "an attack that is not converged, or draws worse than the mean image, supports no claim that a defence "
            "survives"
        )
    lines += _trained(found)
    if found.recipe.get("costs") and any(found.overhead(each.link) for each in found.costs):
        lines += [
            "multiply-adds and milliseconds are those of networks and of the receivers' linear equations: what a "
            "transmitter takes to design precoders and filters for each channel is not in them",
            "pilots, and reals that are fed back, are for every channel that is drawn: K Nt orthogonal pilots where "
            f"receivers are told the channel, and all of H, {REAL_BITS} bits a real as it is held, where transmitters "
            "are; a receiver that is told all of H, of every scheme but dispersion, measures its own row alone; how it "
            "comes by the rest is not counted",
        ]
    lines += [f"mixed: {sentence}" for sentence in found.mixed()]
    if taken := sum(bool(cell.declared) for cell in found.cells):
        cells = "1 cell was" if taken == 1 else f"{taken} cells were"
        lines.append(f"{cells} made by other code, proven by a trial to give the same bits")
    missing = found.missing
    lines.append(f"missing: {len(missing)} of {len(found.cells)} cells" if missing else "no cell is missing")
    seeds: dict[str, list[str]] = {}
    for cell in missing:
        said = {"new": "not begun", "failed": f"failed ({cell.error})"}.get(cell.state, cell.state)
        of = seeds.setdefault(f"{cell.label.removesuffix(f', seed {cell.seed}')}: {said}", [])
        of += [] if cell.seed is None else [str(cell.seed)]
    return lines + [f"  {what}{_seeds(of)}" for what, of in seeds.items()]


def _trained(found: BenchRecord) -> list[str]:
    """Return at which SNR attacks were trained, if they are judged at several."""
    heard = {row.attack for row in found.rows if row.attack in found.recipe.get("attacks", {})}
    if len({row.snr_db for row in found.rows if row.attack in heard}) < 2:
        return []
    ranging = {attack for attack in heard if found.over_a_range(attack)}
    said = {
        "an attack is trained at one SNR; at another she could do better, trained for it": heard - ranging,
        "an attack by another receiver is trained over all SNRs that the network was trained over": ranging,
    }
    return [sentence for sentence, attacks in said.items() if attacks]


def _seeds(seeds: list[str]) -> str:
    return f", seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else ""


def figures_in(folder: Path, found: BenchRecord) -> list[tuple[Path, str]]:
    """Return the figures of a bench in ``folder``, each with its title: the recipe's, those by equation 8, the rest."""
    figures = found.recipe.get("figures", {})
    specs = [said | {"name": name, "title": said.get("title") or name} for name, said in figures.items()]
    others = [{"name": Path(pictures.FILE).stem, "title": "The first test images and what became of them"}]
    named = [*specs, *filter(None, map(by_equation_8, specs)), *others]
    titles = {spec["name"].replace(" ", "-"): spec["title"] for spec in named}
    paths = sorted(folder.glob("*.png"), key=lambda path: ([*titles, path.stem].index(path.stem), path.stem))
    return [(path, titles.get(path.stem, path.stem.replace("-", " "))) for path in paths]


def origin(found: BenchRecord) -> str:
    """Return the bench's name, variant and recipe, and the processors that made it."""
    machines = [made.machine["processor" if made.machine["device"] == "cpu" else "device"] for made in found.made]
    made = dict.fromkeys(f"{name}, {made.precision}" for name, made in zip(machines, found.made, strict=True))
    said = "; ".join(made) or "nothing made yet"
    return f"{found.name}, variant {found.variant}, recipe {found.recipe_sha256[:12]}; {said}"


def _change(each: Changed) -> str:
    where = f" in {', '.join(each.of)}" if each.of else ""
    if each.what == "code":
        return f"code{where or ' in every step'}"
    if isinstance(each.first or each.second, dict) and None in (each.first, each.second):
        return f"{each.what}: only in the {'first' if each.second is None else 'second'}"
    return f"{each.what}: {_short(each.first)} -> {_short(each.second)}{where}"


def _longest(name: str, graph: Graph, costs: dict[str, Cost], todo: list) -> float:
    """Return the seconds of a cell and of those before it that must be done one after the other."""
    cell = next(cell for cell in graph.cells if cell.name == name)
    own = costs[name].seconds if cell in todo else 0.0
    return own + max((_longest(each, graph, costs, todo) for each in cell.inputs.values()), default=0.0)


def _star(p_holm: float) -> str:
    return " *" if p_holm < SIGNIFICANT else ""


def _starred(count: int, what: str) -> str:
    return f"* p < {SIGNIFICANT} after Holm's correction for {count} {what}"


def _snr(snr_db: float | None) -> str:
    return "any SNR" if snr_db is None else f"{snr_db:g} dB"


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) < 60 else f"{text[: 56 if ' ' in text else 12]}…"


def _size(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
