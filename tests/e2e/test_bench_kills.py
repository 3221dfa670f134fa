# SPDX-License-Identifier: Apache-2.0
"""Two processes on one store, killed again and again: every cell ends as if nothing had happened."""

import json
import multiprocessing
import random
import time
from pathlib import Path

import torch

from semlink.bench import recipes, results
from semlink.bench.store import Store

KILLS = 100
RECIPE = """
title = "Killed"
[defaults]
preset = "smoke"
precision = "fp32"
seeds = [0, 1]
[links.plain]
scheme = "deepjscc"
[links.encrypted]
scheme = "deepjscc-encryption"
[attacks.inversion]
[evaluation]
snr_db = [12]
draws = 1
[figures.accuracy]
metric = "accuracy"
"""


class Silent:
    """A board that shows nothing."""

    def begin(self, graph, waiting, slots):
        pass

    def start(self, cell):
        return lambda moment: None

    def end(self, cell, result, message):
        pass

    def note(self, text):
        pass


def bench(recipe: str, root: str) -> None:
    """What is killed: the bench, in this process."""
    from semlink.bench import engines, graph, runner

    torch.set_num_threads(1)
    store = Store(Path(root))
    planned = graph.build(recipes.load(recipe), store)
    planned.save(results.folder_of(planned.recipe, store))
    outcome = runner.run(planned, store, engines.InProcess(torch.device("cpu")), Silent())
    if outcome.failed:
        raise SystemExit(f"{outcome.failed}")


def contents(root: Path) -> dict[str, object]:
    """Return every record without its times, and the bytes of every tensor file and figure, by path."""
    found: dict[str, object] = {}
    for path in sorted((root / "cells").rglob("*.json")):
        if path.name not in ("done.json", "failed.json", "progress.json"):
            said = json.loads(path.read_text())
            said.pop("timing", None)
            for row in said.get("history", []):
                row.pop("epoch_seconds")
            found[str(path.relative_to(root))] = said
    for kind in ("safetensors", "png", "pdf"):
        found |= {str(path.relative_to(root)): path.read_bytes() for path in (root / "cells").rglob(f"*.{kind}")}
    return found


def test_two_processes_killed_a_hundred_times_leave_what_one_makes_undisturbed(tmp_path):
    recipe = tmp_path / "killed.toml"
    recipe.write_text(RECIPE)
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["semlink.bench.runner", "semlink.bench.graph", "semlink.bench.engines", "torch"])
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    begun = time.monotonic()
    first = fork.Process(target=bench, args=(str(recipe), str(whole)))
    first.start()
    first.join()
    assert first.exitcode == 0
    length = time.monotonic() - begun

    chance, kills, begins = random.Random(0), 0, {}
    while kills < KILLS:
        for slot in (0, 1):
            if slot not in begins or not begins[slot][0].is_alive():
                process = fork.Process(target=bench, args=(str(recipe), str(disturbed)))
                process.start()
                begins[slot] = (process, time.monotonic() + chance.uniform(0.05, min(1.2, length / 4)))
        time.sleep(0.01)
        for process, until in begins.values():
            if process.is_alive() and time.monotonic() > until:
                process.kill()
                process.join()
                kills += process.exitcode == -9
        if kills % 20 == 0 and (disturbed / "store.json").exists():
            store = Store(disturbed)
            done = [path.parent.name for path in (disturbed / "cells").glob("*/done.json")]
            assert all(store.is_sound(name) for name in done), f"after {kills} kills"
            if len(done) == len(list((whole / "cells").iterdir())):  # all is done: there is nothing left to disturb
                for name in done[:4]:
                    store.set_aside(name)
    for process, _ in begins.values():
        process.kill()
        process.join()

    last = fork.Process(target=bench, args=(str(recipe), str(disturbed)))
    last.start()
    last.join()
    assert last.exitcode == 0
    expected, found = contents(whole), contents(disturbed)
    kept = {path: value for path, value in found.items() if ".damaged-" not in path}
    assert kept.keys() == expected.keys()
    assert [path for path in expected if kept[path] != expected[path]] == [], f"after {kills} kills"
    assert not list((disturbed / "cells").glob("*-????????/**/*.part"))
