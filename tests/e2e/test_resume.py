# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, at any moment, and resumed with the same command end as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from semlink import cli

# Importing torch takes seconds; so one process imports everything and forks for each command. A command may be told to
# kill itself at its n-th touch of the disk, where no timer would hit.
DRIVER = """
import dataclasses, json, os, pathlib, signal, sys
import torch, lightning_fabric, safetensors.torch
from semlink import bench, cli
from semlink.bench import presets

def longer(schedule):
    return dataclasses.replace(schedule, epochs={epochs})

smoke = presets.PRESETS["smoke"]
grey = dataclasses.replace(smoke.grey, link=longer(smoke.grey.link), attack=longer(smoke.grey.attack))
presets.PRESETS["smoke"] = dataclasses.replace(smoke, grey=grey, images=256)

touches = 0

def mortal(real, touch):
    def call(*args, **kwargs):
        global touches
        touches += 1
        if touches == touch:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call

print("ready", len(os.listdir("/proc/self/task")), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        sys.stdin.close()
        said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.fsync = mortal(os.fsync, order["touch"])
        for name in ("replace", "unlink", "mkdir"):
            setattr(pathlib.Path, name, mortal(getattr(pathlib.Path, name), order["touch"]))
        status = cli.main(order["argv"])
        print("touches:", touches, flush=True)
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Command:
    """One command line, run in a forked process."""

    def __init__(self, driver: subprocess.Popen[str], said: Path, argv: list[str], touch: int = 0) -> None:
        self.driver, self.said = driver, said
        self._write(json.dumps({"argv": argv, "said": str(said), "touch": touch}))
        self.pid = int(self._read())

    def _write(self, line: str) -> None:
        assert self.driver.stdin is not None
        self.driver.stdin.write(line + "\n")
        self.driver.stdin.flush()

    def _read(self) -> str:
        assert self.driver.stdout is not None
        return self.driver.stdout.readline()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> tuple[int, str]:
        """Return the exit status, negative for a signal, and all that was printed; then ``touches`` is set."""
        status, (said, _, touches) = int(self._read()), self.said.read_text().partition("touches: ")
        self.touches = int(touches or 0)
        return status, said


EPOCHS = 8
FILES = {"lock", "log.jsonl", "recipe.json", "record.json", "weights.safetensors"}


def start_driver(epochs: int) -> subprocess.Popen[str]:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(epochs=epochs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert driver.stdout is not None
    assert driver.stdout.readline().split() == ["ready", "1"]  # a process of several threads must not fork
    return driver


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    driver, said = start_driver(EPOCHS), tmp_path_factory.mktemp("said") / "said.txt"
    yield lambda argv, touch=0: Command(driver, said, argv, touch)
    driver.communicate(timeout=60)


def train(folder: Path) -> list[str]:
    return ["train", "deepjscc", "--data", "digits", "--preset", "smoke", "--precision", "fp32", "--out", str(folder)]


def attack(folder: Path) -> list[str]:
    return ["attack", str(folder), "--perceptual", "none", "--precision", "fp32", "--device", "cpu"]


class Whole(NamedTuple):
    """A run that was never killed, the seconds that start and epoch took, and how often it touched the disk."""

    folder: Path
    start_seconds: float
    epoch_seconds: float
    touches: int


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory) -> Whole:
    folder, begun = tmp_path_factory.mktemp("whole") / "run", time.perf_counter()
    command = launch(train(folder))
    status, said = command.wait()
    assert status == 0, said
    took = [row["epoch_seconds"] for row in json.loads((folder / "record.json").read_text())["history"]]
    spare = time.perf_counter() - begun - sum(took)
    return Whole(folder, spare, sum(took) / EPOCHS, command.touches)


def untimed(path: Path) -> dict:
    """A record without what a clock says."""
    record = json.loads(path.read_text())
    assert record.pop("timing")
    for row in record["history"]:
        assert row.pop("epoch_seconds") >= 0
    return record


def assert_same_run(folder: Path, whole: Path) -> None:
    assert (folder / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert untimed(folder / "record.json") == untimed(whole / "record.json")
    assert {path.name for path in folder.iterdir()} == FILES  # nothing half-made is left
    assert len((folder / "log.jsonl").read_text().splitlines()) == EPOCHS


def epochs_done(folder: Path) -> int:
    try:
        return json.loads((folder / "checkpoint.json").read_text())["epoch"]
    except FileNotFoundError:
        return 0


def test_a_run_leaves_exactly_the_documented_files(whole):
    assert {path.name for path in whole.folder.iterdir()} == FILES


def test_killed_at_random_moments(launch, whole, tmp_path):
    folder, chance, reached = tmp_path / "run", random.Random(1), []
    for life in range(10):
        before = epochs_done(folder)
        command = launch(train(folder))
        while life % 2 and epochs_done(folder) == before:  # every second one may finish an epoch first
            time.sleep(0.001)
        time.sleep(chance.uniform(0, whole.epoch_seconds if life % 2 else 0.6 * whole.start_seconds))
        command.send(signal.SIGKILL)
        status, said = command.wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL, said
        reached.append(epochs_done(folder))
    assert reached == sorted(reached)  # no epoch is ever lost
    assert len(reached) >= 8
    status, said = launch(train(folder)).wait()
    assert status == 0, said
    assert_same_run(folder, whole.folder)


def test_killed_at_every_touch_of_the_disk(launch, whole, tmp_path):
    folder, reached = tmp_path / "run", []
    for touch in range(1, whole.touches):
        status, said = launch(train(folder), touch).wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL, said
        reached.append(epochs_done(folder))
    assert len(reached) >= 8
    assert reached == sorted(reached)
    assert_same_run(folder, whole.folder)


def test_killed_while_the_results_are_written(launch, whole, tmp_path):
    folder, kills = tmp_path / "run", 0
    launch(train(folder), whole.touches - 12).wait()
    assert not (folder / "record.json").exists()
    for touch in range(1, 40):
        status, said = launch(train(folder), touch).wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL, said
        kills += 1
        assert epochs_done(folder) >= EPOCHS - 1 or (folder / "record.json").exists()
    assert kills >= 8
    assert_same_run(folder, whole.folder)


def test_an_attack_that_is_killed_resumes_too(launch, whole, tmp_path):
    command = launch(attack(whole.folder))
    status, said = command.wait()
    assert status == 0, said
    (first,) = whole.folder.glob("attack-*.json")
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder, ignore=shutil.ignore_patterns("attack-*"))
    half, kills = command.touches // 2, 0
    for touch in (half, half - 4, 4):
        status, said = launch(attack(folder), touch).wait()
        kills += status == -signal.SIGKILL
    assert kills >= 2
    status, said = launch(attack(folder)).wait()
    assert status == 0, said
    assert untimed(folder / first.name) == untimed(first)
    drawn = first.with_suffix(".safetensors")
    assert (folder / drawn.name).read_bytes() == drawn.read_bytes()
    assert {path.name for path in folder.iterdir()} == FILES | {first.name, drawn.name, first.stem}
    assert {path.name for path in (folder / first.stem).iterdir()} == {
        "lock",
        "log.jsonl",
        "record.json",
        "weights.safetensors",
    }


def test_one_run_has_one_owner_and_ctrl_c_ends_it_well(launch, whole, tmp_path):
    folder, other = tmp_path / "run", start_driver(EPOCHS)
    first = Command(other, tmp_path / "first.txt", train(folder))
    while epochs_done(folder) < 1:
        time.sleep(0.01)
    first.send(signal.SIGSTOP)  # alive, at whatever it is doing
    status, said = launch(train(folder)).wait()
    assert status == 2
    assert said == f"error: {folder} is in use by another semlink process; wait for it to end or choose another --out\n"
    first.send(signal.SIGCONT)
    first.send(signal.SIGINT)
    status, said = first.wait()
    assert status == 130
    assert said.splitlines()[-1] == "error: interrupted; every finished epoch is kept, and the same command resumes"
    assert "Traceback" not in said
    done = epochs_done(folder)
    assert 1 <= done < EPOCHS
    second = Command(other, tmp_path / "second.txt", train(folder))
    while epochs_done(folder) <= done:
        time.sleep(0.01)
    second.send(signal.SIGKILL)
    assert second.wait()[0] == -signal.SIGKILL
    status, said = launch(train(folder)).wait()  # the lock died with its owner
    assert status == 0, said
    assert_same_run(folder, whole.folder)
    other.communicate(timeout=60)


def test_the_installed_command_survives_kill_minus_nine(tmp_path):
    words = [sys.executable, "-m", "semlink.cli", *train(tmp_path / "killed")]
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "checkpoint.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "record.json").exists()
    subprocess.run(words, check=True, capture_output=True)
    assert cli.main(train(tmp_path / "whole")) == 0
    for name in ("weights.safetensors", "recipe.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert untimed(tmp_path / "killed" / "record.json") == untimed(tmp_path / "whole" / "record.json")
