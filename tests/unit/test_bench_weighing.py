# SPDX-License-Identifier: Apache-2.0
"""A bench of costs: every number that follows from the design is that of the design, the rest is plausible."""

import pytest
import torch
from boards import Quiet

from semlink._errors import SemlinkError
from semlink.bench import code, cost, links, record, results, runner, steps, trainer, weighing
from semlink.bench.compare import compare
from semlink.bench.engines import InProcess
from semlink.bench.graph import build
from semlink.bench.recipes import load
from semlink.bench.store import Store
from semlink.report import bench_page
from semlink.report.bench import tables

RECIPE = """
title = "What schemes take"
costs = true
[defaults]
preset = "smoke"
precision = "fp32"
[links.plain]
scheme = "deepjscc"
[links.played]
scheme = "ibal"
[links.pair]
scheme = "csi-free"
channel = "interference"
channel_uses = 16
options = { users = 2 }
"""


@pytest.fixture(scope="module")
def weighed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    (folder / "costs.toml").write_text(RECIPE)
    store, recipe = Store(folder / "store"), load(str(folder / "costs.toml"))
    graph = build(recipe, store)
    outcome = runner.run(graph, store, InProcess(torch.device("cpu")), Quiet())
    torch.set_flush_denormal(False)
    assert not outcome.failed
    return graph, store, results.gather(graph, store)


def test_nothing_is_trained_or_evaluated(weighed):
    graph, _, found = weighed
    assert [cell.step for cell in graph.cells] == ["prepare", "cost", "cost", "cost"]
    assert found.rows == []
    assert found.missing == []


def test_what_the_design_says_stands_in_the_record(weighed):
    _, _, found = weighed
    by = {each.link: each for each in found.costs}
    assert by["plain"].parameters["total"] == sum(by["plain"].held.values())
    assert set(by["plain"].multiply_adds) == {"transmitter", "receiver"}
    assert set(by["played"].multiply_adds) == {"transmitter", "receiver", "adversary"}
    assert by["played"].parameters["adversary"] > 0
    assert (by["pair"].channel_uses, by["plain"].channel_uses) == (16, 64)


def test_what_was_timed_is_plausible(weighed):
    _, _, found = weighed
    for each in found.costs:
        assert each.epochs == 0
        assert 0 < each.transmit_seconds < 10
        assert 0 < each.receive_seconds < 10
        assert 0 < each.epoch_seconds < 600
        assert each.training_bytes is None or 1e7 < each.training_bytes < 1e11


def test_an_epoch_of_a_share_of_the_images_is_scaled_to_all(tmp_path, monkeypatch):
    fit, seen = trainer.fit, []

    def told(link, recipe, sets, *rest):
        seen.append((len(sets.transceiver), len(sets.validation)))
        return fit(link, recipe, sets, *rest)

    clock = iter([10.0, 20.0, 23.0, 25.0, 29.0])  # the first epoch warms up, of the others the second is the fastest
    monkeypatch.setattr(trainer, "fit", told)
    monkeypatch.setattr(weighing, "_spent", lambda device: next(clock))
    recipe = links.make_recipe("deepjscc", preset="smoke", precision="fp32")
    whole = links.image_sets(recipe)
    done = weighing.weigh(recipe, torch.device("cpu"), tmp_path / "cost.json", batches=1)
    share = seen[0][0] / len(whole.transceiver)
    assert seen[0][1] == round(share * len(whole.validation))
    assert done.epoch_seconds == pytest.approx(2.0 / share, abs=1e-3)
    assert done.timing["training_seconds"] == 19.0
    assert record.read(tmp_path / "cost.json", record.CostRecord) == done


def test_the_witness_of_changed_code_covers_every_count(weighed, monkeypatch):
    graph, _, _ = weighed
    cell = next(cell for cell in graph.cells if cell.link == "plain")
    hashes = {steps.STEPS["cost"].trial(cell.spec, {}, torch.device("cpu")).sha256}
    for name in ("held", "multiply_adds", "parameters"):
        with monkeypatch.context() as patch:
            found = getattr(cost, name)
            patch.setattr(cost, name, lambda link, found=found: {key: value + 1 for key, value in found(link).items()})
            hashes.add(steps.STEPS["cost"].trial(cell.spec, {}, torch.device("cpu")).sha256)
    torch.set_flush_denormal(False)
    assert len(hashes) == 4


def test_the_table_shows_them(weighed):
    head, *lines = tables(weighed[2])[-1]
    assert {"of the transmitter", "in training alone", "ms to transmit", "s an epoch"} <= set(head)
    assert [line[0] for line in lines] == ["plain", "played", "pair"]
    assert {len(line) for line in lines} == {len(head)}
    at = head.index("multiply-adds, adversary")
    assert lines[0][at] == ""
    assert lines[1][at] != ""


def test_its_page_has_the_table_and_no_figure(weighed, tmp_path):
    record.write(tmp_path / "record.json", weighed[2])
    page, *_ = bench_page.write(tmp_path, tmp_path / "page.html")
    text = page.read_text()
    assert "ms to transmit" in text
    assert "<img" not in text


def test_every_number_is_in_the_csv_and_nothing_is_compared(weighed):
    _, _, found = weighed
    lines = bench_page.as_csv(found).splitlines()
    assert f"plain,,parameters.total,,{found.costs[0].parameters['total']}" in lines
    assert f"pair,,epoch_seconds,,{found.costs[2].epoch_seconds}" in lines
    with pytest.raises(SemlinkError, match="benches of costs are not compared"):
        compare(found, found)


def test_what_counts_costs_counts_in_the_name_of_its_cells():
    assert "semlink.bench.cost" in code.imported(*weighing.modules("deepjscc", "awgn"))
    assert "semlink.bench.cost" not in code.imported(*trainer.modules("deepjscc", "awgn"))
