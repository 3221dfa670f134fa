# SPDX-License-Identifier: Apache-2.0
"""Where cells are done, and what may go wrong there: killed processes, full disks, locks, two runners at once."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from semlink._files import Busy, write_text
from semlink.bench import engines, runner, work
from semlink.bench.code import modules_sha256
from semlink.bench.engines import Ended, InProcess, Processes
from semlink.bench.graph import Cell, Graph, build
from semlink.bench.recipes import load
from semlink.bench.steps import STEPS, Step, Trial
from semlink.bench.store import Store
from semlink.training import Moment

CPU = torch.device("cpu")
NO_SPACE = os.strerror(errno.ENOSPC)


class Board:
    """Keeps what it is shown."""

    def __init__(self):
        self.notes, self.moments, self.ends = [], [], {}

    def begin(self, graph, waiting, slots):
        self.waiting, self.slots = [each.name for each in waiting], slots

    def start(self, cell):
        return self.moments.append

    def end(self, cell, result, message):
        self.ends.setdefault(cell.label, []).append((result, message))

    def note(self, text):
        self.notes.append(text)


class Light(Step):
    """Work that takes no time: writes the label of its cell, and of those it builds on."""

    files = ("result", "half")

    def __init__(self):
        self.done, self.hinder = [], lambda spec: None

    def modules(self, spec):
        return ()

    def run(self, spec, inputs, folder, device, watch):
        self.hinder(spec)
        self.done.append(spec["name"])
        for file in self.files:
            write_text(folder / file, spec["name"] + "".join((path / "result").read_text() for path in inputs.values()))
        watch(spec["name"])

    def trial(self, spec, inputs, device):
        return Trial("0" * 64, 1.0, 1)


@pytest.fixture
def light(monkeypatch) -> Light:
    step = Light()
    monkeypatch.setitem(STEPS, "train", step)
    monkeypatch.setattr(runner, "_WAIT_SECONDS", 0.005)
    monkeypatch.setattr(runner, "_BUSY_SECONDS", 0.02)
    return step


def cell(name: str, **inputs: str) -> Cell:
    return Cell(f"train-{name:0>16}-00000000", "train", name, modules_sha256(), {"name": name}, inputs, name, None, 0)


def chain() -> list[Cell]:
    first = cell("first")
    return [first, cell("other"), cell("heir", link=first.name)]


def run(store: Store, cells: list[Cell], engine, board: Board | None = None) -> runner.Outcome:
    return runner.run(SimpleNamespace(cells=cells), store, engine, board or Board())


def contents(store: Store) -> dict[str, str]:
    return {f"{path.parent.name}/{path.name}": path.read_text() for path in store.root.rglob("result")}


# In this process


def test_cells_are_done_in_this_process_one_after_the_other(tmp_path, light):
    store, board, cells = Store(tmp_path / "s"), Board(), chain()
    outcome = run(store, cells, InProcess(CPU), board)
    assert light.done == board.moments == ["first", "other", "heir"]
    assert outcome.made == board.waiting == [each.name for each in cells]
    assert board.slots == 1
    assert (store.folder(cells[2].name) / "half").read_text() == "heirfirst"
    done = store.done(cells[2].name)
    assert (done["label"], done["inputs"]) == (cells[2].label, {"link": cells[0].name})
    assert set(done["files"]) == {"result", "half"}
    assert done["witness"]["sha256"] == "0" * 64


def test_an_error_in_a_cell_is_told_in_one_line_and_its_log_tells_more(tmp_path, light):
    def hinder(spec):
        if spec["name"] == "first":
            raise ValueError("two\nlines")
        if spec["name"] == "other":
            raise RuntimeError

    light.hinder = hinder
    store, board, cells = Store(tmp_path / "s"), Board(), chain()
    outcome = run(store, cells, InProcess(CPU), board)
    assert outcome.failed == {cells[0].name: "two lines", cells[1].name: "RuntimeError"}
    assert outcome.blocked == [cells[2].name]
    assert board.ends[cells[0].label] == [("failed", "two lines")]
    log = (store.folder(cells[0].name) / "log.txt").read_text()
    assert "ValueError: two\nlines" in log
    assert "in hinder" in log
    assert not (store.folder(cells[2].name)).exists()


def test_code_that_changes_under_a_bench_is_not_taken_for_what_was_planned(tmp_path, light, monkeypatch):
    store, cells = Store(tmp_path / "s"), chain()
    monkeypatch.setattr(work, "modules_sha256", lambda *modules: "f" * 64)
    outcome = run(store, cells, InProcess(CPU))
    assert light.done == []
    assert set(outcome.failed.values()) == {"the code has changed since this bench was started; start it again"}


# Processes that were exchanged for small programs


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script in the place of Python; its words are ``-m semlink.bench.work STORE CELL DEVICE``."""

    def write(text: str) -> None:
        path = tmp_path / "program"
        path.write_text(f'#!/bin/sh\ncell="$3/cells/$4"\n{text}\n')
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    monkeypatch.setattr(runner, "_WAIT_SECONDS", 0.005)
    monkeypatch.setattr(runner, "_BUSY_SECONDS", 0.02)
    return write


