# SPDX-License-Identifier: Apache-2.0
"""Write docs/speed.md from the records in results/speed: ``python benchmarks/page.py``."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER, PAGE = ROOT / "results" / "speed", ROOT / "docs" / "speed.md"


def markdown() -> str:
    """Return the page."""
    speed, growth = (json.loads((FOLDER / name).read_text()) for name in ("cpu.json", "growth.json"))
    logs = {side: json.loads((FOLDER / f"time-to-90-{side}.json").read_text()) for side in ("semlink", "plain")}
    others = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("cpu-*.json"))]
    tables = [*_table(speed), *(line for other in others for line in _other(other))]
    return "\n".join(["# Speed", "", *tables, *_goal(speed, logs), *_growth(growth), *_memory(growth)])


def _machine(said: dict[str, Any]) -> str:
    bf16 = "with" if said["bf16_in_hardware"] else "without"
    return f"{said['processor']}, {bf16} bfloat16 in hardware, torch {said['torch']}, Python {said['python']}"


def _table(speed: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in speed["libraries"].items() if name != "torch")
    return [
        "`make bench-speed` times Semlink and its peers in turn, in one run, on the same work, and holds the results",
        "to each other first. Ratios are of the least times, to the best peer. Written by `python benchmarks/page.py`.",
        "",
        f"{_machine(speed['machine'])}; {versions}.",
        "",
        *_rows(speed),
        "",
        "AWGN, Rayleigh and interference: either side spends most of its time in torch's generator, on as many normal",
        "numbers, which bounds what the rest can bring. One of our own would have to be compiled, in about 0.7 s; an",
        "evaluation over 5 SNRs x 10 draws of 10,000 images of 64 symbols spends 0.2 s on its noise.",
        "",
    ]


def _other(speed: dict[str, Any]) -> list[str]:
    said = (
        "Rows whose code changed since, measured again on another machine; of three runs the one of median last ratio"
    )
    return [f"{said}. {_machine(speed['machine'])}.", "", *_rows(speed), ""]


def _rows(speed: dict[str, Any]) -> list[str]:
    rows = []
    for row in (row for part in speed["parts"].values() for row in part):
        ours, theirs = (1000 * row["seconds"][name] for name in ("semlink", row["peer"]))
        target = "–" if row["target"] is None else f"{row['target']:.1f}"
        missed = row["target"] is not None and row["ratio"] < row["target"]
        ratio = f"{row['ratio']:.{1 if row['ratio'] >= 10 else 2}f}" + (" (missed)" if missed else "")
        rows.append(
            f"| {row['work']} | {row['threads']} | {ours:,.1f} | {theirs:,.1f} | {row['peer']} | {ratio} | {target} |"
        )
    return [
        "| work | threads | Semlink, ms | best peer, ms | peer | times as fast | at least |",
        "|---|--:|--:|--:|---|--:|--:|",
        *rows,
    ]


def _goal(speed: dict[str, Any], logs: dict[str, Any]) -> list[str]:
    step = speed["parts"]["links_steps"][0]["seconds"]
    steps, lines = 37_500 / 256, []
    minutes = {}
    for side, name in (("semlink", "semlink"), ("plain", "plain loop")):
        log, goal = logs[side]["log"], logs[side]["goal"]
        reached = next((row["epoch"] for row in log if row["accuracy"] >= goal), None)
        best = max(row["accuracy"] for row in log)
        epochs = reached or len(log)
        minutes[side] = epochs * steps * step[name] / 60
        said = (
            f"{100 * goal:.0f} % after epoch {reached}" if reached else f"{100 * best:.1f} % at best in {epochs} epochs"
        )
        lines.append(f"| {name} | {said} | {steps * step[name]:.0f} | {minutes[side]:.1f} |")
    more = "" if any(row["accuracy"] >= logs["plain"]["goal"] for row in logs["plain"]["log"]) else "more than "
    return [
        "## Time to 90 % on CIFAR-10",
        "",
        "DeepJSCC of 64 channel uses at 12 dB, validation images; `python benchmarks/time_to_accuracy.py` says what",
        "either recipe is, results/speed has the logs. They ran beside other work, so minutes are epochs times the",
        "seconds of one by the table's step, on two threads; a batch of 512 counts as two steps.",
        "",
        "| side | reached | seconds an epoch | minutes |",
        "|---|---|--:|--:|",
        *lines,
        "",
        f"Semlink is there in {more}{minutes['plain'] / minutes['semlink']:.1f} times less time.",
        "",
    ]


def _growth(growth: dict[str, Any]) -> list[str]:
    rows = []
    for what, held in growth["growth"].items():
        sizes = f"{held['sizes'][0]} to {held['sizes'][-1]}"
        time, memory = held["exponents"]["seconds"], held["exponents"]["grown_mb"]
        rows.append(f"| {what} | {sizes} | {time:.2f} | {memory:.2f} | {held['reason'] or '–'} |")
    return [
        "## Growth",
        "",
        f"`python benchmarks/growth.py --out results/speed`; {growth['machine']['processor']}, one thread. Exponents",
        "of straight lines through the upper half of the points; 1 is linear, fixed costs pull below it.",
        "",
        "![Time and peak memory over what grows](../results/speed/growth.png)",
        "",
        "| what grows | points | time | peak memory | why more than linear |",
        "|---|---|--:|--:|---|",
        *rows,
        "",
    ]


def _memory(growth: dict[str, Any]) -> list[str]:
    rows = []
    for name, held in growth["peak_mb"].items():
        preset, data = name.split()
        rows.append(f"| {preset} | {data} | {held['training']:,.0f} | {held['attack']:,.0f} |")
    return [
        "## Peak memory of presets",
        "",
        "Of a process that trains DeepJSCC, or its attacker, with all images of a set at hand, in MB. `short`, `tune`,",
        "`brief` and `converged` have the sizes of `cpu`.",
        "",
        "| preset | images | training a link | training an attack |",
        "|---|---|--:|--:|",
        *rows,
        "",
    ]


if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
