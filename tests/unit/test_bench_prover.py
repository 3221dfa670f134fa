# SPDX-License-Identifier: Apache-2.0
"""Cells made by other code, and runs made elsewhere: taken if they are proven to be the same, and else made anew."""

import hashlib
import json
import shutil

import pytest
import torch

from semlink._errors import SemlinkError
from semlink._files import Busy
from semlink.bench import code, graph, results, runner, steps, trainer, work
from semlink.bench.engines import InProcess
from semlink.bench.graph import Cell, Graph, build
from semlink.bench.store import Store

CPU, REASON = torch.device("cpu"), "only the words of an error"
STEPS = ["prepare", "train", "evaluate", "attack", "judge"]


class Board:
    """Keeps the remarks."""

    def __init__(self):
        self.notes = []

    def begin(self, graph, waiting, slots): ...

    def start(self, cell):
        return lambda moment: None

    def end(self, cell, result, message): ...

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def recipe(small):
    """One link of the small bench, with one seed and one attack; figures are proven in test_bench_drawing.py."""
    held = small.graph.recipe
    link = held.links["plain"].model_copy(update={"seeds": [0]})
    attacks = {"inversion": held.attacks["inversion"]}
    return held.model_copy(update={"links": {"plain": link}, "attacks": attacks, "figures": {}})


@pytest.fixture
def store(small, tmp_path):
    return small.copy(tmp_path / "store").store


@pytest.fixture
def changed(monkeypatch):
    """Other code: all of it, or that of the steps named."""

    def change(*of: str, salt: str = "changed") -> None:
        touched = {f"semlink.bench.{name}" for name in of}

        def modules_sha256(*modules: str) -> str:
            found = code.modules_sha256(*modules)
            return hashlib.sha256((found + salt).encode()).hexdigest() if touched & {*modules} or not of else found

        for module in (graph, work):
            monkeypatch.setattr(module, "modules_sha256", modules_sha256)

    return change


def proven(recipe, store, notes: list[str], reason: str = REASON) -> Graph:
    return build(recipe, store, runner.prover(store, CPU, reason, notes.append))


def of(made: Graph, step: str) -> Cell:
    """Return the cell of a step of which there is one."""
    (cell,) = (each for each in made.cells if each.step == step)
    return cell


def states(made: Graph, store: Store) -> dict[str, str]:
    return {cell.step: store.state(cell.name) for cell in made.cells}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Proof


def test_code_with_the_same_bits_keeps_every_cell_and_is_declared_with_its_reason(recipe, store, changed):
    before, notes = build(recipe, store), []
    changed()
    assert set(states(build(recipe, store), store).values()) == {"new"}
    after = proven(recipe, store, notes)
    assert [cell.name for cell in after.cells] == [cell.name for cell in before.cells]
    assert notes == [f"{cell.label}: a trial has the same bits, {cell.name} is taken" for cell in after.cells]
    for cell in after.cells:
        (declared,) = store.done(cell.name)["declared"]
        assert (declared["code"], declared["reason"]) == (cell.code, REASON)
        assert declared["code"] != store.done(cell.name)["code"]
        assert store.is_sound(cell.name)
    outcome = runner.run(after, store, InProcess(CPU), Board())
    assert (len(outcome.found), outcome.made) == (5, [])
    found = results.gather(after, store)
    assert [each["reason"] for cell in found.cells for each in cell.declared] == [REASON] * 5


def test_a_declaration_serves_without_another_trial_until_the_code_changes_again(recipe, store, changed, monkeypatch):
    changed("evaluator")
    before = proven(recipe, store, [])

    def asked(*words):
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "witness", asked)
        assert build(recipe, store, asked).cells == before.cells
    changed("evaluator", salt="changed again")
    notes = []
    name = of(before, "evaluate").name
    assert of(proven(recipe, store, notes, "and another word"), "evaluate").name == name
    assert len(notes) == 1
    said = store.done(name)["declared"]
    assert [each["reason"] for each in said] == [REASON, "and another word"]


def test_a_trial_leaves_threads_and_files_as_they_were(recipe, store, changed):
    changed("trainer", "evaluator")
    before = {path.relative_to(store.root) for path in store.root.rglob("*")}
    threads, notes = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        proven(recipe, store, notes)
        assert torch.get_num_threads() == 2  # though the cells were made with one, and so is the trial
    finally:
        torch.set_num_threads(threads)
    assert ["the same bits" in each for each in notes] == [True, True]
    assert {path.relative_to(store.root) for path in store.root.rglob("*")} == before


