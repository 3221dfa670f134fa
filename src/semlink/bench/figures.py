# SPDX-License-Identifier: Apache-2.0
"""Curves over SNR with their intervals, drawn by matplotlib."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semlink._files import atomic_path
from semlink.bench.record import Measurement

TEXT = "#010203"  # the colour of words and lines, so that a page can put its own in its place
COLOURS = (  # legible on white and on near-black
    "#2f7fc1",
    "#d9730d",
    "#2e9e6b",
    "#b4539c",
    "#8a7a1f",
    "#d0433e",
    "#7a6ff0",
    "#6f8290",
)
_MARKERS = ("o", "s", "D", "^", "v", ">", "p", "<")
_FILLS = ("full", "none", "left")
_DASHES = (
    "-",
    (0, (6, 2)),
    (0, (2, 2)),
    (0, (6, 2, 1, 2)),
    (0, (10, 3)),
    (0, (1, 1)),
    (0, (10, 2, 2, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
)
_SCHEMES = (  # of several users: each looks the same in every figure
    "interference-free",
    "semi-conventional",
    "csi-free",
    "irsc-csir",
    "irsc-csitr",
    "adaptive-precoding",
    "dispersion",
)


@dataclass(frozen=True)
class Curve:
    """A line of a figure: measurements by SNR in dB, and the SNR that the link or attack was trained at, if known.

    Over something that was measured itself, ``across`` has its measurements by their means.
    """

    label: str
    points: dict[float, Measurement]
    design_snr_db: float | None
    across: dict[float, Measurement] = field(default_factory=dict)


def curves_file(
    path: Path, curves: Sequence[Curve], *, title: str, note: str, xlabel: str, ylabel: str, levels: dict[str, float]
) -> None:
    """Draw measurements over SNR with their intervals to a file, atomically.

    Args:
        path: its suffix, as ``.png`` or ``.pdf``, says the format.
        curves: what is drawn.
        title: one line or several.
        note: a smaller line below the title.
        xlabel: what the SNR is of.
        ylabel: what is measured.
        levels: horizontal lines by name, for what does not depend on SNR.
    """
    with style(), atomic_path(path) as part:
        figure, axes = draw_curves(curves, ylabel)
        figure.suptitle(title, fontsize=12)
        axes.set_title(note, fontsize=9, pad=22)
        axes.set_xlabel(xlabel)
        _levels(axes, levels)
        dated = {"Software": None} if path.suffix == ".png" else {"CreationDate": None}
        figure.savefig(part, format=path.suffix[1:], dpi=200, bbox_inches="tight", metadata=dated)  # as wide as names


def style() -> Any:
    """Return the context in which Semlink's figures are drawn."""
    import matplotlib

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "semlink",
        "text.parse_math": False,  # a name with dollar signs is a name
        "font.size": 12,
        **{f"{part}.color": TEXT for part in ("text", "xtick", "ytick", "grid")},
        "axes.edgecolor": TEXT,
        "axes.labelcolor": TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    return matplotlib.rc_context(style)


def _levels(axes: Any, levels: dict[str, float]) -> None:
    """Draw horizontal lines, named at their right ends; names of lines that are close move up to stay apart."""
    for value in levels.values():
        axes.axhline(value, color=TEXT, alpha=0.45, linewidth=1)
    axes.figure.draw_without_rendering()  # gives the axes their height
    low, high = axes.get_ylim()
    line, height = 13 * (high - low) / axes.bbox.height, -math.inf
    for name, value in sorted(levels.items(), key=lambda each: each[1]):
        height = max(value, height + line)
        axes.text(1.015, height, name, transform=axes.get_yaxis_transform(), va="center", fontsize=10.5)


def _ticks(values: Sequence[float]) -> list[float]:
    """Return those of the sorted ``values`` that have room for their numbers: a fourteenth of the axis each."""
    kept = list(values[:1])
    for value in values[1:]:
        if value - kept[-1] >= (values[-1] - values[0]) / 14:
            kept.append(value)
    return kept


def _sides(found: Sequence[Measurement]) -> list[list[float]]:
    """Return how far intervals reach below and above their means."""
    return [[m.mean - m.low for m in found], [m.high - m.mean for m in found]]


def _places(labels: Sequence[str]) -> list[int]:
    """Return which of the looks each line takes: that of its scheme if it has one and is the first, else a free one."""
    schemes = [next((i for i, key in enumerate(_SCHEMES) if label.startswith(key)), None) for label in labels]
    own = [place if place not in schemes[:i] else None for i, place in enumerate(schemes)]
    free = (i for i in itertools.count() if i not in own)
    return [next(free) if place is None else place for place in own]


def draw_curves(
    curves: Sequence[Curve], ylabel: str, xlabel: str = "SNR Es/N0 (dB)", mark: str = "trained at"
) -> tuple[Any, Any]:
    """Return a figure and its axes; ``mark`` says what is so at the SNR that is marked.

    Every point stands where it was measured. Lines that nearly coincide can be told apart nevertheless: each has its
    marker, hollow, and its dash, and bars of its interval end in caps of its own width, above a pale band. Where places
    on the axis were measured there are points alone, told apart by marker and filling.
    """
    from matplotlib.figure import Figure

    every = sorted({snr for curve in curves for snr in curve.points})
    free = any(curve.across for curve in curves)
    figure = Figure(figsize=(400 / 72, (310 + 18 * len(curves)) / 72), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, **({} if free else {"xticks": _ticks(every)}))
    axes.grid(axis="y", alpha=0.15, linewidth=0.8)
    lines = []
    for i, curve in zip(_places([curve.label for curve in curves]), curves, strict=True):
        again = i // len(COLOURS)  # up to 24 lines no two share colour and marker, colour and dash or marker and dash
        colour, dash = COLOURS[i % len(COLOURS)], _DASHES[(i + 2 * again) % len(_DASHES)]
        snrs, found = [*curve.points], [*curve.points.values()]
        if not free:
            axes.fill_between(
                snrs, [m.low for m in found], [m.high for m in found], color=colour, alpha=0.1, linewidth=0
            )
        lines.append(
            axes.errorbar(
                snrs,
                [m.mean for m in found],
                _sides(found),
                _sides([curve.across[snr] for snr in snrs]) if curve.across else None,
                color=colour,
                marker=_MARKERS[(i + (0 if free else again)) % len(_MARKERS)],
                fillstyle=_FILLS[again % len(_FILLS)] if free else "none",
                linestyle="none" if free else dash,
                markersize=6,
                markeredgewidth=1.2,
                linewidth=1.4,
                elinewidth=1,
                capsize=3 if free else 2 + i % 4,
            )
        )
    axes.margins(x=0.06, y=0.08)
    designs = sorted({curve.design_snr_db for curve in curves if curve.design_snr_db is not None})
    for snr_db in designs:
        axes.axvline(snr_db, color=TEXT, alpha=0.45, linewidth=1, linestyle=(0, (1, 3)), zorder=0)
    if designs:
        text, middle = f"{mark} {', '.join(f'{snr:g}' for snr in designs)} dB", (designs[0] + designs[-1]) / 2
        axes.text(middle, 1.02, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=10.5)
    figure.legend(
        lines, [c.label for c in curves], loc="outside lower left", frameon=False, handlelength=1.5 if free else 4
    )
    return figure, axes
