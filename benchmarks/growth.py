# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow: ``python benchmarks/growth.py [--out FOLDER]``

Every point is measured in a process of its own on one thread: the least seconds of several rounds of the same work, and
by how much the process grew at its peak. Exponents are slopes of straight lines through the upper half of the points,
both axes logarithmic; fixed costs flatten the lower half. The folder takes growth.json and growth.png.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import trainings

import semlink
from semlink.attacks import Threat
from semlink.bench import attacker, evaluator, graph, links, preset, recipes
from semlink.bench.figures import style
from semlink.bench.store import Store
from semlink.bench.weighing import weigh
from semlink.data import ImageSet, describe
from semlink.training import describe_machine, keep_memory, resolve_precision

CPU, SNR_DB = torch.device("cpu"), 12.0
#: What grows, the points, and why an exponent may exceed 1; None where it must not.
GROWTH: dict[str, tuple[list[int], str | None]] = {
    "training images": ([1024, 2048, 4096, 8192, 16384], None),
    "channel uses": ([32, 64, 128, 256, 512], None),
    "SNRs of an evaluation": ([2, 4, 8, 16, 32], None),
    "cells of a bench": ([20, 40, 80, 160, 320], None),
    "users, irsc-csir": ([2, 3, 4, 6, 8], "each of K receivers is fed the 8 K^2 numbers of all channels"),
    "users, dispersion": ([2, 3, 4, 6, 8], "each of K receivers solves for the streams of all K users"),
    "users, adaptive-precoding": (
        [2, 3, 4, 6, 8],
        "precoders of K users meet at K receivers in every round of a design; from K = 4 on 4 uses as one",
    ),
}
#: Presets and images whose trainings' peak memory is told; those left out have the size of "cpu".
PRESETS = [(name, data) for name in ("smoke", "cpu", "paper") for data in ("digits", "cifar10", "celeba")]