DONE = 'echo \'{"files": {}}\' > "$cell/done.json"'


def test_what_a_process_says_at_its_end_is_what_came_of_its_cell(tmp_path, program):
    names = ["killed", "fails", "lies", "good"]
    program(f"""
echo "word of $4"
case "$4" in
  *killed*) kill -9 $$;;
  *fails*) echo '{{"error": "out of luck"}}' > "$cell/failed.json"; exit 1;;
  *lies*) exit 0;;
  *good*) {DONE}; exit 1;;
esac""")
    store, board = Store(tmp_path / "s"), Board()
    cells = [cell(name) for name in names]
    cells += [cell(f"heir-{each.link}", link=each.name) for each in cells]
    outcome = run(store, cells[:5] + cells[7:], Processes(CPU, 2), board)
    silent = "its process ended without a word; it may have been killed"
    assert outcome.failed == {cells[0].name: silent, cells[1].name: "out of luck", cells[2].name: silent}
    assert outcome.made == [cells[3].name, cells[7].name]
    assert outcome.blocked == [cells[4].name]
    assert [store.state(each.name) for each in cells[:4]] == ["failed", "failed", "failed", "done"]
    assert store.failure(cells[0].name) == silent
    assert (store.folder(cells[0].name) / "log.txt").read_text() == f"word of {cells[0].name}\n"


def test_what_a_try_left_behind_is_not_taken_for_the_next_ones(tmp_path, program, monkeypatch):
    store, cells, seen = Store(tmp_path / "s"), [cell("a")], []
    moment = json.dumps(asdict(Moment(1, 2, 0.5, 1.0, {}, {})))
    program(f"""
echo '{moment}' > "$cell/progress.json"
echo half > "$cell/.result.x.part"; echo '{{"error": "out of luck"}}' > "$cell/failed.json"; exit 1""")
    assert run(store, cells, Processes(CPU, 1)).failed == {cells[0].name: "out of luck"}
    program("sleep 0.1; kill -9 $$")
    board = Board()
    board.start = lambda cell: seen.append
    assert run(store, cells, Processes(CPU, 1), board).failed == {cells[0].name: engines._SILENT}
    assert seen == []
    assert not list(store.root.rglob("*.part"))


def test_a_cell_that_another_process_holds_is_left_to_it_and_taken(tmp_path, program):
    program(f'if mkdir "$3/first"; then exit 3; fi; {DONE}')
    store, board, cells = Store(tmp_path / "s"), Board(), [cell("a")]
    outcome = run(store, cells, Processes(CPU, 1), board)
    assert outcome.made == [cells[0].name]
    assert [result for result, _ in board.ends[cells[0].label]] == ["busy", "done"]


def test_no_more_processes_than_slots_and_no_slot_is_idle(tmp_path, program):
    program(f'echo "+" >> "$3/order"; sleep 0.1; echo "-" >> "$3/order"; {DONE}')
    store, cells = Store(tmp_path / "s"), [cell(f"{i}") for i in range(7)]
    assert len(run(store, cells, Processes(CPU, 3)).made) == 7
    at_work, most = 0, 0
    for sign in (store.root / "order").read_text().split():
        at_work += 1 if sign == "+" else -1
        most = max(most, at_work)
    assert (at_work, most) == (0, 3)


def test_what_interrupts_a_bench_ends_its_processes(tmp_path, program):
    program(f'case "$4" in *quick*) {DONE};; *) exec sleep 60;; esac')

    class Interrupted(Board):
        def end(self, cell, result, message):
            raise KeyboardInterrupt

    engine = Processes(CPU, 3)
    with pytest.raises(KeyboardInterrupt):
        run(Store(tmp_path / "s"), [cell("slow"), cell("slower"), cell("quick")], engine, Interrupted())
    assert [held.process.returncode for held in engine.busy] == [-signal.SIGKILL, -signal.SIGKILL, 0]


