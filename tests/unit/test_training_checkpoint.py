# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or absent whenever the process dies, damage named, a full disk survived."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from semlink._errors import SemlinkError
from semlink.nn import Optimiser
from semlink.training import checkpoint


def state_of(epoch: int):
    return {"epoch": epoch, "history": [{"epoch": i + 1} for i in range(epoch)]}, {
        "x": torch.full((64, 64), float(epoch))
    }


def save(folder: Path, epoch: int) -> None:
    checkpoint.save(folder, *state_of(epoch))


def loaded_epoch(folder: Path) -> int:
    found = checkpoint.load(folder)
    assert found is not None
    state, tensors = found
    assert torch.equal(tensors["x"], torch.full((64, 64), float(state["epoch"])))  # JSON and tensors belong together
    assert len(state["history"]) == state["epoch"]
    return state["epoch"]


def test_there_and_back(tmp_path):
    assert checkpoint.load(tmp_path) is None
    tensors = {
        "f": torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).T,
        "scalar": torch.tensor(7.0),
        "count": torch.tensor(2**40),
        "empty": torch.zeros(0, 3),
    }
    checkpoint.save(tmp_path, {"epoch": 0, "history": [], "more": "ü"}, tensors)
    found = checkpoint.load(tmp_path)
    assert found is not None
    state, back = found
    assert (state["epoch"], state["more"]) == (0, "ü")
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(back[name], value)
        assert back[name].dtype == value.dtype


