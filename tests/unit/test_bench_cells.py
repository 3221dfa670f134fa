# SPDX-License-Identifier: Apache-2.0
"""The store and the runner with cells that do nothing but succeed or fail; and the published schemas."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from semlink._errors import SemlinkError
from semlink._files import Busy
from semlink.bench import runner, schema
from semlink.bench.engines import Ended
from semlink.bench.graph import Cell
from semlink.bench.store import Store, default_root, subject_of


def cell(name: str, **inputs: str) -> Cell:
    return Cell(f"train-{name:0>16}-00000000", "train", name, "00000000", {}, inputs, name, None, 0)


def finish(store: Store, each: Cell) -> None:
    store.claim(each.name, {"code": each.code})
    (store.folder(each.name) / "result").write_text(each.link)
    store.finish(each.name, ["result"], 1.0, {})


class Fake:
    """Does cells at once; those of ``bad`` fail."""

    slots = 2

    def __init__(self, bad=()):
        self.bad, self.started = bad, []

    def start(self, store, name, watch):
        self.started.append(name)
        if name in self.bad:
            return Ended("failed", "it broke")
        (store.folder(name) / "result").write_text(name)
        store.finish(name, ["result"], 1.0, {})
        return Ended("done")


class Board:
    def __init__(self):
        self.notes = []

    def begin(self, graph, waiting, slots):
        self.waiting = [each.name for each in waiting]

    def start(self, cell):
        return lambda moment: None

    def end(self, cell, result, message):
        pass

    def note(self, text):
        self.notes.append(text)


def chain() -> list[Cell]:
    first, other = cell("first"), cell("other")
    return [first, other, cell("heir", link=first.name)]


def run(store: Store, cells: list[Cell], engine: Fake, board: Board | None = None) -> runner.Outcome:
    return runner.run(SimpleNamespace(cells=cells), store, engine, board or Board())


def test_a_second_run_starts_nothing(tmp_path):
    store, cells = Store(tmp_path / "s"), chain()
    assert run(store, cells, Fake()).made == [cells[0].name, cells[1].name, cells[2].name]
    again = Fake()
    outcome = run(store, cells, again)
    assert (again.started, outcome.made, len(outcome.found)) == ([], [], 3)


def test_a_failing_cell_sinks_its_heirs_alone_and_is_tried_again(tmp_path):
    store, cells = Store(tmp_path / "s"), chain()
    outcome = run(store, cells, Fake(bad=[cells[0].name]))
    assert outcome.failed == {cells[0].name: "it broke"}
    assert (outcome.blocked, outcome.made) == ([cells[2].name], [cells[1].name])
    assert store.state(cells[0].name) == "failed"
    assert run(store, cells, Fake()).made == [cells[0].name, cells[2].name]
    assert store.state(cells[0].name) == "done"


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "done"])
def test_a_damaged_cell_is_made_anew_and_the_rest_stays(tmp_path, damage):
    store, cells = Store(tmp_path / "s"), chain()
    run(store, cells, Fake())
    folder = store.folder(cells[1].name)
    if damage == "done":
        (folder / "done.json").write_text('{"files": ')
    elif damage == "missing":
        (folder / "result").unlink()
    else:
        (folder / "result").write_text("other" if damage == "changed" else "")
    engine, board = Fake(), Board()
    assert run(store, cells, engine, board).made == [cells[1].name]
    assert engine.started == [cells[1].name]
    assert "is damaged and is made anew" in board.notes[0]
    assert store.is_sound(cells[1].name)


def test_a_cell_serves_under_other_code_only_if_that_was_declared(tmp_path):
    store = Store(tmp_path / "s")
    subject, old, new = "a" * 64, "1" * 64, "2" * 64
    made = store.name_for("train", subject, old)
    store.claim(made, {"code": old})
    (store.folder(made) / "result").write_text("x")
    store.finish(made, ["result"], 1.0, {})
    assert store.name_for("train", subject, old) == made
    assert store.name_for("train", subject, new) != made
    store.declare(made, new, "a comment moved")
    assert store.name_for("train", subject, new) == made
    assert store.name_for("train", subject, "3" * 64) != made


def test_a_subject_is_all_that_determines_a_result():
    base = ("train", {"a": 1, "b": [2.0]}, "data", {"link": "x"})
    assert subject_of(*base) == subject_of("train", {"b": [2.0], "a": 1}, "data", {"link": "x"})
    others = [
        ("attack", *base[1:]),
        (base[0], {"a": 2}, *base[2:]),
        (*base[:2], "d", base[3]),
        (*base[:3], {"link": "y"}),
    ]
    assert len({subject_of(*each) for each in (base, *others)}) == 5


def test_a_cell_is_held_by_one(tmp_path):
    store, other = Store(tmp_path / "s"), Store(tmp_path / "s")
    with store.hold("train-x"), pytest.raises(Busy), other.hold("train-x"):
        pass
    with other.hold("train-x"):
        pass


def test_folders_that_are_no_store_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SemlinkError, match="is a file"):
        Store(tmp_path / "file")
    with pytest.raises(SemlinkError, match="is not empty and not a store"):
        Store(tmp_path)
    Store(tmp_path / "new")
    (tmp_path / "new" / "store.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(SemlinkError, match="has format 99, this Semlink works with format 1"):
        Store(tmp_path / "new")
    (tmp_path / "new" / "store.json").write_text("{")
    with pytest.raises(SemlinkError, match="is damaged"):
        Store(tmp_path / "new")
    monkeypatch.setenv("SEMLINK_STORE", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"


def test_the_published_schemas_are_those_of_the_records():
    folder = Path(__file__).parents[2] / "docs" / "schema"
    assert {path.name: path.read_text() for path in folder.glob("*.json")} == schema.schemas()
