# SPDX-License-Identifier: Apache-2.0
"""Links that begin with the weights of others, by hand and in a bench."""

from pathlib import Path

import pytest
import torch

from semlink._errors import SemlinkError
from semlink._files import sha256_file
from semlink.bench import graph, links, make_recipe, recipes, train
from semlink.bench.engines import InProcess
from semlink.bench.links import build, start_from, weights_of
from semlink.bench.runner import run as run_bench
from semlink.bench.store import Store

CPU = torch.device("cpu")
RECIPE = """
title = "starts"
[defaults]
preset = "smoke"
precision = "fp32"
[links.second]
scheme = "deepjscc"
start = "first"
seeds = [0, 1]
[links.first]
scheme = "deepjscc"
seeds = [3, 4]
[evaluation]
snr_db = [12]
draws = 1
metrics = ["accuracy"]
"""


class Silent:
    def begin(self, graph, waiting, slots): ...
    def start(self, cell):
        return lambda moment: None

    def end(self, cell, result, message): ...
    def note(self, text): ...


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "first"
    train(make_recipe("deepjscc", preset="smoke", seed=3), folder, CPU)
    return folder


def test_all_weights_of_the_same_scheme_are_taken(first):
    link = build(make_recipe("deepjscc", preset="smoke", seed=9))
    taken = start_from(link, first)
    assert taken["parameters"] == taken["of"]
    held = links.load(first).scheme.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in link.scheme.state_dict().items())


def test_of_another_length_only_what_fits_is_taken_and_counted(first):
    link = build(make_recipe("deepjscc", preset="smoke", channel_uses=16))
    before = {name: value.clone() for name, value in link.scheme.state_dict().items()}
    held, taken = links.load(first).scheme.state_dict(), start_from(link, first)
    fits = {name for name, value in before.items() if held[name].shape == value.shape}
    assert 0 < taken["parameters"] < taken["of"]
    for name, value in link.scheme.state_dict().items():
        assert torch.equal(value, held[name] if name in fits else before[name]), name


def test_a_link_too_unlike_is_refused(first):
    link = build(make_recipe("deepjscc", preset="cpu", data="cifar10"))
    with pytest.raises(SemlinkError, match=r"only [\d,]+ of this link's 3,[\d,]+ parameters are in .*preset smoke"):
        start_from(link, first)


def test_the_record_says_what_training_began_with_and_training_depends_on_it(first, tmp_path):
    recipe = make_recipe("deepjscc", preset="smoke", start=first)
    assert recipe.start == weights_of(first) == sha256_file(first / "weights.safetensors")
    done = train(recipe, tmp_path / "second", CPU, start=first)
    assert done.started_from == {"parameters": done.parameters["total"], "of": done.parameters["total"]}
    alone = train(make_recipe("deepjscc", preset="smoke"), tmp_path / "alone", CPU)
    assert alone.started_from is None
    assert done.history[0]["losses"]["loss"] < alone.history[0]["losses"]["loss"]
    with pytest.raises(SemlinkError, match="holds another run"):
        train(make_recipe("deepjscc", preset="smoke"), tmp_path / "second", CPU)


def test_a_bench_starts_a_link_from_the_first_seed_of_another(first, tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE)
    store = Store(tmp_path / "store")
    planned = graph.build(recipes.load(str(tmp_path / "mine.toml")), store)
    cells = {(cell.link, cell.seed): cell for cell in planned.cells if cell.step == "train"}
    assert list(cells)[:2] == [("first", 3), ("first", 4)]  # what others build on stands first
    for seed in (0, 1):
        assert cells["second", seed].inputs["start"] == cells["first", 3].name
    outcome = run_bench(planned, store, InProcess(CPU), Silent())
    assert not outcome.failed
    of = {key: links.read_run(store.folder(cell.name) / "run") for key, cell in cells.items()}
    assert of["second", 0].recipe.start == of["second", 1].recipe.start == of["first", 3].weights_sha256
    assert of["first", 3].recipe.start is None


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("frist", "did you mean 'first'"),
        ("second", "unknown link to start from"),
        ("third", "in a circle: second from third from second"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused_with_its_line(tmp_path, start, said):
    text = RECIPE.replace('start = "first"', f'start = "{start}"')
    text += '[links.third]\nscheme = "deepjscc"\nstart = "second"\n'
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(SemlinkError, match=rf"mine\.toml, line 8: links\.second\.start: .*{said}"):
        recipes.load(str(tmp_path / "mine.toml"))


def test_the_adversary_of_training_is_no_part_of_the_link_that_is_kept(tmp_path):
    train(make_recipe("ibal", preset="smoke"), tmp_path / "ibal", CPU)
    link = links.load(tmp_path / "ibal")
    kept = links.weights_in(link.scheme)
    assert not any("adversary" in name for name in kept)
    assert any("adversary" in name for name in link.scheme.state_dict())
    assert links.read_run(tmp_path / "ibal").parameters["total"] == sum(
        p.numel() for name, p in link.scheme.named_parameters() if name in kept
    )
    started = build(make_recipe("ibal", preset="smoke", seed=5))
    taken = start_from(started, tmp_path / "ibal")
    assert taken["parameters"] == taken["of"]
