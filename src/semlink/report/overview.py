# SPDX-License-Identifier: Apache-2.0
"""All landed records as one page in Markdown: of each bench figures, the tables behind them, and what is missing."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from semlink.bench import record
from semlink.bench.results import BenchRecord
from semlink.report.bench import costs_of, figures_in, numbers_of, origin, remarks

_HEAD = """# Results

Made by `semlink results --out docs/results.md` from the records in [results](../results). Of each bench the tables
behind its figures are shown, or that of its first metric; `semlink bench show NAME`, where it was run, and `semlink
report FOLDER`, from its record, show the others, the differences and their corrections. [claims.md](claims.md) holds
what the two papers claim to these numbers.

Intervals are of 95 %: over test images, or over training seeds (Student's t) where a row says how many. An attack that
has not converged, or that draws worse than the mean image, supports no claim that a defence survives. SSIM is that of
Wang et al. (2004), in windows of 11 x 11 pixels; SSIM over the whole image is equation (8) of paper B.
"""


def markdown(folder: Path, page: Path) -> str:
    """Return the page ``page`` of the records in ``folder`` and below; figures are linked to from where it lies.

    Raises:
        SemlinkError: there is no such folder or no record in it, or one is damaged.
    """
    from semlink.report import claims

    claims.records(folder)  # which says what is wrong
    found = [(path.parent, record.read(path, BenchRecord)) for path in sorted(folder.rglob("record.json"))]
    titles = _titles([each for _, each in found])
    contents = [f"- [{title}](#{_anchor(each)})" for title, (_, each) in zip(titles, found, strict=True)]
    sections = [_section(title, *each, page.parent) for title, each in zip(titles, found, strict=True)]
    return "\n".join([_HEAD, *contents, *sections]) + "\n"


def _titles(found: Sequence[BenchRecord]) -> list[str]:
    """Return the titles of benches; those that share one are told apart by their number of users, or by variant."""
    titles = [each.title for each in found]
    return [_plain(each.title if titles.count(each.title) == 1 else f"{each.title}, {_apart(each)}") for each in found]


def _apart(found: BenchRecord) -> str:
    users = {link["options"].get("users") for link in found.recipe["links"].values()}
    return f"{users.pop()} users" if len(users) == 1 and None not in users else f"variant {found.variant}"


def _section(title: str, where: Path, found: BenchRecord, base: Path) -> str:
    variant = "" if found.variant == "default" else f" --variant {found.variant}"
    here = Path(os.path.relpath(where, base)).as_posix()
    _, *made = origin(found).split("; ")
    lines = ["", f'<a id="{_anchor(found)}"></a>', "", f"## {title}", ""]
    lines += [f"`semlink bench {found.name}{variant}` · [record]({here}/record.json) · {'; '.join(made)}"]
    for path, title in figures_in(where, found):
        lines += ["", f"![{title}]({here}/{path.name})"]
    for table in _tables(found):
        lines += ["", *_piped(table)]
    lines += ["", *(f"- {each.strip()}" for each in remarks(found) if not each.startswith("of an image no attack"))]
    return "\n".join(lines)


def _tables(found: BenchRecord) -> list[list[list[str]]]:
    """Return the tables of the metrics that figures show, or of the recipe's first one."""
    if found.recipe.get("costs"):
        return [costs_of(found)]
    drawn = {each["metric"].partition(".")[0] for each in found.recipe["figures"].values()}
    drawn = drawn or {found.recipe["evaluation"]["metrics"][0].partition(".")[0]}
    drawn |= {"ssim_global"} if "ssim" in drawn else set()  # two measures of one name go together
    return [table for rows, table in numbers_of(found) if rows[0].metric.partition(".")[0] in drawn]


def _piped(table: Sequence[Sequence[str]]) -> list[str]:
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(re.sub(r" +", " ", cell.strip()).replace("|", r"\|") for cell in row) + " |" for row in lines
    ]


def _plain(title: str) -> str:
    return re.sub(r"([\\\[\]*_`<>])", r"\\\1", title)


def _anchor(found: BenchRecord) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{found.name} {found.variant}".lower()).removesuffix("-default")
