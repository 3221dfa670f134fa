# SPDX-License-Identifier: Apache-2.0
"""A small bench that was run once, for all tests of what is made of it."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from boards import Quiet

from semlink.bench import results, runner
from semlink.bench.engines import InProcess
from semlink.bench.graph import Graph, build
from semlink.bench.recipes import load
from semlink.bench.results import BenchRecord
from semlink.bench.store import Store

RECIPE = """
title = "Does a key keep Eve out?"
[defaults]
preset = "smoke"
precision = "fp32"
seeds = [0, 1]
[links.plain]
scheme = "deepjscc"
[links.keyed]
scheme = "deepjscc-encryption"
[attacks.inversion]
[attacks.with-key]
with_secret = true
links = ["keyed"]
[evaluation]
snr_db = [12, 4]
draws = 2
attack_draws = 2
metrics = ["psnr_db", "mi_leakage", "accuracy", "balanced_accuracy"]
[figures.accuracy]
metric = "accuracy"
[figures."what Eve learns"]
metric = "mi_leakage"
title = "What Eve learns"
attacks = ["inversion"]
[figures.plain]
metric = "psnr_db"
links = ["plain"]
"""


class Small(NamedTuple):
    """A recipe's graph, the store with all of its cells, and the record of both."""

    graph: Graph
    store: Store
    record: BenchRecord

    def copy(self, folder: Path) -> "Small":
        """Return the same in a store of its own, which a test may damage."""
        shutil.copytree(self.store.root, folder)
        return self._replace(store=Store(folder))

    def folder(self, step: str, link: str, seed: int = 0, attack: str | None = None) -> Path:
        """Return the folder of a cell."""
        wanted = (step, link, seed, attack)
        name = next(c.name for c in self.graph.cells if (c.step, c.link, c.seed, c.attack) == wanted)
        return self.store.folder(name)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.toml").write_text(RECIPE)
    store = Store(folder / "store")
    graph = build(load(str(folder / "small.toml")), store)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = runner.run(graph, store, InProcess(torch.device("cpu")), Quiet())
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    assert not outcome.failed
    graph.save(results.folder_of(graph.recipe, store))
    return Small(graph, store, results.gather(graph, store))
