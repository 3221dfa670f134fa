# SPDX-License-Identifier: Apache-2.0
"""Records as a few lines of text, for the terminal."""

import inspect
import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from semlink.bench.record import EvaluateRecord, JudgeRecord, Measurement, TrainRecord
from semlink.schemes import Scheme
from semlink.schemes.options import options, takes_any

_WIDTH = 80  # of help, as tyro's


def trained(done: TrainRecord, folder: Path) -> str:
    """Return what ``semlink train`` prints."""
    last = done.history[-1]
    shown = ", ".join(f"{name} {value:.4g}" for name, value in last["validation"].items())
    seconds = done.timing["training_seconds"]
    multiply_adds = sum(done.multiply_adds[end] for end in ("transmitter", "receiver"))
    return (
        f"{done.recipe.scheme} on {done.recipe.data}: {len(done.history)} epochs in {seconds} s "
        f"({done.recipe.precision}), validation {shown}\n{done.parameters['total']:,} parameters, "
        f"{multiply_adds:,} multiply-adds, {done.channel_uses} channel uses an image\n"
        f"Run folder: {folder}"
    )


def scheme_help(key: str, kind: type[Scheme]) -> list[str]:
    """Return what ``semlink train KEY --help`` says of a scheme: what it is, and its options."""
    title = inspect.cleandoc(inspect.getmodule(kind).__doc__ or kind.__doc__ or "").partition("\n\n")[0]
    lines = [f"scheme {key}: {' '.join(title.split())}", ""]
    if not (found := options(kind)):
        return [*lines, "It has no options of its own."]
    lines.append("Its options, given as --options NAME=VALUE, with their defaults:")
    width = max(len(f"{option.name}={option.default}") for option in found) + 4
    for option in found:
        shown = f"{option.default}".lower() if isinstance(option.default, bool) else f"{option.default}"
        head = f"  {option.name}" + ("" if option.default is None else f"={shown}")
        body = option.meaning.replace("``", "")
        lines += textwrap.wrap(body, _WIDTH, initial_indent=head.ljust(width), subsequent_indent=" " * width) or [head]
    more = "Any other option goes to the scheme that it is built on; see that scheme's help."
    return [*lines, *(textwrap.wrap(more, _WIDTH) if takes_any(kind) else [])]


def evaluated(done: EvaluateRecord) -> str:
    """Return what ``semlink evaluate`` prints: a line an SNR."""
    lines = [
        f"{done.recipe.scheme} on the test set of {done.recipe.data}, {done.draws} noise draws an image, 95 % intervals"
    ]
    rows = {
        f"{point['snr_db']:g} dB": {k: v for k, v in point.items() if isinstance(v, Measurement)}
        for point in done.points
    }
    return "\n".join(lines + _aligned(rows))


def attacked(done: JudgeRecord, path: Path) -> str:
    """Return what ``semlink attack`` prints: a line for the attack and for each baseline."""
    key = " with the key" if done.threat["with_secret"] else ""
    at = f"{done.threat['snr_db']} dB{reception(done)}"
    lines = [f"{done.attack} on {done.recipe.scheme}{key}, Eve at {at}, 95 % intervals"]
    lines += _aligned({"attack": done.results, **done.baselines})
    if not done.converged:
        fall = done.last_fifth_fall
        why = (
            "too few epochs to tell"
            if fall is None
            else f"its loss still fell by {fall:.1%} in the last fifth of the steps"
        )
        lines.append(f"not converged ({why}), so this supports no claim that a defence survives")
    if done.poor:
        lines.append("it draws worse than the mean image, so this supports no claim that a defence survives")
    return "\n".join([*lines, f"Record: {path}"])


def _aligned(rows: dict[str, dict[str, Measurement]]) -> list[str]:
    """Return a header and a line a row, metrics in columns, intervals in brackets."""
    first = next(iter(rows.values()))
    heads = ["", *(f"{name} ({value.unit})" if value.unit != "1" else name for name, value in first.items())]
    numbers = []
    for name in first:
        held = {row: measured[name] for row, measured in rows.items() if name in measured}
        texts = dict(zip(held, intervals([*held.values()]), strict=True))
        numbers.append([texts.get(row, "") for row in rows])
    return columns([heads, *map(list, zip(rows, *numbers, strict=True))])


def intervals(found: Sequence[Measurement]) -> list[str]:
    """Return numbers with their intervals in brackets, all as wide as one another, decimal points in line."""
    places = decimals(found)
    texts = [[f"{value:z.{places}f}" for value in (each.mean, each.low, each.high)] for each in found]
    widths = [max(map(len, part)) for part in zip(*texts, strict=True)]
    rows = [[part.rjust(width) for part, width in zip(text, widths, strict=True)] for text in texts]
    return [f"{mean} [{low}, {high}]" for mean, low, high in rows]


def decimals(found: Sequence[Measurement]) -> int:
    """Return how many decimals show two figures of the median interval's half-width; 2 if none has a width."""
    halves = [(each.high - each.low) / 2 for each in found]
    exponents = [math.floor(math.log10(half)) for half in halves if half > 0 and math.isfinite(half)]
    return min(max(1 - statistics.median_low(exponents or [-1]), 0), 6)


def columns(rows: list[list[str]]) -> list[str]:
    """Return a line a row, cells padded so that columns line up."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def reception(done: JudgeRecord) -> str:
    """Return what is to be added to the eavesdropper's SNR: several receptions, a channel unlike the link's."""
    threat = done.threat
    counts = {what: threat.get(what) or 1 for what in ("antennas", "transmissions")}
    said = [f"{count} {what}" for what, count in counts.items() if count != 1]
    where = f" at each of {' and '.join(said)}" if said else ""
    own = f" over her own channel, {threat['channel']}" if threat.get("channel") else ""
    return where + own + ("" if threat.get("csi", True) else " without CSI")