def test_only_the_latest_is_kept_and_a_finished_run_keeps_none(tmp_path):
    for epoch in (1, 2, 3):
        save(tmp_path, epoch)
        assert loaded_epoch(tmp_path) == epoch
        assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 1
    checkpoint.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []
    checkpoint.remove(tmp_path)  # a second time does no harm


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs that touches the disk."""


def save_and_die(folder: Path, epoch: int, moment: int) -> bool:
    """Save, and die at the n-th touch of the disk; say if there was one."""
    touches, patch = 0, pytest.MonkeyPatch()

    def mortal(real):
        def call(*args, **kwargs):
            nonlocal touches
            touches += 1
            if touches >= moment:
                raise Killed
            return real(*args, **kwargs)

        return call

    patch.setattr(os, "fsync", mortal(os.fsync))
    for name in ("replace", "unlink", "chmod", "write_text"):
        patch.setattr(Path, name, mortal(getattr(Path, name)))
    try:
        save(folder, epoch)
    except Killed:
        return True
    finally:
        patch.undo()
    return False


def test_a_process_that_dies_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    outcomes = []
    for moment in range(1, 100):
        folder = tmp_path / str(moment)
        save(folder, 1)
        died = save_and_die(folder, 2, moment)
        outcomes.append(loaded_epoch(folder))
        checkpoint.sweep(folder, "checkpoint")
        assert not list(folder.glob(".*"))
        save(folder, 2)  # what a resumed run does next
        assert loaded_epoch(folder) == 2
        assert len(list(folder.iterdir())) == 2
        if not died:
            break
    assert len(outcomes) > 7
    assert outcomes == sorted(outcomes)  # the old one, until the new one stands
    assert {outcomes[0], outcomes[-1]} == {1, 2}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path, other: path.write_bytes(path.read_bytes()[:-20]), "checkpoint.json is damaged"),
        (lambda path, other: path.write_bytes(b""), "checkpoint.json is damaged"),
        (lambda path, other: path.write_bytes(b"\xff\xfe\x00"), "checkpoint.json is damaged"),
        (lambda path, other: path.write_text("[]"), "checkpoint.json is damaged"),
        (lambda path, other: path.write_text("{}"), "checkpoint.json is damaged"),
        (lambda path, other: path.write_text("3"), "checkpoint.json is damaged"),
        (lambda path, other: edit(path, tensors=7), "checkpoint.json is damaged"),
        (lambda path, other: edit(path, epoch=9), "checkpoint.json is damaged"),
        (lambda path, other: edit(path, history=None), "checkpoint.json is damaged"),
        (lambda path, other: edit(path, sha256=None), "checkpoint-0002.safetensors is damaged"),
        (lambda path, other: other.unlink(), "checkpoint-0002.safetensors is missing"),
        (lambda path, other: other.write_bytes(other.read_bytes()[:-1]), "checkpoint-0002.safetensors is damaged"),
        (lambda path, other: other.write_bytes(b""), "checkpoint-0002.safetensors is damaged"),
        (lambda path, other: flip(other), "checkpoint-0002.safetensors is damaged"),
    ],
)
def test_damage_is_named_and_nothing_is_deleted(tmp_path, damage, said):
    save(tmp_path, 2)
    damage(tmp_path / "checkpoint.json", tmp_path / "checkpoint-0002.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SemlinkError, match=said) as caught:
        checkpoint.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert f"remove {tmp_path} to start this run anew" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_file_with_the_right_sum_that_is_no_safetensors_file(tmp_path):
    from semlink._files import sha256_file

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(SemlinkError, match=r"x\.safetensors is not a safetensors file .*; do this"):
        checkpoint.load_tensors(path, sha256_file(path), "do this")


def test_a_disk_that_takes_no_more_leaves_the_earlier_checkpoint(tmp_path):
    save(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(
            SemlinkError, match=r"checkpoint-0002\.safetensors cannot be written .*free space"
        ) as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert loaded_epoch(tmp_path) == 1


@pytest.mark.parametrize("call", [1, 2])
def test_a_disk_that_is_full_at_the_flush_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, call):
    save(tmp_path, 1)
    calls = 0

    def fsync(handle):
        nonlocal calls
        calls += 1
        if calls == call:  # first of the tensors, second of the JSON
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left") as caught:
        save(tmp_path, 2)
    assert caught.value.errno == errno.ENOSPC
    assert loaded_epoch(tmp_path) == 1
    assert not list(tmp_path.glob(".*"))


def test_sweep_takes_half_made_files_of_the_names_given_only(tmp_path):
    mine = [".checkpoint-0003.safetensors.ab12.part", ".checkpoint.json.x.part", ".log.jsonl.q.part"]
    others = [".evaluate.json.x.part", "checkpoint-0003.safetensors", "log.jsonl", ".checkpoint", "x.part"]
    for name in mine + others:
        (tmp_path / name).touch()
    checkpoint.sweep(tmp_path, "checkpoint", "log.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    checkpoint.sweep(tmp_path / "nowhere", "checkpoint")


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimiser_comes_back_to_the_bit(tmp_path, kind):
    def made():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.LazyLinear(2)
        )
        layers(torch.zeros(2, 2, 8, 8))
        optimiser = Optimiser(kind, 0.05, 0.1).build(list(layers.parameters()))
        return layers, optimiser

    def step(layers, optimiser, seed):
        optimiser.zero_grad()
        layers(torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimiser.step()

    layers, optimiser = made()
    for seed in range(3):
        step(layers, optimiser, seed)
    packed = checkpoint.pack_optimiser("optimiser.1", optimiser)
    assert all(isinstance(value, torch.Tensor) for value in packed.values())
    checkpoint.save_tensors(tmp_path / "o.safetensors", packed)
    other, its = made()
    other.load_state_dict(layers.state_dict())
    decoys = {"optimiser.0.0.momentum_buffer": torch.ones(1), "optimiser.10.0.momentum_buffer": torch.ones(1)}
    checkpoint.unpack_optimiser("optimiser.1", its, load_file(tmp_path / "o.safetensors") | decoys)
    for seed in range(3, 6):
        step(layers, optimiser, seed)
        step(other, its, seed)
    for (name, a), b in zip(layers.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_an_optimiser_that_has_not_stepped_packs_to_nothing():
    optimiser = Optimiser("sgd").build([torch.nn.Parameter(torch.zeros(2))])
    assert checkpoint.pack_optimiser("o", optimiser) == {}
    checkpoint.unpack_optimiser("o", optimiser, {})
