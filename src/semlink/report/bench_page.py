# SPDX-License-Identifier: Apache-2.0
"""A bench as one HTML page that needs nothing but itself, and its tables as CSV and LaTeX for papers and scripts."""

import base64
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from semlink._errors import SemlinkError
from semlink._files import write_text
from semlink.bench import pictures, record
from semlink.bench.examples import RANKED
from semlink.bench.pictures import Pictures
from semlink.bench.results import BenchRecord
from semlink.metrics import psnr_db
from semlink.report import claims
from semlink.report.bench import figures_in, legend, origin, remarks, tables
from semlink.report.figures import strip_uri
from semlink.report.template import render

_CELL = re.compile(r"^ *(?P<mean>[^\[]+?) *(?P<range>\[.*\])(?P<star> \*)?$")


class Cell(NamedTuple):
    """A cell of a table: a number, its interval, and a star if it is significant; or a text alone."""

    text: str
    range: str = ""


def write(folder: Path, out: Path) -> list[Path]:
    """Write the page of the bench whose record and figures lie in ``folder``.

    Args:
        folder: where 'semlink bench --out' wrote, or a bench's folder in the store.
        out: the HTML file; tables go beside it, with the suffixes .csv and .tex.

    Returns:
        The three files.

    Raises:
        SemlinkError: there is no record, it is damaged, or it has no numbers yet.
    """
    found = record.read(folder / "record.json", BenchRecord)
    if not found.rows and not found.costs:
        raise SemlinkError(f"{folder} has no numbers yet; run 'semlink bench {found.name}' first")
    shown, (seen, unseen) = tables(found), _pictures(found, folder, out)
    recipe = {key: found.recipe[key] for key in ("links", "attacks", "evaluation") if found.recipe.get(key)}
    page = render(
        "bench.html.j2",
        title=found.title,
        lead=origin(found),
        figures=list(_figures(found, folder, seen)),
        pictures=[_group(group) for group in pictures.grouped(seen)],
        ranked=RANKED,
        unseen=unseen,
        tables=[_cells(table) for table in shown],
        notes=[*legend(found), *remarks(found)],
        missing=len(found.missing),
        cells=len(found.cells),
        judgements=_judgements(found),
        command=f"semlink bench {found.name}" + ("" if found.variant == "default" else f" --variant {found.variant}"),
        versions=sorted({f"Semlink {made.semlink}, torch {made.libraries.get('torch', '?')}" for made in found.made}),
        written=found.written,
        sha256=found.recipe_sha256,
        recipe=json.dumps(recipe, indent=1),
    )
    write_text(out, page)
    write_text(out.with_suffix(".csv"), as_csv(found))
    write_text(out.with_suffix(".tex"), "\n".join(as_latex(table) for table in shown))
    return [out, out.with_suffix(".csv"), out.with_suffix(".tex")]


def as_csv(found: BenchRecord) -> str:
    """Return every number of a bench, one a line."""
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    lines.writerow(["link", "attack", "metric", "snr_db", "mean", "low", "high", "unit", "n", "method", "seeds"])
    for row in found.rows:
        m, seeds = row.shown, " ".join(map(str, row.seeds))
        snr_db = "" if row.snr_db is None else f"{row.snr_db:g}"
        lines.writerow(
            [row.link, row.attack or "", row.metric, snr_db, m.mean, m.low, m.high, m.unit, m.n, m.method, seeds]
        )
    for each in found.costs:
        for name in ("parameters", "held", "multiply_adds"):
            for part, value in getattr(each, name).items():
                lines.writerow([each.link, "", f"{name}.{part}", "", value])
        for name in ("channel_uses", "epoch_seconds", "transmit_seconds", "receive_seconds", "training_bytes"):
            if (value := getattr(each, name)) is not None:
                lines.writerow([each.link, "", name, "", value])
    return buffer.getvalue()


