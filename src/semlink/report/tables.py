# SPDX-License-Identifier: Apache-2.0
"""Tables of measurements: numbers as text, decimal points in line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semlink.bench.measures import TITLES
from semlink.bench.record import Measurement
from semlink.report.gather import Attacked, Run

_DIGITS = {"%": 2, "dB": 2}
_BASELINES = {"mean_image": "mean image, always the same", "class_mean": "class mean, knowing only the label"}


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, its numbers by column, and what else is said of it."""

    label: str
    values: dict[str, Measurement]
    n: str = ""
    verdict: str = ""
    marked: bool = False


def attack_rows(attacks: Sequence[tuple[Run, Attacked]]) -> list[Row]:
    """Return a row an attack, and below them the baselines, each once."""
    rows = []
    for _, attack in attacks:
        said, fell = attack.record, attack.record.last_fifth_fall
        fall = "too short to tell" if fell is None else f"loss still fell {100 * fell:.1f} % at the end"
        verdict = "yes" if said.converged else f"no: {fall}"
        verdict += "; draws worse than the mean image" * said.poor
        weak = said.poor or not said.converged
        verdict += "; supports no claim that a defence survives" * weak
        rows.append(Row(attack.label, said.results, _count(said.results), verdict, weak))
    baselines = [(run.recipe.data, name, b) for run, a in attacks for name, b in a.record.baselines.items()]
    several = len({data for data, _, _ in baselines}) > 1
    kept: list[tuple[str, str, dict[str, Measurement]]] = []
    for data, name, values in sorted(baselines, key=lambda each: -len(each[2])):  # stable; the fullest first
        if not any((data, name) == other[:2] and values.items() <= other[2].items() for other in kept):
            kept.append((data, name, values))
    for data, name, values in kept:
        label = _BASELINES.get(name, name.replace("_", " ")) + (f" ({data})" if several else "")
        rows.append(Row(label, values, _count(values), "baseline"))
    return rows


def snr_rows(runs: Sequence[Run], metric: str) -> list[Row]:
    """Return a row an SNR, with a column a run that ``metric`` was measured of."""
    curves = {run.label: run.curve(metric) for run in runs if run.curve(metric)}
    grid = sorted({snr for curve in curves.values() for snr in curve})
    return [Row(f"{snr:g} dB", {label: c[snr] for label, c in curves.items() if snr in c}) for snr in grid]


def _count(values: dict[str, Measurement]) -> str:
    counts = sorted({value.n for value in values.values()})
    return " to ".join(f"{n:,}" for n in ([counts[0], counts[-1]] if len(counts) > 1 else counts))


def table(rows: list[Row]) -> dict[str, Any]:
    """Return column names, and each row with its numbers padded to the width of their column."""
    order = {name: i for i, name in enumerate(TITLES)}
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    columns.sort(key=lambda name: order.get(name, len(order)))  # stable: other names stay as they came
    cells = {name: iter(numbers([row.values[name] for row in rows if name in row.values])) for name in columns}
    body = [(row, [next(cells[name]) if name in row.values else None for name in columns]) for row in rows]
    return {"columns": [TITLES.get(name, name) for name in columns], "rows": body}


def numbers(column: Sequence[Measurement]) -> list[tuple[str, str, str, str]]:
    """Return padding, mean, padding and "[low, high]" of each; padding puts the decimal points of a column in line."""
    texts = [[f"{v:z.{_DIGITS.get(m.unit, 3)}f}".replace("-", "−") for v in (m.mean, m.low, m.high)] for m in column]
    widths = [max(map(len, part)) for part in zip(*texts, strict=True)]
    rows = []
    for text in texts:
        pads = ["\u2007" * (width - len(part)) for part, width in zip(text, widths, strict=True)]  # as wide as a digit
        rows.append((pads[0], text[0], pads[1], f"[{text[1]}, {pads[2]}{text[2]}]"))
    return rows
