# SPDX-License-Identifier: Apache-2.0
"""Write docs/speed.md from the records in results/speed: ``python benchmarks/page.py``."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_STEPS = 37_500 / 256  # of an epoch
FOLDER, PAGE = ROOT / "results" / "speed", ROOT / "docs" / "speed.md"


def markdown() -> str:
    """Return the page."""
    speeds = [json.loads(path.read_text()) for path in FOLDER.glob("cpu-*.json")]
    speeds.sort(key=lambda speed: max(speed.get("measured", {"": ""}).values()), reverse=True)
    growth = json.loads((FOLDER / "growth.json").read_text())
    logs = {side: json.loads((FOLDER / f"time-to-90-{side}.json").read_text()) for side in ("semlink", "plain")}
    tables = [line for speed in speeds for line in _table(speed)]
    return "\n".join(
        [*_START, *tables, *_NOISE, *_goal(speeds, logs), *_throughput(), *_growth(growth), *_memory(growth)]
    )


_START = [
    "# Speed",
    "",
    "`make bench-speed` times Semlink and its peers in turn, in one run, on the same work, and holds the results",
    "to each other first. Ratios are of the least times, to the best peer. What is asked of trainings, 3 times a step",
    "and 1.8 an epoch of IRSC, is asked of processors with AMX, whose products of bfloat16 are many times as fast as",
    "of float32; of others, with AVX-512's bfloat16 too, 1.2 and 1.5. Written by `python benchmarks/page.py`.",
    "",
]
_NOISE = [
    "AWGN, Rayleigh and interference spend their time on noise, by torch's generator on either side at first. Once a",
    "process has drawn 34 million numbers, half of what an evaluation draws, Semlink compiles a program in 0.2 s that",
    "draws the same numbers, bit for bit, in a quarter of the time; rows are measured from there on. Without a",
    "compiler, or on processors on which torch draws otherwise, torch goes on and ratios are 1.0 to 1.1.",
    "",
]


def _table(speed: dict[str, Any]) -> list[str]:
    machine = speed["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in speed["libraries"].items() if name != "torch")
    days = sorted(set(speed.get("measured", {}).values()))
    said = f"Measured on {' and '.join(days)}" if days else "Measured before rows of channels, PSNR and IRSC changed"
    return [
        f"## {machine['processor']}, {machine['capability']}",
        "",
        f"{said}; torch {machine['torch']}, Python {machine['python']}, {versions}.",
        "",
        *_rows(speed),
        "",
    ]


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


def _goal(speeds: list[dict[str, Any]], logs: dict[str, Any]) -> list[str]:
    lines, spent = [], list[list[float]]()
    for side, name in (("semlink", "semlink"), ("plain", "plain loop")):
        log, goal = logs[side]["log"], logs[side]["goal"]
        reached = next((row["epoch"] for row in log if row["accuracy"] >= goal), None)
        said = f"after epoch {reached}" if reached else f"not in {len(log)} epochs"
        times = [_STEPS * speed["parts"]["links_steps"][0]["seconds"][name] for speed in speeds]
        spent.append([(reached or len(log)) * seconds / 60 for seconds in times])
        lines.append(f"| {name} | {said} | {' | '.join(f'{minutes:.1f}' for minutes in spent[-1])} |")
    bound = "" if reached else "more than "  # of the plain loop, the last
    ratios = [f"{bound}{theirs / ours:.1f}" for ours, theirs in zip(*spent, strict=True)]
    lines.append(f"| ratio | | {' | '.join(ratios)} |")
    return [
        "## Time to 90 % on CIFAR-10",
        "",
        "DeepJSCC of 64 channel uses at 12 dB, validation images; `python benchmarks/time_to_accuracy.py` says what",
        "either recipe is, results/speed has the logs. They ran beside other work, so minutes are epochs times the",
        "seconds of one by the step of each table, on two threads; a batch of 512 counts as two steps. At least 10",
        "times less is asked for with AMX.",
        "",
        f"| side | 90 % | {' | '.join('minutes, ' + speed['machine']['capability'] for speed in speeds)} |",
        f"|---|---|{'--:|' * len(speeds)}",
        *lines,
        "",
    ]


def _throughput() -> list[str]:
    rows = []
    for path in sorted(FOLDER.glob("throughput-*.json")):
        held = json.loads(path.read_text())
        device, most = held["machine"]["device"], held["peak_operations_a_second"]
        name = f"{held['machine']['threads']} threads of {held['machine']['processor']}" if device == "cpu" else device
        for row in held["links"]:
            share = 100 * row["operations_a_second"] / most
            rows.append(
                f"| {row['link']} | {name} | {row['batch']} | {row['trained_a_second']:,} | "
                f"{row['evaluated_a_second']:,} | {share:.0f} % of {most / 1e12:.2g} |"
            )
    return [
        "## Throughput",
        "",
        "`python benchmarks/throughput.py --device cuda`, or `cpu`: images a second with the schedule of preset",
        "`paper`, and how much of the TFLOP/s of a large bfloat16 product a training step reaches.",
        "",
        "| link | device | batch | trained a second | evaluated a second | of the peak |",
        "|---|---|--:|--:|--:|--:|",
        *rows,
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