def as_latex(table: Sequence[Sequence[str]]) -> str:
    """Return a table for the package booktabs: means with half the width of their intervals."""
    head, *rows = table
    width = len(head) - 1  # without what an interval counts, which belongs into the caption
    lines = [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_escaped, head[:width])) + r" \\", r"\midrule"]
    for row in rows:
        lines.append(" & ".join([_escaped(row[0].strip()), *map(_plus_minus, row[1:width])]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _plus_minus(cell: str) -> str:
    found = _CELL.match(cell)
    if found is None:
        return _escaped(cell)
    low, high = (float(each) for each in found["range"].strip("[]").split(","))
    places = len(found["mean"].partition(".")[2])
    star = "^{*}" if found["star"] else ""
    return rf"${found['mean']} \pm {(high - low) / 2:.{places}f}{star}$"


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _cells(table: Sequence[Sequence[str]]) -> list[list[Cell]]:
    return [[_cell(text) for text in row] for row in table]


def _cell(text: str) -> Cell:
    found = _CELL.match(text)
    if found is None:
        return Cell(text.strip())
    return Cell(found["mean"] + (found["star"] or ""), re.sub(r"(?<=[\[ ]) +|(?<=\[) ", "", found["range"]))


def _figures(found: BenchRecord, folder: Path, seen: Sequence[Pictures]) -> Iterator[tuple[str, str]]:
    """Yield the title and the picture, as a data URI, of each figure that was drawn, the recipe's first.

    That of the test images is left out of a page on which they are ``seen`` anyway.
    """
    for path, title in figures_in(folder, found):
        if seen and path.name == pictures.FILE:
            continue
        yield title, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _pictures(found: BenchRecord, folder: Path, out: Path) -> tuple[list[Pictures], str]:
    """Return what may be shown of test images on the page ``out``, and a sentence on those that may not be published.

    They are of the cells in the store, so a page made of landed results has none. Nothing that may not be published is
    put into a file that lies in a Git repository.
    """
    store = pictures.store_of(folder)
    every = pictures.gather(found, store) if store else []
    secret = " and ".join(sorted({each.data for each in every if not each.is_shareable}))
    if not secret:
        return every, ""
    places = [*out.absolute().parents, *out.resolve().parents]  # a link is replaced by the page: both count
    if any((above / ".git").exists() for above in places):
        why = f"the terms of {secret} forbid publishing images, and this page lies in a Git repository"
        return [each for each in every if each.is_shareable], f"Images of {secret} are left out: {why}."
    return every, f"The terms of {secret} forbid publishing images: keep this page to yourself."


def _group(group: Sequence[Pictures]) -> dict[str, Any]:
    """Return a table of what was made of the same images, their pictures as data URIs."""
    first = group[0]

    def image(each: Tensor, said: str, score: float | None = None) -> dict[str, str]:
        psnr = "" if score is None else f"{score:.1f}"
        return {"uri": strip_uri(each, 1), "said": said + (psnr and f", PSNR {psnr} dB"), "psnr": psnr}

    def ranked(each: Pictures, rank: str, pair: tuple[Tensor, Tensor]) -> list[dict[str, str]]:
        score = float(psnr_db(pair[1], pair[0]).mean())
        return [image(pair[0], f"sent: {rank} for {each.name}"), image(pair[1], f"{rank} of {each.name}", score)]

    return {
        "data": first.data,
        "users": first.users,
        "sent": [image(each[None], f"test image {i}, as sent") for i, each in enumerate(first.originals, 1)],
        "ranked": any(each.ranked for each in group),
        "rows": [
            {
                "name": each.name,
                "doubts": each.doubts,
                "said": each.said,
                "made": [
                    image(made[None], f"test image {i}: {each.name}", score)
                    for i, (made, score) in enumerate(zip(each.made, each.scores, strict=True), 1)
                ],
                "ranked": [ranked(each, rank, pair) for rank, pair in zip(RANKED, each.ranked, strict=False)],
            }
            for each in group
        ],
    }


def _judgements(found: BenchRecord) -> list[claims.Judgement]:
    """Return the papers' claims that rest on this bench alone."""
    resting = [each for each in claims.claims() if {test.record for test in each.tests} == {found.name}]
    return [claims.judge(each, [found]) for each in resting]
