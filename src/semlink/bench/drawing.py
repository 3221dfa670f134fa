# SPDX-License-Identifier: Apache-2.0
"""The figures of a recipe: the step that draws one from the records of the links and attacks that it shows.

    evaluate, judge of every link ──> rows ──> curves ──> figure.png, figure.pdf

What is wanted is a ``spec`` of plain values: ``name`` and ``title`` of the figure, its ``metric``, ``links`` as pairs
of name and the SNR in dB that it was trained at, if it was at one, ``attacks``, ``own`` (whether the links themselves
are shown too) and ``of``, which says of each input by its role of which step, link, attack and seed it is. A figure
``over`` an option of schemes also has ``at_db``, its SNR, and ``series``, what each link is one of and its value of it.
Over another metric of the links, a figure has a point for each link: of its attacks the strongest at ``at_db``.
"""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from semlink._errors import SemlinkError
from semlink.bench import record
from semlink.bench.figures import Curve, curves_file
from semlink.bench.measures import AXES, TITLES
from semlink.bench.record import Measurement
from semlink.bench.rows import BASELINES, Measured, Row, rows

FILES = ("figure.png", "figure.pdf")


def read_rows(spec: dict[str, Any], inputs: dict[str, Path]) -> list[Row]:
    """Return the rows that a figure shows, from the cells that it is drawn of.

    Raises:
        SemlinkError: a record is damaged.
    """
    measured = [
        Measured(link, attack, seed, record.of_step(inputs[role], step))
        for role, (step, link, attack, seed) in spec["of"].items()
    ]
    metrics = [spec["metric"], *([spec["over"]] if _is_against(spec) else [])]
    return list(rows(measured, [link for link, _ in spec["links"]], spec["attacks"], metrics))


def curves(spec: dict[str, Any], found: Iterable[Row]) -> list[Curve]:
    """Return the curves of a figure, in the order of ``found``."""
    if "series" in spec:
        return _over_option(spec, found)
    if _is_against(spec):
        return _over_metric(spec, list(found))
    designs, drawn = dict(spec["links"]), dict[str, Curve]()
    for row in _shown(spec, found):
        if row.snr_db is not None:
            label = row.name + " (not converged)" * (row.converged is False)
            trained = designs[row.link]  # None of a network, whose attackers train over its range too
            if row.attacked and trained is not None:
                trained = row.trained_snr_db
            drawn.setdefault(row.name, Curve(label, {}, trained)).points[row.snr_db] = row.shown
    return list(drawn.values())


def _over_option(spec: dict[str, Any], found: Iterable[Row]) -> list[Curve]:
    """Return a curve for each series of links, over their option, at the figure's SNR."""
    drawn: dict[str, Curve] = {}
    for row in _shown(spec, found):
        if row.snr_db == spec["at_db"] and row.attack is None:
            label, value = spec["series"][row.link]
            drawn.setdefault(label, Curve(label, {}, None)).points[value] = row.shown
    return list(drawn.values())


def _is_against(spec: dict[str, Any]) -> bool:
    """Say whether a figure shows one metric over another."""
    return "over" in spec and "series" not in spec


def _over_metric(spec: dict[str, Any], found: Sequence[Row]) -> list[Curve]:
    """Return a point for each link: what it reaches itself, and what the strongest of its attacks does."""
    drawn = []
    for link, _ in spec["links"]:
        here = [row for row in found if row.link == link and row.snr_db == spec["at_db"]]
        reached = [row.shown for row in here if row.attack is None and row.metric == spec["over"]]
        attacked = [row for row in here if row.attack in spec["attacks"] and row.metric == spec["metric"]]
        if reached and attacked:
            strongest = max(attacked, key=lambda row: row.shown.mean)
            weak = " (not converged)" * any(row.converged is False for row in attacked)
            at = reached[0].mean
            drawn.append(Curve(f"{link}: {strongest.attack}{weak}", {at: strongest.shown}, None, {at: reached[0]}))
    return drawn


def by_equation_8(spec: dict[str, Any]) -> dict[str, Any] | None:
    """Return the figure beside one of SSIM that shows SSIM over the whole image, as paper B has it; None of others."""
    base, dot, part = spec["metric"].partition(".")
    if base != "ssim":
        return None
    named = {"name": f"{spec['name']} by equation 8", "title": f"{spec['title']}: SSIM by equation 8 of paper B"}
    return spec | named | {"metric": f"ssim_global{dot}{part}"}


def draw(path: Path, spec: dict[str, Any], found: Sequence[Row], remark: str = "") -> None:
    """Draw a figure to ``path``, whose suffix says the format, with ``remark`` below its title.

    Raises:
        SemlinkError: there is nothing to draw.
    """
    shown = _shown(spec, found)
    heard = [row for row in shown if row.snr_db is not None]
    if not heard:
        held = ", ".join(sorted({row.metric for row in found})) or "none"
        raise SemlinkError(
            f"figure '{spec['name']}' wants '{spec['metric']}', which nothing in it has; there is: {held}"
        )
    of = " and ".join(sorted({"Eve" if row.attacked else "Bob" for row in heard}))
    said = f"95 % intervals: {methods([row.shown for row in heard])}"
    note = textwrap.fill(said.replace(" = ", "\u00a0=\u00a0"), 76).replace("\u00a0", " ")  # no line breaks there
    curves_file(
        path,
        curves(spec, found),
        title=textwrap.fill(spec["title"], 56),
        note="\n".join(filter(None, (remark, note))),
        xlabel=_axis(spec) if "over" in spec else f"SNR Es/N0 of {of} (dB)",
        ylabel=title(spec["metric"]) + (", strongest attack" if _is_against(spec) else ""),
        levels={label: row.shown.mean for label, row in baselines(shown).items()},
    )


def _axis(spec: dict[str, Any]) -> str:
    name = f"{title(spec['over'])} of the link" if _is_against(spec) else AXES.get(spec["over"], spec["over"])
    return f"{name}, at {spec['at_db']:g} dB"


def baselines(found: Iterable[Row]) -> dict[str, Row]:
    """Return what is known without listening, by name; once for links that send the same images."""
    kept: dict[str, Row] = {}
    for row in found:
        if row.attack in BASELINES:
            name = called(row.attack.replace("_", " "), row.metric)
            same = name not in kept or kept[name].shown == row.shown
            kept[name if same else f"{name}, {row.link}"] = row
    return kept


def methods(numbers: Iterable[Measurement]) -> str:
    """Return how the intervals of ``numbers`` were made."""
    return ", ".join(dict.fromkeys(f"{each.method} (n = {each.n})" for each in numbers))


def title(metric: str) -> str:
    """Return what a metric is called, with its unit."""
    base, _, part = metric.partition(".")
    return called(TITLES.get(base, base), metric) if part else TITLES.get(base, base)


def called(name: str, metric: str) -> str:
    """Return ``name`` with the part of a metric that is one of several, as an attribute, or a user by number."""
    _, _, part = metric.partition(".")
    return f"{name}, user {part}" if part.isdigit() else f"{name}: {part}" if part else name


def _shown(spec: dict[str, Any], found: Iterable[Row]) -> list[Row]:
    links, attacks = [name for name, _ in spec["links"]], (*spec["attacks"], *BASELINES, *[None] * spec["own"])
    return [row for row in found if row.metric == spec["metric"] and row.link in links and row.attack in attacks]
