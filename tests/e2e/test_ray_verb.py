# SPDX-License-Identifier: Apache-2.0
"""``semlink bench --engine ray``: addresses that nobody answers, and a machine without Ray."""

import socket
import sys

import pytest
from command import semlink

from semlink._errors import SemlinkError
from semlink.bench import ray_engine

ray = pytest.importorskip("ray")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "ray", "--address", f"127.0.0.1:{free_port()}"], "no Ray cluster answers at 127.0.0.1:"),
        (["--engine", "ray", "--address", "nowhere.invalid:6379"], "no Ray cluster answers at nowhere.invalid:6379"),
        (["--engine", "ray", "--address", "somewhere"], "--address is 'somewhere': HOST:PORT or auto is expected"),
        (["--address", "127.0.0.1:6379"], "the engine is 'processes'; add --engine ray"),
        (["--engine", "ray", "--workers", "2"], "--workers is of the engine 'processes'"),
    ],
)
def test_addresses_that_make_no_sense(tmp_path, words, said, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    found = semlink("bench", "start", "--store", tmp_path / "store", *words)
    assert (found.status, found.out) == (2, "")
    assert said in found.err
    assert "Traceback" not in found.err


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SemlinkError, match=r"Ray is not installed; install it with: pip install 'semlink\[ray\]'"):
        ray_engine.connect(None)