@pytest.mark.parametrize("step", ["evaluate", "train"])
def test_code_with_other_bits_is_refused_and_its_cells_are_made_anew(recipe, store, changed, monkeypatch, step):
    before, notes, board = build(recipe, store), [], Board()
    if step == "evaluate":
        values = steps.evaluator.values

        def other(*words):
            found = values(*words)
            next(iter(next(iter(found.values())).values())).view(-1)[0] += 1e-6  # of one image
            return found

        monkeypatch.setattr(steps.evaluator, "values", other)
        changed("evaluator")
        remade = ["evaluate"]
    else:
        fit = trainer.fit

        def other(link, *words, **names):
            history = fit(link, *words, **names)
            with torch.no_grad():
                next(link.scheme.parameters()).mul_(1.000001)
            return history

        monkeypatch.setattr(trainer, "fit", other)
        changed("trainer")
        remade = STEPS[1:]  # all build on it but the images
    after = proven(recipe, store, notes)
    old, new = ({cell.step: cell.name for cell in each.cells} for each in (before, after))
    assert [each for each in STEPS if old[each] != new[each]] == remade
    label = next(cell.label for cell in after.cells if cell.step == step)
    assert notes == [f"{label}: this code gives other results than the code that made {old[step]}"]
    assert all(store.done(name)["declared"] == [] for name in old.values())
    if step == "evaluate":
        outcome = runner.run(after, store, InProcess(CPU), board)
        assert outcome.made == [new["evaluate"]]
        assert store.is_sound(old["evaluate"])


@pytest.mark.parametrize(
    "change",
    [
        lambda witness: witness["machine"].update(processor="Abacus"),
        lambda witness: witness["machine"].update(torch="1.0"),
        lambda witness: witness["machine"].update(device="NVIDIA H100"),
        lambda witness: witness.update(precision="another"),
    ],
)
def test_bits_of_another_machine_or_other_libraries_are_not_compared(recipe, store, changed, change):
    before, notes = build(recipe, store), []
    evaluate = of(before, "evaluate")
    edit(store.folder(evaluate.name) / "done.json", lambda done: change(done["witness"]))
    changed("evaluator")
    after = proven(recipe, store, notes)
    assert notes == [
        f"{evaluate.label} was made on another machine or with other libraries; its bits cannot be compared"
    ]
    assert states(after, store)["evaluate"] == "new"
    assert store.done(evaluate.name)["declared"] == []


def test_a_damaged_cell_is_proven_by_nothing(recipe, store, changed):
    before, notes = build(recipe, store), []
    evaluate = of(before, "evaluate")
    (store.folder(evaluate.name) / "evaluate.safetensors").write_bytes(b"")
    changed("evaluator")
    assert states(proven(recipe, store, notes), store)["evaluate"] == "new"
    assert notes == []


def test_without_a_reason_it_is_said_once_that_cells_are_made_anew(recipe, store, changed):
    before, notes = build(recipe, store), []
    changed("evaluator", "attacker", "judge")
    after = build(recipe, store, runner.warner(notes.append))
    rest = dict.fromkeys(("evaluate", "attack", "judge"), "new")
    assert states(after, store) == {"prepare": "done", "train": "done"} | rest
    (said,) = notes
    assert "made by other code and are made anew" in said
    assert "--same-code 'the reason'" in said
    assert all(store.done(cell.name)["declared"] == [] for cell in before.cells)
    notes.clear()
    build(recipe, Store(store.root.parent / "empty"), runner.warner(notes.append))
    assert notes == []  # nothing was made by any code


# Adoption


@pytest.fixture
def run(small, tmp_path):
    """A run folder, as ``semlink train`` makes it."""
    folder = tmp_path / "run"
    shutil.copytree(small.folder("train", "plain") / "run", folder)
    return folder


@pytest.fixture
def planned(recipe, tmp_path):
    """A new store, and the graph that is planned there."""
    store = Store(tmp_path / "new")
    return build(recipe, store), store


