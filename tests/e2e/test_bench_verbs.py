# SPDX-License-Identifier: Apache-2.0
"""Verbs on benches as a user types them: what they print, where it goes, and one line for whatever is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from semlink.bench import runner, steps
from semlink.cli import main

RECIPE = """\
title = "Does a second seed help?"
[defaults]
preset = "smoke"
precision = "fp32"
[links.plain]
scheme = "deepjscc"
[links.faded]
scheme = "deepjscc"
channel = "rayleigh"
[evaluation]
snr_db = [12, 4]
draws = 1
metrics = ["accuracy"]
[figures.accuracy]
metric = "accuracy"
[variants.one.evaluation]
snr_db = [12]
"""
LABELS = ["train plain, seed 0", "train faded, seed 0", "evaluate plain, seed 0", "evaluate faded, seed 0"]
FIRST, LAST = "prepare digits", "draw accuracy"


class Said:
    """What a command said, and its exit status."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def refused(self, words: str) -> bool:
        """Whether it was bad input, said in one line with ``words`` in it, and nothing else was said."""
        whole = (self.status, self.out, self.err.count("\n"), self.err[:7]) == (2, "", 1, "error: ")
        return whole and words in self.err and "Traceback" not in self.err


@pytest.fixture
def semlink(capsys, monkeypatch):
    """Runs a command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: str | Path) -> Said:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Said(status, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a recipe that a process of its own has run to its end, as a user would."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mine").mkdir()
    (folder / "mine" / "two.toml").write_text(RECIPE)
    words = [sys.executable, "-m", "semlink.cli", "bench", "mine/two.toml", "--out", "out", "--workers", "2"]
    environment = os.environ | {"SEMLINK_STORE": "store"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder / "said.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return folder


@pytest.fixture
def first(folder) -> Said:
    """What the first run said."""
    return Said(*json.loads((folder / "said.json").read_text()))


@pytest.fixture
def home(folder, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, in which a test is and which it may damage."""
    shutil.copytree(folder, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("SEMLINK_STORE", "store")
    return tmp_path / "home"


def cell(home: Path, label: str) -> Path:
    """The folder of a cell."""
    found = [
        path.parent for path in home.glob("store/cells/*/cell.json") if json.loads(path.read_text())["label"] == label
    ]
    assert len(found) == 1
    return found[0]


def stamps(home: Path) -> dict[str, int]:
    """When each file of the store was written last."""
    return {str(path): path.stat().st_mtime_ns for path in (home / "store").rglob("*") if path.name != "lock"}


def inaction(monkeypatch) -> None:
    """Nothing may be computed from here on."""

    def touched(*words, **names):
        raise AssertionError("something was computed")

    for step in steps.STEPS.values():
        monkeypatch.setattr(type(step), "run", touched)
        monkeypatch.setattr(type(step), "trial", touched)


# Running


def test_a_recipe_is_run_by_processes_and_its_table_record_and_figures_are_shown(folder, first):
    assert first.status == 0, first.err
    assert first.out.startswith("Does a second seed help?\n")
    assert re.search(r"^plain +\d", first.out, re.MULTILINE)
    assert re.search(r"^faded +\d", first.out, re.MULTILINE)
    assert "no cell is missing" in first.out
    named = re.search(r"^Record: (.*)$", first.out, re.MULTILINE)
    assert named
    assert named[1] == "store/benches/two/record.json"
    assert "Figure: store/benches/two/accuracy.png" in first.out.split("\n")
    assert not re.search(r"[┃│╭]", first.out)
    for label in (FIRST, *LABELS, LAST):
        assert f"started: {label}" in first.err
        assert re.search(rf"^{re.escape(label)}: done in ", first.err, re.MULTILINE)
    assert "two: 6 cells, 0 done" in first.err
    assert re.search(r"\[6/6, nothing left; best so far: accuracy [\d.]+ % at 12 dB \(", first.err)
    made = sorted(path.name for path in (folder / "out").iterdir())
    assert made == ["accuracy.pdf", "accuracy.png", "record.json"]
    for name in made:
        assert (folder / "out" / name).read_bytes() == (folder / "store/benches/two" / name).read_bytes()


def test_the_second_run_does_nothing_and_prints_the_same(home, first, semlink, monkeypatch):
    inaction(monkeypatch)
    before = stamps(home)
    again = semlink("bench", "mine/two.toml", "--out", "out", "--workers", "2")
    assert (again.status, again.out) == (0, first.out)
    assert again.err == "two: 6 cells, 6 done\n"
    drawn = {path: stamp for path, stamp in stamps(home).items() if path.endswith((".png", ".pdf", "graph.json"))}
    assert {k: v for k, v in (stamps(home) | drawn).items() if k not in drawn and before[k] != v}.keys() <= {
        str(home / "store" / "benches" / "two")
    }


def test_json_is_the_record_and_nothing_else(home, semlink, monkeypatch):
    inaction(monkeypatch)
    shown = semlink("bench", "mine/two.toml", "--json")
    assert shown.status == 0
    record = json.loads(shown.out)
    assert record == json.loads((home / "store/benches/two/record.json").read_text())
    assert (record["kind"], record["name"], record["variant"]) == ("bench", "two", "default")
    assert [each["state"] for each in record["cells"]] == ["done"] * 6
    assert shown.out.count("\n") == 1
    of_show = semlink("bench", "show", "mine/two.toml", "--json", "--out", "shown.json")
    assert (of_show.out, of_show.err) == (shown.out, "")
    assert json.loads((home / "shown.json").read_text()) == record


def test_a_recipe_is_found_from_any_folder(home, semlink, monkeypatch):
    inaction(monkeypatch)
    (home / "far" / "away").mkdir(parents=True)
    monkeypatch.chdir(home / "far" / "away")
    shown = semlink("bench", home / "mine" / "two.toml", "--store", home / "store", "--json")
    assert (shown.status, shown.err) == (0, "two: 6 cells, 6 done\n")
    assert not list((home / "far" / "away").iterdir())


def test_a_plan_computes_nothing_that_stays(home, semlink, monkeypatch):
    shutil.rmtree(home / "store" / "cells")
    shown = semlink("bench", "mine/two.toml", "--plan", "--workers", "3")
    assert shown.status == 0
    lines = shown.out.split("\n")
    assert lines[0] == "Does a second seed help? (two, variant default)"
    assert [line.split()[:4] for line in lines[2:6]] == [
        ["prepare", "1", "0", "1"],
        ["train", "2", "0", "2"],
        ["evaluate", "2", "0", "2"],
        ["draw", "1", "0", "1"],
    ]
    assert re.fullmatch(r"in all about .* with 3 at a time, .* of disk in store", lines[6])
    assert "measuring: train plain, seed 0" in shown.err
    assert not (home / "store" / "cells").exists()


def test_a_plan_of_what_is_done_measures_nothing(home, semlink, monkeypatch):
    (cell(home, LABELS[2]) / "done.json").unlink()
    (cell(home, LABELS[3]) / "done.json").unlink()
    (cell(home, LABELS[3]) / "failed.json").write_text('{"error": "no luck"}')
    text = semlink("bench", "mine/two.toml", "--plan").out
    assert "begun, and goes on from its checkpoint: evaluate plain, seed 0" in text
    assert "failed before, and is tried again: evaluate faded, seed 0 (no luck)" in text
    plan = json.loads(semlink("bench", "mine/two.toml", "--plan", "--json").out)
    assert (plan["recipe"], plan["variant"], plan["store"]) == ("two", "default", "store")
    states = {each["label"]: each["state"] for each in plan["cells"]}
    assert states == {
        FIRST: "done",
        LAST: "done",
        **dict(zip(LABELS, ["done", "done", "begun", "failed"], strict=True)),
    }
    assert all(each["seconds"] > 0 and each["disk_bytes"] > 0 for each in plan["cells"])
    assert not (cell(home, LABELS[2]) / "done.json").exists()


def test_what_nothing_is_left_of_is_planned_without_a_trial(home, semlink, monkeypatch):
    inaction(monkeypatch)
    assert semlink("bench", "mine/two.toml", "--plan").out.endswith("nothing is left to do\n")


def test_a_variant_shares_what_is_the_same_and_has_a_record_of_its_own(home, semlink):
    words = ["mine/two.toml", "--variant", "one"]
    assert semlink("bench", "show", *words).refused("(variant one) has not been run here; run it: semlink bench")
    shown = semlink("bench", *words, "--engine", "in-process", "--json")
    assert shown.status == 0, shown.err
    assert "two: 6 cells, 3 done" in shown.err  # the images and the trainings
    record = json.loads(shown.out)
    assert record["variant"] == "one"
    assert {row["snr_db"] for row in record["rows"]} == {12.0}
    assert (home / "store/benches/two@one/record.json").is_file()
    compared = semlink("bench", "compare", "mine/two.toml", "mine/two.toml@one")
    assert compared.status == 0
    assert "  recipe.evaluation.snr_db: " in compared.out
    assert "only in the first: Accuracy (%) at 4 dB of plain; faded" in compared.out
    assert "of 2 numbers of both 2 are equal, 0 differ significantly" in compared.out


# Showing


def test_show_prints_the_table_and_computes_nothing(home, first, semlink, monkeypatch):
    inaction(monkeypatch)
    monkeypatch.setenv("SEMLINK_DATA", str(home / "nowhere"))
    shown = semlink("bench", "show", "mine/two.toml")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.rstrip() == first.out[: first.out.index("Record: ")].rstrip()


def test_show_names_the_cells_that_are_missing(home, semlink):
    (cell(home, LABELS[2]) / "done.json").unlink()
    shutil.rmtree(cell(home, LABELS[1]))
    (cell(home, LABELS[3]) / "done.json").unlink()
    (cell(home, LABELS[3]) / "failed.json").write_text('{"error": "no luck"}')
    shown = semlink("bench", "show", "mine/two.toml")
    assert (shown.status, shown.err) == (0, "")
    for line in (
        "missing: 3 of 6 cells; 'semlink bench' makes them",
        "  train faded: not begun, seed 0",
        "  evaluate plain: begun, seed 0",
        "  evaluate faded: failed (no luck), seed 0",
    ):
        assert any(each.startswith(line.split(";")[0]) for each in shown.out.split("\n")), line


# Failing


def test_a_failed_cell_is_status_1_and_told_with_its_log(home, semlink, monkeypatch):
    for label in LABELS[::2]:
        shutil.rmtree(cell(home, label))

    def broken(*words):
        raise RuntimeError("it\nbroke")

    monkeypatch.setattr(steps.Train, "run", broken)
    shown = semlink("bench", "mine/two.toml", "--engine", "in-process")
    assert shown.status == 1
    folder = cell(home, LABELS[0]).relative_to(home)
    last = shown.err.split("\n")[-3:]
    assert last[0] == f"failed: {LABELS[0]}: it broke; its log is {folder}/log.txt"
    assert last[1:] == ["1 cells wait for those; the same command tries again", ""]
    assert "RuntimeError: it\nbroke" in (home / folder / "log.txt").read_text()
    assert "Traceback" not in shown.err
    assert re.search(r"^faded +\d", shown.out, re.MULTILINE)  # what there is, is shown
    assert "missing: 2 of 6 cells" in shown.out
    monkeypatch.undo()
    monkeypatch.chdir(home)
    monkeypatch.setenv("SEMLINK_STORE", "store")
    again = semlink("bench", "mine/two.toml", "--engine", "in-process")
    assert again.status == 0
    assert "no cell is missing" in again.out


@pytest.mark.parametrize("damage", ["evaluate.json", "evaluate.safetensors", "done.json"])
def test_a_damaged_cell_is_set_aside_and_made_anew_with_the_same_numbers(home, semlink, first, damage):
    folder = cell(home, LABELS[2])
    path = folder / damage
    path.write_bytes(path.read_bytes()[:-20])
    before = json.loads((home / "out" / "record.json").read_text())
    shown = semlink("bench", "mine/two.toml", "--engine", "in-process", "--json")
    assert shown.status == 0
    aside = Path(f"store/cells/{folder.name}.damaged-1")
    assert f"{LABELS[2]} is damaged and is made anew; the old files are in {aside}" in shown.err.split("\n")
    assert (aside / damage).is_file()
    after = json.loads(shown.out)
    assert [(r["link"], r["seeds"]) for r in after["rows"]] == [(r["link"], r["seeds"]) for r in before["rows"]]


def test_interrupting_tells_that_the_same_command_resumes(home, semlink, monkeypatch):
    def interrupted(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    shown = semlink("bench", "mine/two.toml")
    assert (shown.status, shown.out) == (130, "")
    assert shown.err.startswith("error: interrupted;")


# Bad input


def typo(home: Path, before: str, after: str) -> None:
    path = home / "mine" / "two.toml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))


def line_of(text: str) -> int:
    return RECIPE[: RECIPE.index(text)].count("\n") + 1


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            'scheme = "deepjscc"\nchannel',
            'scheme = "deepjsc"\nchannel',
            "unknown scheme 'deepjsc'; did you mean 'deepjscc'",
        ),
        ('channel = "rayleigh"', 'chanel = "rayleigh"', "did you mean 'channel'"),
        ('channel = "rayleigh"', 'channel = "raileigh"', "unknown channel 'raileigh'; did you mean 'rayleigh'"),
        ("draws = 1", "draws = 0", "draws"),
        ("draws = 1", 'draws = "one"', "draws"),
        ("draws = 1", "draws = ", "not TOML"),
        ('metrics = ["accuracy"]', 'metrics = ["acuracy"]', "unknown metric 'acuracy'; did you mean 'accuracy'"),
    ],
)
def test_a_mistake_in_a_recipe_is_told_with_file_and_line(home, semlink, before, after, said):
    typo(home, before, after)
    place = f"error: mine/two.toml, line {line_of(before)}: "
    stored = stamps(home)
    for verb in (["bench"], ["bench", "show"]):
        shown = semlink(*verb, "mine/two.toml")
        assert shown.refused(said), shown.err
        assert shown.err.startswith(place), shown.err
    assert stamps(home) == stored


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench"], "'semlink bench' needs NAME"),
        (["bench", "strat"], "unknown bench 'strat'; did you mean 'start'"),
        (["bench", "mine/tow.toml"], "tow.toml"),
        (["bench", "mine"], "mine is a folder; give a .toml file"),
        (["bench", "mine/two.toml", "--variant", "on"], "unknown variant of mine/two.toml 'on'; did you mean 'one'"),
        (["bench", "mine/two.toml", "--workers", "0"], "--workers is 0: at least 1 is needed"),
        (["bench", "mine/two.toml", "--engine", "thread"], "thread"),
        (["bench", "mine/two.toml", "--device", "tpu"], "unknown device 'tpu'"),
        (
            ["bench", "mine/two.toml", "--out", "mine/two.toml"],
            "--out is mine/two.toml, which is a file; give a folder",
        ),
        (["bench", "mine/two.toml", "--store", "mine"], "mine is not empty and not a store"),
        (["bench", "mine/two.toml", "--store", "mine/two.toml"], "the store mine/two.toml is a file"),
        (["bench", "mine/two.toml", "--adopt", "mine"], "mine is not a run folder"),
        (["bench", "mine/two.toml", "--paln"], "did you mean '--plan'"),
        (
            ["bench", "show", "start"],
            "recipe 'start' (variant default) has not been run here; run it: semlink bench start",
        ),
        (["bench", "show", "mine/two.toml", "--store", "nowhere"], "there is no store at nowhere"),
        (["bench", "compare", "out/record.json"], "'semlink bench compare' needs SECOND"),
        (["bench", "compare", "out/record.json", "out/nothing.json"], "out/nothing.json cannot be read: No such file"),
        (["bench", "compare", "out/record.json", "out"], "out is a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(home, semlink, words, said):
    before = stamps(home)
    shown = semlink(*words)
    assert shown.refused(said), (shown.status, shown.out, shown.err)
    assert stamps(home) == before
    assert not (home / "nowhere").exists()


def test_a_recipe_that_changed_since_it_was_run_is_not_shown_with_old_numbers(home, semlink):
    typo(home, "snr_db = [12, 4]", "snr_db = [12, 3]")
    assert semlink("bench", "show", "mine/two.toml").refused(
        "recipe 'two' has changed since it was run; run it: semlink"
    )


def test_a_store_of_a_newer_version_is_left_alone(home, semlink):
    (home / "store" / "store.json").write_text('{"format": 99}')
    before = stamps(home)
    for words in (["bench", "mine/two.toml"], ["bench", "show", "mine/two.toml"], ["bench", "mine/two.toml", "--plan"]):
        assert semlink(*words).refused(
            "the store store has format 99, this Semlink works with format 1; use the Semlink"
        )
    assert stamps(home) == before


def damage_record(home: Path, kind: str) -> Path:
    """Damage a record file that was copied out of the store."""
    path = home / "out" / "record.json"
    text = path.read_text()
    content = json.loads(text)
    damaged = {
        "truncated": text[: len(text) // 2],
        "empty": "",
        "binary": "\0\1",
        "newer": json.dumps(content | {"format": 99}),
        "field": json.dumps(content | {"rows": [{"link": 3}]}),
        "kind": (cell(home, LABELS[0]) / "run" / "record.json").read_text(),
    }
    path.write_text(damaged[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "out/record.json is not a Semlink record, or is damaged"),
        ("empty", "out/record.json is not a Semlink record, or is damaged"),
        ("binary", "out/record.json is not a Semlink record, or is damaged"),
        ("newer", "out/record.json has format 99, made by a newer Semlink"),
        ("field", "out/record.json is damaged: field 'rows"),
        ("kind", "out/record.json is damaged: field"),
    ],
)
def test_a_damaged_record_is_told_in_one_line(home, semlink, kind, said):
    damage_record(home, kind)
    shown = semlink("bench", "compare", "out/record.json", "mine/two.toml")
    assert shown.refused(said), shown.err


@pytest.mark.parametrize(
    ("label", "name", "text", "said"),
    [
        (LABELS[2], "evaluate.json", "{", "evaluate.json is not a Semlink record, or is damaged"),
        (LABELS[3], "evaluate.safetensors", "", "evaluate.safetensors is damaged"),
        (LABELS[0], "run/record.json", '{"format": 99}', "record.json has format 99, made by a newer Semlink"),
        (LABELS[0], "done.json", '{"files": ', "done.json is damaged: a JSON object is expected; remove its folder"),
    ],
)
def test_a_damaged_cell_is_told_by_show_in_one_line(home, semlink, label, name, text, said):
    folder = cell(home, label)
    (folder / name).write_text(text)
    shown = semlink("bench", "show", "mine/two.toml")
    assert shown.refused(said), (shown.status, shown.out, shown.err)
    assert f"store/cells/{folder.name}/{name}" in shown.err


def test_a_damaged_graph_is_told_with_what_mends_it(home, semlink, monkeypatch):
    path = home / "store/benches/two/graph.json"
    for text in ("", "[]", "{}", path.read_text()[:-9], '{"format": 2, "recipe_sha256": "", "cells": [{}]}'):
        path.write_text(text)
        assert semlink("bench", "show", "mine/two.toml").refused("graph.json is damaged; run it: semlink bench two")
    inaction(monkeypatch)
    assert semlink("bench", "mine/two.toml").status == 0
    assert semlink("bench", "show", "mine/two.toml").status == 0


# Adopting, and code that changed


def test_a_run_of_semlink_train_is_adopted_in_place_of_training(home, semlink, monkeypatch):
    shutil.copytree(cell(home, LABELS[0]) / "run", home / "run")

    def trained(*words):
        raise AssertionError("it was trained")

    monkeypatch.setattr(steps.Train, "run", trained)
    words = ["mine/two.toml", "--store", "other", "--plan", "--json"]
    shown = semlink("bench", *words, "--adopt", "run")
    assert shown.status == 0
    assert "run is taken as train plain, seed 0" in shown.err
    states = {each["label"]: each["state"] for each in json.loads(shown.out)["cells"]}
    assert states == {LABELS[0]: "done", **dict.fromkeys([FIRST, *LABELS[1:], LAST], "new")}
    (home / "run" / "weights.safetensors").write_bytes(b"")
    assert "damaged" in semlink("bench", *words, "--adopt", "run").err