def work(what: str, size: int, folder: Path) -> Callable[[], object]:
    """Return the work of one point."""
    if what == "training images":
        recipe = links.make_recipe("deepjscc", data="cifar10", preset="smoke")
        return training(recipe, trainings.sets(size, "cifar10", (3, 32, 32)), folder)
    if what == "channel uses":
        recipe = links.make_recipe("deepjscc", data="cifar10", preset="smoke", channel_uses=size)
        return training(recipe, trainings.sets(2048, "cifar10", (3, 32, 32)), folder)
    if what == "SNRs of an evaluation":
        link, images = semlink.create("deepjscc", data="cifar10"), torch.zeros(500, 3, 32, 32, dtype=torch.uint8)
        link.scheme.eval()
        test, grid = ImageSet(images, torch.zeros(500, dtype=torch.int64)), np.linspace(0, 20, size).tolist()
        return lambda: evaluator.measure(link, test, grid, 1, 0, CPU)
    if what == "cells of a bench":
        lines = ['title = "Growth"', "[defaults]", 'preset = "smoke"', 'data = "digits"']
        lines += [f'[links.a{i}]\nscheme = "deepjscc"\nsnr_db = {i / 16}' for i in range(size // 2)]
        lines += ["[evaluation]", "snr_db = [12]"]
        (folder / "growth.toml").write_text("\n".join(lines))
        return lambda: graph.build(recipes.load(str(folder / "growth.toml")), Store(folder / "store"))
    scheme = what.removeprefix("users, ")
    recipe = links.make_recipe(scheme, data="mnist", snr_db=10.0, channel_uses=16, users=size)
    return training(recipe, trainings.sets(512, "mnist", (size, 1, 28, 28)), folder)


def training(recipe: Any, images: Any, folder: Path) -> Callable[[], object]:
    """Return the training of one epoch more."""
    fit, done = trainings.trained(links.build(recipe), recipe, images), [0]

    def more() -> object:
        done[0] += 1
        return fit(done[0], folder)

    return more


def train_with(name: str, data: str, folder: Path) -> Callable[[], object]:
    """Return a training of two batches that holds all images of ``data``."""
    recipe = links.make_recipe("deepjscc", data=data, preset=name, precision=resolve_precision(CPU))
    return lambda: weigh(recipe, CPU, folder / "cost.json", batches=2)


def attack_with(name: str, data: str, folder: Path) -> Callable[[], object]:
    """Return a training of the attacker of two batches that holds all images of ``data``."""
    recipe = links.make_recipe("deepjscc", data=data, preset=name, precision=resolve_precision(CPU))
    link, images, shown = links.build(recipe), links.image_sets(recipe), describe(data)
    schedule = dataclasses.replace(preset(name).scale(shown.image_shape[0]).attack, epochs=1)
    few = images.attacker.subset(torch.arange(min(2 * schedule.batch_size, len(images.attacker))))
    held = dataclasses.replace(images, attacker=few, attacker_validation=few)
    plan = attacker.Plan("inversion", Threat(SNR_DB), name, "vgg16", 0, recipe.precision)
    link.scheme.eval()
    return lambda: (attacker.fit(attacker.build(link, plan, shown), held, schedule, plan, folder, CPU), images)


def point(what: str, size: str) -> dict[str, float]:
    """Measure one point in this process."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_memory()
    least, before = float("inf"), peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        if what in MEMORY:
            name, data = size.split()
            MEMORY[what](name, data, Path(folder))()
            return {"peak_mb": peak_mb()}
        run = work(what, int(size), Path(folder))
        for _ in range(4):
            begun = time.perf_counter()
            run()
            least = min(least, time.perf_counter() - begun)
    return {"seconds": least, "grown_mb": peak_mb() - before}


def peak_mb() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def elsewhere(what: str, size: str) -> dict[str, float]:
    """Measure one point in a process of its own."""
    run = subprocess.run([sys.executable, __file__, "--point", what, size], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the slope of log values over log sizes, of the upper half of the points."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(np.maximum(values[half:], 1e-9)), 1)[0])


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory over what grows, both over those of the first point."""
    with style():
        figure, panels = plt.subplots(1, 2, figsize=(10, 5.8))
        for panel, name, title in zip(panels, ("seconds", "grown_mb"), ("Time", "Peak memory"), strict=True):
            ends = np.array([1, 16])
            panel.plot(ends, ends, color="0.6", linestyle="--", label="linear")
            for what, held in found.items():
                sizes, values = np.array(held["sizes"]), np.array(held[name])
                label = f"{what}: {held['exponents'][name]:.2f}"
                panel.plot(sizes / sizes[0], values / values[0], marker="o", label=label)
            for axis, scale in ((panel.xaxis, panel.set_xscale), (panel.yaxis, panel.set_yscale)):
                scale("log", base=2)
                axis.set_major_formatter("{x:g}")
            panel.set(title=title, xlabel="times as much", ylabel="times the first point's")
            panel.legend(fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.24), title="what grows: exponent")
        figure.tight_layout()
        figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> int:
    """Measure, print, write; exit status 1 if something grows faster than linearly without a reason."""
    parser = argparse.ArgumentParser(description="How time and memory grow.")
    parser.add_argument("--out", type=Path, help="folder that takes growth.json and growth.png")
    parser.add_argument("--point", nargs=2, help="what and how much, in this process")
    given = parser.parse_args()
    if given.point:
        print(json.dumps(point(*given.point)))
        return 0
    found: dict[str, Any] = {}
    for what, (sizes, reason) in GROWTH.items():
        points = [elsewhere(what, str(size)) for size in sizes]
        held = {name: [round(each[name], 5) for each in points] for name in ("seconds", "grown_mb")}
        exponents = {name: round(exponent(sizes, values), 2) + 0.0 for name, values in held.items()}
        found[what] = {"sizes": sizes, **held, "exponents": exponents, "reason": reason}
        print(f"{what:28} time^{exponents['seconds']:.2f}  memory^{exponents['grown_mb']:.2f}  {held}", flush=True)
    memory: dict[str, dict[str, float]] = {}
    for what in MEMORY:
        for name, data in PRESETS:
            memory.setdefault(f"{name} {data}", {})[what] = round(elsewhere(what, f"{name} {data}")["peak_mb"])
            print(what, name, data, memory[f"{name} {data}"][what], "MB", flush=True)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        said = {"machine": describe_machine(CPU) | {"threads": 1}, "growth": found, "peak_mb": memory}
        (given.out / "growth.json").write_text(json.dumps(said, indent=1) + "\n")
        draw(found, given.out / "growth.png")
    return int(any(held["reason"] is None and held["exponents"]["seconds"] > 1.1 for held in found.values()))


MEMORY = {"training": train_with, "attack": attack_with}

if __name__ == "__main__":
    sys.exit(main())