def test_a_run_that_is_adopted_is_not_trained(small, planned, run, monkeypatch):
    (made, store), trained = planned, []
    cell = runner.adopt(made, store, run, CPU)
    assert cell == of(made, "train")
    assert store.is_sound(cell.name)
    own = small.store.done(cell.name)
    kept = store.done(cell.name)
    assert kept["files"] == own["files"]
    assert kept["witness"]["sha256"] == own["witness"]["sha256"]
    said = json.loads((run / "record.json").read_text())["timing"]["training_seconds"]
    assert kept["seconds"] == pytest.approx(said, abs=0.05)
    monkeypatch.setattr(trainer, "train", lambda *words: trained.append(words))
    assert runner.adopt(made, store, run, CPU) == cell  # again: it is there
    made = Graph(made.recipe, made.cells[:3])  # the attack takes its time
    outcome = runner.run(made, store, InProcess(CPU), Board())
    assert (outcome.failed, trained) == ({}, [])
    assert outcome.found == [cell.name]
    assert outcome.made == [of(made, "prepare").name, of(made, "evaluate").name]
    values = {row.key: row.seeds[0] for row in results.gather(made, store).rows}
    theirs = {row.key: row.seeds[0] for row in small.record.rows}
    assert values
    assert all(theirs[key] == each for key, each in values.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda said: said["recipe"].update(seed=7), "seed 7, which is no link of recipe 'small'"),
        (lambda said: said["recipe"].update(snr_db=3.0), "deepjscc on digits, 3 dB, preset smoke, seed 0, which is no"),
        (lambda said: said["recipe"].update(precision="bf16"), "which is no link of recipe 'small'"),
        (lambda said: said.update(step_sha256="0" * 64), "was trained by other code than this Semlink's"),
        (lambda said: said.update(started_by_step_sha256="0" * 64), "was trained by other code than this Semlink's"),
        (lambda said: said["data"].update(sha256="beef"), "was trained on other images than digits has now"),
        (lambda said: said["schedule"].update(epochs=9), "was trained on another schedule than preset smoke has now"),
        (lambda said: said["schedule"].update(training_images=9), "was trained on another schedule"),
        (lambda said: said.update(format=99), "format 99, made by a newer Semlink"),
        (lambda said: said.update(weights_sha256="0" * 64), "damaged"),
    ],
)
def test_a_run_that_is_another_is_refused_in_one_line(planned, run, change, said):
    made, store = planned
    edit(run / "record.json", change)
    before = sorted(store.root.rglob("*"))
    with pytest.raises(SemlinkError) as caught:
        runner.adopt(made, store, run, CPU)
    assert said in str(caught.value)
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("record.json", "the training in {run} is not finished"),
        ("weights.safetensors", "{run}/weights.safetensors is missing; restore it from a copy"),
        ("recipe.json", "{run} lacks recipe.json; restore it from a copy"),
        ("log.jsonl", "{run} lacks log.jsonl; restore it from a copy"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(planned, run, name, said):
    made, store = planned
    (run / name).unlink()
    with pytest.raises(SemlinkError) as caught:
        runner.adopt(made, store, run, CPU)
    assert said.format(run=run) in str(caught.value)
    assert not (store.root / "cells").exists()


def test_a_folder_that_is_no_run_is_refused(planned, tmp_path):
    made, store = planned
    for folder, said in ((tmp_path, "is not a run folder"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(SemlinkError, match=said):
            runner.adopt(made, store, folder, CPU)


def test_a_link_in_training_is_not_adopted_over(planned, run):
    made, store = planned
    with Store(store.root).hold(of(made, "train").name), pytest.raises(Busy):
        runner.adopt(made, store, run, CPU)
    assert store.state(of(made, "train").name) == "begun"
    runner.adopt(made, store, run, CPU)
    assert store.is_sound(of(made, "train").name)


def test_a_training_that_was_begun_gives_way_to_an_adopted_run(planned, run):
    made, store = planned
    folder = store.folder(of(made, "train").name)
    (folder / "run" / "checkpoint").mkdir(parents=True)
    (folder / "run" / "checkpoint" / "state").write_text("begun")
    (folder / "run" / "log.jsonl").write_text("begun")
    runner.adopt(made, store, run, CPU)
    assert store.is_sound(folder.name)
    assert not (folder / "run" / "checkpoint").exists()
    assert (folder / "run" / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()


def test_a_link_of_any_precision_takes_a_run_of_either(small, recipe, run, tmp_path, monkeypatch):
    link = recipe.links["plain"].model_copy(update={"precision": "auto"})
    store = Store(tmp_path / "auto")
    made = build(recipe.model_copy(update={"links": {"plain": link}}), store)
    asked, proof = [], {"sha256": "0" * 64, "machine": {}, "precision": "bf16"}
    monkeypatch.setattr(runner, "witness", lambda step, spec, *rest: asked.append(spec["precision"]) or proof)
    for name in ("record.json", "recipe.json"):
        edit(run / name, lambda said: (said.get("recipe") or said).update(precision="bf16"))
    assert runner.adopt(made, store, run, CPU) == of(made, "train")
    assert asked == ["bf16"]  # the trial is of what was trained, not of what would be quick here
