# SPDX-License-Identifier: Apache-2.0
"""One HTML page that needs nothing but itself: what got through, what Eve made of it, and how it was measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semlink._errors import SemlinkError
from semlink._files import write_text
from semlink.bench.figures import Curve
from semlink.bench.measures import TITLES
from semlink.bench.record import Measurement
from semlink.report.facts import attack_facts, link_facts
from semlink.report.figures import curves_svg, strip_uri
from semlink.report.gather import Attacked, Run, gather
from semlink.report.summary import sentences
from semlink.report.tables import attack_rows, numbers, snr_rows, table
from semlink.report.template import render


@dataclass
class Grid:
    """Originals of one data set, and what each attack drew of them; strips are data URIs."""

    data: str
    originals: Tensor
    strip: str
    rows: list[dict[str, Any]] = field(default_factory=list)


def write_page(runs: Sequence[Path], out: Path, command: str) -> Path:
    """Write the report of run folders to ``out``, a file that loads nothing from anywhere.

    Args:
        runs: run folders, in the order of the page.
        out: the HTML file.
        command: what the reader types to make this page again.

    Returns:
        ``out``.

    Raises:
        SemlinkError: there is no run folder; one is no finished run; a record or picture file is damaged.
    """
    from markupsafe import Markup

    found = gather(runs)
    attacks = [(run, attack) for run in found for attack in run.attacks]
    grids, unseen = _grids(attacks)
    page = render(
        "page.html.j2",
        run_names=[run.label for run in found],
        takeaways=sentences(found),
        missing=[part for run in found for part in run.missing()],
        curves=[(title, Markup(svg), note) for title, svg, note in _curves(found)],  # names in an SVG are escaped
        grids=grids,
        unseen=unseen,
        attacks=table(attack_rows(attacks)),
        has_lpips=any("lpips" in attack.record.results for _, attack in attacks),
        utilities=[(TITLES.get(m, m), table(snr_rows(found, m))) for m in _metrics(found)],
        facts=link_facts(found),
        attack_facts=attack_facts([attack for _, attack in attacks]),
        attack_names=[attack.label for _, attack in attacks],
        draws=sorted({run.evaluation.draws for run in found if run.evaluation} | {a.record.draws for _, a in attacks}),
        seeds=len({run.recipe.seed for run in found}),
        command=command,
    )
    write_text(out, page)
    return out


def _metrics(runs: Iterable[Run]) -> list[str]:
    """Return every metric of utility that was measured, each once, in order of appearance."""
    points = (point for run in runs if run.evaluation for point in run.evaluation.points)
    return list(dict.fromkeys(name for point in points for name, m in point.items() if isinstance(m, Measurement)))


def _curves(runs: Sequence[Run]) -> Iterable[tuple[str, str, str]]:
    """Yield title, SVG and a note on guessing for each metric that is some run's utility."""
    for metric in dict.fromkeys(run.metric for run in runs):
        shown = [run for run in runs if run.metric == metric and run.curve(metric)]
        if not shown:
            continue
        classes = {run.train.data.get("classes") if run.recipe.task == "classify" else None for run in shown}
        number = classes.pop() if len(classes) == 1 else None
        chance = 100 / number if isinstance(number, int) and number > 1 else None
        curves = [Curve(run.label, run.curve(metric), run.recipe.snr_db) for run in shown]
        note = f"Guessing among {number} classes would give {chance:.3g} %." if chance else ""
        yield TITLES.get(metric, metric), curves_svg(curves, TITLES.get(metric, metric), chance), note


def _grids(attacks: Iterable[tuple[Run, Attacked]]) -> tuple[list[Grid], list[str]]:
    """Return grids of pictures, and a sentence for each attack that none may or can be shown of."""
    grids: list[Grid] = []
    unseen = []
    for run, attack in attacks:
        if "celeba" in run.recipe.data.lower():
            unseen.append(f"{attack.label}: the terms of {run.recipe.data} forbid showing images; numbers only.")
            continue
        if "psnr_db" not in attack.record.results:
            continue  # it answers questions, and draws nothing
        if not attack.images.exists():
            again = f"remove {attack.images.with_suffix('.json').name} and run semlink attack {run.command_name}"
            unseen.append(f"{attack.label}: its pictures are missing; to make them, {again}.")
            continue
        originals, drawn = _pictures(attack.images)
        grid = next((g for g in grids if g.data == run.recipe.data and torch.equal(g.originals, originals)), None)
        if grid is None:
            grids.append(grid := Grid(run.recipe.data, originals, strip_uri(originals)))
        psnr = attack.record.results.get("psnr_db")
        grid.rows.append({"label": attack.label, "strip": strip_uri(drawn), "said": attack.record, "psnr": psnr})
    for grid in grids:
        scores = iter(numbers([row["psnr"] for row in grid.rows if row["psnr"]]))
        grid.rows = [row | {"psnr": next(scores) if row["psnr"] else None} for row in grid.rows]
    return grids, unseen


def _pictures(path: Path) -> tuple[Tensor, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        originals, drawn = tensors["originals"], tensors["drawn"]
    except (SafetensorError, KeyError):
        raise SemlinkError(f"{path} is damaged; remove it and its .json, and attack again") from None
    fits = originals.shape == drawn.shape and originals.ndim == 4 and originals.shape[1] in (1, 3) and originals.numel()
    if not fits:
        shapes = f"{tuple(originals.shape)} and {tuple(drawn.shape)}"
        raise SemlinkError(f"{path} holds images of shape {shapes}; (n, C, H, W) twice is expected; attack again")
    return originals, drawn
