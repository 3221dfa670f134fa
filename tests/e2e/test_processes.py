# SPDX-License-Identifier: Apache-2.0
"""A link that two processes train: what happens when one of them fails or dies, and the way on from there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

#: DeepJSCC; FAIL="RANK WHAT" raises an error or a signal in one process, in the twelfth of sixteen steps.
FRAGILE = """
import builtins, os, signal
from semlink import register_scheme
from semlink._errors import SemlinkError
from semlink.schemes import DeepJSCC

@register_scheme("fragile")
class Fragile(DeepJSCC):
    step = 0

    def transmit(self, images, generator):
        self.step += self.training
        rank, _, what = os.environ.get("FAIL", "").partition(" ")
        if self.training and self.step == 12 and os.environ.get("LOCAL_RANK") == rank:
            if what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, what))
            raise {"SemlinkError": SemlinkError, **vars(builtins)}[what]("planned")
        return super().transmit(images, generator)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains in two processes; returns when all have ended, for they hold its standard error."""
    plugin = tmp_path_factory.mktemp("plugin") / "fragile.py"
    plugin.write_text(FRAGILE)

    def train(folder: Path, *launcher: str, fail: str = "", devices: int = 2) -> subprocess.CompletedProcess[str]:
        words = ["train", "fragile", "--preset", "smoke", "--precision", "fp32", "--device", "cpu"]
        words += ["--devices", str(devices), "--out", str(folder)]
        command = [sys.executable, *launcher, "-m", "semlink.cli", *words]
        environment = {"OMP_NUM_THREADS": "1", "SEMLINK_PLUGINS": str(plugin), "FAIL": fail}
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | environment
        )
        assert "terminate called" not in said.stderr
        assert said.returncode != -6, said.stderr  # SIGABRT
        return said

    return train


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    said = run(folder)
    assert said.returncode == 0, said.stderr
    return folder


LOST = "error: another process of this training failed or was lost; mend what it reported, and the same command"


@pytest.mark.parametrize(
    ("fail", "status", "words"),
    [
        ("0 SemlinkError", 2, ["error: planned", LOST]),
        ("1 ValueError", 2, ["ValueError: planned", LOST]),
        ("1 SIGKILL", 2, [LOST]),
        ("0 SIGKILL", -9, [LOST]),
    ],
)
def test_when_one_process_fails_both_end_and_say_why(run, tmp_path, fail, status, words):
    said = run(tmp_path / "run", fail=fail)
    assert said.returncode == status, said.stderr
    assert all(any(word in line for line in said.stderr.splitlines()) for word in words), said.stderr
    assert said.stdout == ""
    assert json.loads((tmp_path / "run" / "checkpoint.json").read_text())["epoch"] == 1
    assert not (tmp_path / "run" / "record.json").exists()


def test_torchrun_goes_on_from_there_and_ends_with_the_same_bits(run, whole, tmp_path):
    folder = tmp_path / "run"
    assert run(folder, *TORCHRUN, fail="1 SIGKILL").returncode == 1
    said = run(folder, *TORCHRUN)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("Run folder") == 1
    assert (folder / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert json.loads((folder / "record.json").read_text())["machine"]["processes"] == 2
    said = run(folder, *TORCHRUN)  # done already: neither waits for the other
    assert said.returncode == 0, said.stderr


def test_torchrun_must_start_as_many_processes_as_are_asked_for(run, tmp_path):
    said = run(tmp_path / "run", *TORCHRUN, devices=1)
    assert said.returncode == 1
    assert "error: torchrun started 2 processes for a training in 1; make --devices the same" in said.stderr