def test_a_process_that_cannot_be_started_is_a_failed_cell(tmp_path, program, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    store, cells = Store(tmp_path / "s"), chain()
    outcome = run(store, cells, Processes(CPU, 2))
    assert outcome.failed.keys() == {cells[0].name, cells[1].name}
    assert all(store.state(name) == "failed" for name in outcome.failed)
    assert outcome.blocked == [cells[2].name]


# Processes that never were


@pytest.fixture
def started(monkeypatch):
    """The processes that would have been started; each is at work until ``status`` is set."""
    found = []

    class Process:
        def __init__(self, words, **settings):
            self.words, self.settings, self.status = words, settings, None
            found.append(self)

        def poll(self):
            return self.status

    monkeypatch.setattr(subprocess, "Popen", Process)
    return found


def start(engine: Processes, store: Store, name: str, watch=lambda moment: None):
    store.claim(name, {})
    return engine.start(store, name, watch)


def devices(started) -> list[str]:
    return [process.words[-1] for process in started]


def test_cuda_devices_are_shared_out_among_slots_and_a_free_slot_is_used_again(tmp_path, started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    store, engine = Store(tmp_path / "s"), Processes(torch.device("cuda"))
    assert engine.slots == 3
    for name in "abc":
        start(engine, store, name)
    assert devices(started) == ["cuda:0", "cuda:1", "cuda:2"]
    started[1].status = 0
    start(engine, store, "d")
    assert devices(started)[3:] == ["cuda:1"]


def test_more_slots_than_cuda_devices_begin_again_with_the_first(tmp_path, started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    store, engine = Store(tmp_path / "s"), Processes(torch.device("cuda"), 5)
    for name in "abcde":
        start(engine, store, name)
    assert devices(started) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


def test_the_device_that_was_asked_for_is_every_cells(tmp_path, started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for wanted in ("cuda:1", "cpu"):
        store, engine = Store(tmp_path / wanted), Processes(torch.device(wanted), 2)
        for name in "ab":
            start(engine, store, name)
        assert devices(started)[-2:] == [wanted] * 2


def test_there_are_as_many_slots_as_cores_or_cuda_devices_but_no_more_than_eight(monkeypatch):
    for cores, slots in ((1, 1), (3, 3), (8, 8), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        monkeypatch.setattr(torch.cuda, "device_count", lambda cores=cores: cores)
        assert Processes(CPU).slots == Processes(torch.device("cuda")).slots == slots
    assert Processes(CPU, 20).slots == 20


def test_a_process_has_one_thread_and_a_pipe_that_ends_with_its_parent(tmp_path, started, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SEMLINK_DATA", "/somewhere")
    store = Store(tmp_path / "s")
    start(Processes(CPU, 1), store, "a")
    settings = started[0].settings
    assert started[0].words == [sys.executable, "-m", "semlink.bench.work", str(store.root), "a", "cpu"]
    assert settings["stdin"] == subprocess.PIPE
    assert settings["env"]["OMP_NUM_THREADS"] == settings["env"]["MKL_NUM_THREADS"] == "1"
    assert settings["env"]["SEMLINK_DATA"] == "/somewhere"
    assert settings["stdout"].name == settings["stderr"].name == str(store.folder("a") / "log.txt")


def test_each_moment_of_a_process_is_shown_once(tmp_path, started):
    store, seen = Store(tmp_path / "s"), []
    task = start(Processes(CPU, 1), store, "a", seen.append)
    path = store.folder("a") / "progress.json"
    moments = [Moment(epoch, 2, epoch / 2, 2.5, {"loss": 1 / epoch}, {}) for epoch in (1, 2)]
    assert (task.poll(), seen) == (None, [])
    for said in ("", "{", "[1]", '{"epoch": 1}', "null"):  # half written, or by another version
        path.write_text(said)
        assert task.poll() is None
    for each in moments:
        path.write_text(json.dumps(asdict(each)))
        for _ in range(3):
            assert task.poll() is None
    assert seen == moments
    for status, result in ((0, "done"), (1, "failed"), (3, "busy"), (-9, "failed"), (2, "failed")):
        started[0].status = status
        assert task.poll() == result


# Real processes


RECIPE = """
title = "Two"
[defaults]
preset = "smoke"
precision = "fp32"
[links.one]
scheme = "deepjscc"
[links.two]
scheme = "deepjscc"
seeds = [1]
[evaluation]
snr_db = [12]
draws = 1
metrics = ["accuracy"]
"""


class Deadly(Processes):
    """Kills the process of a cell at once."""

    def __init__(self, victim: str) -> None:
        super().__init__(CPU, 2)
        self.victim, self.pids = victim, []

    def start(self, store, name, watch):
        task = super().start(store, name, watch)
        self.pids.append(task.process.pid)
        if name == self.victim:
            task.process.send_signal(signal.SIGKILL)
        return task


def test_a_killed_process_sinks_its_own_cells_and_the_next_run_makes_them(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    store = Store(tmp_path / "s")
    graph = build(load(str(tmp_path / "r.toml")), store)
    wanted = [("prepare", None), ("train", "one"), ("train", "two"), ("evaluate", "one")]
    graph = Graph(graph.recipe, [each for each in graph.cells if (each.step, each.link) in wanted])
    names = {(each.step, each.link): each.name for each in graph.cells}
    engine = Deadly(names["train", "one"])
    outcome = runner.run(graph, store, engine, Board())
    assert outcome.failed == {names["train", "one"]: "its process ended without a word; it may have been killed"}
    assert outcome.blocked == [names["evaluate", "one"]]
    assert outcome.made == [names["prepare", None], names["train", "two"]]
    assert len({*engine.pids, os.getpid()}) == 4
    said = json.loads((store.folder(names["train", "two"]) / "run" / "record.json").read_text())
    assert said["machine"]["threads"] == 1
    again = runner.run(graph, store, InProcess(CPU), Board())
    assert again.made == [names["train", "one"], names["evaluate", "one"]]
    assert again.failed == {}
    assert again.found == outcome.made


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait(condition, seconds: float = 300.0) -> bool:
    until = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return met


def held(store: Store, name: str) -> bool:
    try:
        with store.hold(name):
            return False
    except Busy:
        return True


def test_processes_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE.replace("smoke", "cpu"))  # minutes of training
    store = Store(tmp_path / "s")
    graph = build(load(str(tmp_path / "r.toml")), store)
    (train,) = (cell for cell in graph.cells if (cell.step, cell.link) == ("train", "one"))
    name, report = train.name, tmp_path / "pid"
    store.claim(name, runner._content(train))
    parent = os.fork()
    if parent == 0:  # as a bench is, but that it need not import everything first
        try:
            write_text(report, str(Processes(CPU, 1).start(store, name, print).process.pid))
            time.sleep(600)
        finally:
            os._exit(1)
    child = None
    try:
        assert wait(report.exists)
        child = int(report.read_text())
        begun = store.folder(name) / "run" / "recipe.json"
        assert wait(lambda: begun.exists() or store.state(name) == "failed")
        assert begun.exists(), store.failure(name)
        assert held(store, name)
        assert is_alive(child)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert wait(lambda: not is_alive(child), 60), "it goes on without its parent"
        assert store.state(name) == "begun"
        assert not held(store, name)
    finally:
        for process in filter(None, (parent, child)):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)


# Full disks


@pytest.fixture
def disk(monkeypatch):
    """A disk whose writes are counted from 1; it is full at those of which ``full`` says so."""
    state, fsync = SimpleNamespace(writes=0, full=lambda write: False), os.fsync

    def write(handle):
        state.writes += 1
        if state.full(state.writes):
            raise OSError(errno.ENOSPC, NO_SPACE)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", write)
    return state


def test_a_full_disk_fails_cells_with_its_name_and_the_next_run_goes_on(tmp_path, light, disk):
    whole = Store(tmp_path / "whole")
    before = disk.writes
    run(whole, chain(), InProcess(CPU))
    writes, failures = disk.writes - before, 0
    assert writes >= 3 * 4  # what it is for, two files, and that it is done
    for n in range(1, writes + 1):
        store, cells = Store(tmp_path / f"{n}"), chain()
        disk.writes, disk.full = 0, lambda write, first=n: write >= first
        outcome = run(store, cells, InProcess(CPU))
        assert outcome.failed, n
        assert all(NO_SPACE in message for message in outcome.failed.values())
        assert all(store.is_sound(name) for name in outcome.made)
        assert len(outcome.made) + len(outcome.failed) + len(outcome.blocked) == 3
        assert not list(store.root.rglob("*.part"))
        assert not [each for each in cells if store.state(each.name) == "done" and each.name not in outcome.made]
        failures += len(outcome.failed)
        disk.full = lambda write: False
        again = run(store, cells, InProcess(CPU))
        assert (again.failed, again.blocked, again.found) == ({}, [], outcome.made)
        assert contents(store) == contents(whole)
        assert all(store.is_sound(each.name) for each in cells)
    assert failures >= writes


def test_a_disk_that_is_full_for_a_moment_fails_one_cell_and_its_heirs(tmp_path, light, disk):
    def hinder(spec):
        if spec["name"] == "first":
            disk.full = lambda write, last=disk.writes + 1: write == last

    light.hinder = hinder
    store, cells = Store(tmp_path / "s"), chain()
    outcome = run(store, cells, InProcess(CPU))
    assert outcome.failed.keys() == {cells[0].name}
    assert NO_SPACE in store.failure(cells[0].name)
    assert outcome.made == [cells[1].name]
    light.hinder = lambda spec: None
    assert run(store, cells, InProcess(CPU)).made == [cells[0].name, cells[2].name]


def test_a_damaged_cell_that_cannot_be_set_aside_fails_with_its_heirs_and_not_the_rest(tmp_path, light, monkeypatch):
    store, cells = Store(tmp_path / "s"), chain()
    run(store, cells[:2], InProcess(CPU))
    (store.folder(cells[0].name) / "result").write_text("damaged")

    def full(name):
        raise OSError(errno.ENOSPC, NO_SPACE)

    with monkeypatch.context() as patch:
        patch.setattr(store, "set_aside", full)
        outcome = run(store, cells, InProcess(CPU))
    (message,) = outcome.failed.values()
    assert message.startswith("it is damaged, and cannot be set aside")
    assert NO_SPACE in message
    assert (outcome.found, outcome.blocked) == ([cells[1].name], [cells[2].name])
    assert not run(store, cells, InProcess(CPU)).failed


def test_a_folder_that_cannot_be_made_fails_its_cell_alone(tmp_path, light):
    store, cells = Store(tmp_path / "s"), chain()
    (store.root / "cells").mkdir()
    store.folder(cells[0].name).write_text("")  # where its folder would be
    outcome = run(store, cells, InProcess(CPU))
    assert outcome.made == [cells[1].name]
    assert outcome.failed.keys() == {cells[0].name}
    assert "File exists" in outcome.failed[cells[0].name]
    assert outcome.blocked == [cells[2].name]


# Locks, and two runners on one store

HOLDER = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


@pytest.fixture
def holder():
    """Starts a process that holds a cell until it is killed."""
    processes = []

    def begin(store: Store, name: str) -> subprocess.Popen:
        store.folder(name).mkdir(parents=True)
        words = [sys.executable, "-S", "-c", HOLDER, str(store.folder(name) / "lock")]
        processes.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        processes[-1].stdout.readline()
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_a_lock_whose_owner_is_dead_holds_nobody_up(tmp_path, light, holder):
    store, board, cells = Store(tmp_path / "s"), Board(), chain()
    dead = holder(store, cells[0].name)
    assert held(store, cells[0].name)
    dead.kill()
    dead.wait()
    assert (store.folder(cells[0].name) / "lock").exists()
    assert len(run(store, cells, InProcess(CPU), board).made) == 3
    assert board.notes == []


def test_a_cell_that_is_held_waits_for_its_owner_and_the_rest_does_not(tmp_path, light, holder):
    store, board, cells = Store(tmp_path / "s"), Board(), chain()
    owner = holder(store, cells[0].name)

    def hinder(spec):
        if spec["name"] == "other":  # so it was done before
            owner.kill()
            owner.wait()

    light.hinder = hinder
    outcome = run(store, cells, InProcess(CPU), board)
    assert light.done == ["other", "first", "heir"]
    assert outcome.failed == {}
    assert board.notes == ["train first, seed 0: another process is at it; what it makes is taken"]


def test_two_runners_on_one_store_do_each_cell_once_and_share_what_they_make(tmp_path, light):
    first, cells = cell("first"), []
    for i in range(6):
        cells += [cell(f"{i}"), cell(f"heir{i}", link=first.name)]
    cells, outcomes, gate = [first, *cells], {}, threading.Barrier(2)
    light.hinder = lambda spec: time.sleep(0.01)

    def go(name: str) -> None:
        store = Store(tmp_path / "s")
        gate.wait()
        outcomes[name] = run(store, cells, InProcess(CPU))

    threads = [threading.Thread(target=go, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(light.done) == sorted(each.link for each in cells)
    for outcome in outcomes.values():
        assert (outcome.failed, outcome.blocked) == ({}, [])
        assert sorted({*outcome.found, *outcome.made}) == sorted(each.name for each in cells)
    assert all(Store(tmp_path / "s").is_sound(each.name) for each in cells)


def test_what_is_over_has_nothing_to_stop():
    ended = Ended("failed", "words")
    ended.stop()
    assert (ended.poll(), ended.message) == ("failed", "words")
    assert Ended("failed").message == engines._SILENT
