# SPDX-License-Identifier: Apache-2.0
"""Records as a few lines of text, for the terminal."""

from pathlib import Path

from semlink.bench.record import AttackRecord, EvaluateRecord, Measurement, TrainRecord


def trained(done: TrainRecord, folder: Path) -> str:
    """Return what ``semlink train`` prints."""
    last = done.history[-1]
    shown = ", ".join(f"{name} {value:.4g}" for name, value in last["validation"].items())
    seconds = done.timing["training_seconds"]
    return (
        f"{done.recipe.scheme} on {done.recipe.data}: {len(done.history)} epochs in {seconds} s "
        f"({done.recipe.precision}), validation {shown}\n{done.parameters['total']:,} parameters, "
        f"{sum(done.multiply_adds.values()):,} multiply-adds, {done.channel_uses} channel uses an image\n"
        f"Run folder: {folder}"
    )


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


def attacked(done: AttackRecord, path: Path) -> str:
    """Return what ``semlink attack`` prints: a line for the attack and for each baseline."""
    key = " with the key" if done.threat["with_secret"] else ""
    lines = [f"{done.attack} on {done.recipe.scheme}{key}, Eve at {done.threat['snr_db']} dB, 95 % intervals"]
    lines += _aligned({"attack": done.results, **done.baselines})
    if not done.converged:
        fall = done.last_fifth_fall
        why = (
            "too few epochs to tell"
            if fall is None
            else f"its loss still fell by {fall:.1%} in the last fifth of the steps"
        )
        lines.append(f"not converged ({why}), so this supports no claim that a defence survives")
    return "\n".join([*lines, f"Record: {path}"])


def _aligned(rows: dict[str, dict[str, Measurement]]) -> list[str]:
    """Return a header and a line a row, metrics in columns, intervals in brackets."""
    first = next(iter(rows.values()))
    heads = ["", *(f"{name} ({value.unit})" if value.unit != "1" else name for name, value in first.items())]
    cells = [
        [name, *(f"{v.mean:.4g} [{v.low:.4g}, {v.high:.4g}]" for v in measured.values())]
        for name, measured in rows.items()
    ]
    widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *cells]
    ]
