# SPDX-License-Identifier: Apache-2.0
"""The Ray engine on a local cluster of two nodes, one of which dies in the middle of a training."""

import os
import socket

import pytest
import torch
from boards import Quiet

from semlink.bench import recipes, results, runner
from semlink.bench.engines import InProcess
from semlink.bench.graph import build
from semlink.bench.store import Store

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from semlink.bench import ray_engine  # noqa: E402
from semlink.bench.ray_engine import RayEngine  # noqa: E402

CPU = torch.device("cpu")
CONTENT = Store.content
RECIPE = """
title = "Two trainings"
[links.a]
scheme = "deepjscc"
preset = "short"
seeds = [0, 1]
precision = "fp32"
[evaluation]
snr_db = [12]
draws = 1
metrics = ["accuracy"]
"""


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "two.toml").write_text(RECIPE)
    return recipes.load(str(tmp_path / "two.toml"))


def run(recipe, root, engine, board):
    store = Store(root)
    graph = build(recipe, store)
    graph.save(results.folder_of(recipe, store))
    outcome = runner.run(graph, store, engine, board)
    return outcome, results.gather(graph, store)


class Killer(Quiet):
    """Takes a node away once a training on it has its second epoch behind it."""

    def __init__(self, cluster, node, engine):
        super().__init__()
        self.cluster, self.node, self.engine, self.killed = cluster, node, engine, None

    def start(self, cell):
        def watch(moment):
            where, _ = ray.get(self.engine.keeper.look.remote(cell.name))
            if self.killed is None and where == self.node.node_id and moment.epoch >= 3:
                assert ray.get(self.engine.keeper.take.remote(cell.name))  # there is a checkpoint to go on from
                self.killed = cell.name
                self.cluster.remove_node(self.node)

        return watch


def test_a_bench_that_loses_a_node_in_the_middle_of_a_cell_ends_with_the_same_numbers(cluster, recipe, tmp_path):
    second = cluster.add_node(num_cpus=1)
    engine = RayEngine(CPU, cluster.address)
    assert engine.slots == 2
    board = Killer(cluster, second, engine)
    outcome, found = run(recipe, tmp_path / "ray", engine, board)
    assert not outcome.failed
    assert board.killed is not None
    assert engine.slots == 1
    # the training that lost its node did not begin anew: its log has each epoch once
    log = (tmp_path / "ray" / "cells" / board.killed / "run" / "log.jsonl").read_text().splitlines()
    assert len(log) == 5
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, expected = run(recipe, tmp_path / "here", InProcess(CPU), Quiet())
    finally:
        torch.set_num_threads(threads)
    assert [row.model_dump() for row in found.rows] == [row.model_dump() for row in expected.rows]
    assert len(found.rows) == 1


def test_a_cell_that_fails_says_why_and_sinks_no_other(cluster, recipe, tmp_path):
    engine, store = RayEngine(CPU, cluster.address), Store(tmp_path / "store")
    graph = build(recipe, store)
    (first, second) = (cell for cell in graph.cells if cell.step == "train")
    store.folder(first.name).mkdir(parents=True)
    (store.folder(first.name) / "run").write_text("a file where a folder should be")
    outcome = runner.run(graph, store, engine, Quiet())
    assert set(outcome.failed) == {first.name}
    assert "run" in outcome.failed[first.name]
    assert store.state(second.name) == "done"
    assert len(outcome.blocked) == 1


def test_a_node_with_other_code_is_refused(cluster, recipe, tmp_path, monkeypatch):
    engine, store = RayEngine(CPU, cluster.address), Store(tmp_path / "store")
    graph = build(recipe, store)
    for version in ("0.0.1", None):
        with monkeypatch.context() as patch:
            if version:
                patch.setattr(ray_engine._version, "VERSION", version)
            else:
                patch.setattr(Store, "content", lambda self, cell: CONTENT(self, cell) | {"code": "0" * 64})
            outcome = runner.run(graph, store, engine, Quiet())
        assert set(outcome.failed) == {cell.name for cell in graph.cells if cell.step == "prepare"}
        (said,) = outcome.failed.values()
        assert said.startswith(f"node {socket.gethostname()} has another Semlink (")
        assert said.endswith("install the same on all nodes")
    assert runner.run(graph, store, engine, Quiet()).failed == {}
