# SPDX-License-Identifier: Apache-2.0
"""Run folders from the command line: whose they are, what is wrong with them, and what they never contain."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import Said, semlink
from safetensors import SafetensorError

from semlink.training import checkpoint, device, loop

SECRET = "5e" * 16 + "c0ffee" + "a7" * 13
OTHER = "11" * 32
WHILE_TRAINING = {"lock", "recipe.json", "log.jsonl"}


def train(folder: Path, *more: object, scheme: str = "deepjscc", precision: str = "fp32") -> Said:
    words = ["train", scheme, "--preset", "smoke", "--device", "cpu", "--precision", precision, "--out", folder]
    return semlink(*words, *more)


def evaluate(folder: Path, *more: object) -> Said:
    return semlink("evaluate", folder, "--snr-db", 12, "--draws", 1, "--device", "cpu", *more)


def attack(folder: Path, *more: object) -> Said:
    return semlink("attack", folder, "--perceptual", "none", "--device", "cpu", "--precision", "fp32", *more)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def untimed(path: Path) -> dict:
    record = json.loads(path.read_text())
    del record["timing"]
    for row in record["history"]:
        del row["epoch_seconds"]
    return record


def refused(said: Said, *words: str) -> None:
    """Bad input: exit status 2 and one line that says all of ``words``."""
    assert said.status == 2, said
    (line,) = (line for line in said.err.splitlines() if ": epoch " not in line)  # but for the progress
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert said.out == ""


def interrupt_at_the_end(monkeypatch) -> None:
    """Ctrl-C after the last epoch, when the weights are to be written."""

    def stop(path, tensors, metadata=None):
        if path.name == "weights.safetensors":
            raise KeyboardInterrupt
        return real(path, tensors, metadata)

    real = checkpoint.save_tensors
    monkeypatch.setattr(checkpoint, "save_tensors", stop)


@pytest.fixture(autouse=True)
def no_key_around(monkeypatch):
    monkeypatch.delenv("SEMLINK_KEY", raising=False)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A finished run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert train(folder).status == 0
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A run that was interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at_the_end(patch)
        said = train(folder)
    assert said.status == 130
    assert said.err.splitlines()[-1].startswith("error: interrupted")
    assert {path.name for path in folder.iterdir()} == WHILE_TRAINING | {
        "checkpoint.json",
        "checkpoint-0002.safetensors",
    }
    return folder


@pytest.fixture
def copy(tmp_path):
    def copied(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copied


# The same, and not the same


def test_the_same_seed_gives_the_same_record_and_another_seed_another(first, tmp_path):
    assert train(tmp_path / "again").status == 0
    assert train(tmp_path / "other", "--seed", 1).status == 0
    same, other = untimed(tmp_path / "again" / "record.json"), untimed(tmp_path / "other" / "record.json")
    assert same == untimed(first / "record.json")
    weights = [folder / "weights.safetensors" for folder in (first, tmp_path / "again", tmp_path / "other")]
    assert weights[0].read_bytes() == weights[1].read_bytes() != weights[2].read_bytes()
    assert same["history"] != other["history"]


def test_an_interrupted_run_ends_as_the_uninterrupted_one(first, half, copy):
    folder = copy(half)
    assert train(folder).status == 0
    assert untimed(folder / "record.json") == untimed(first / "record.json")
    assert (folder / "weights.safetensors").read_bytes() == (first / "weights.safetensors").read_bytes()


def test_a_finished_run_is_not_run_again(first, monkeypatch):
    monkeypatch.setattr(loop.Fit, "run", lambda *_: pytest.fail("trained again"))
    before = content(first)
    said = train(first, "--json")
    assert said.status == 0
    assert json.loads(said.out) == json.loads((first / "record.json").read_text())
    assert content(first) == before


def test_what_a_killed_process_left_is_cleared_away(first, half, copy):
    folder = copy(half)
    litter = [".checkpoint-0003.safetensors.abc.part", ".weights.safetensors.x.part", ".record.json.y.part"]
    for name in litter:
        (folder / name).write_bytes(b"half")
    assert train(folder).status == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in first.iterdir()}


def test_a_checkpoint_left_beside_the_record_is_cleared_away(first, half, copy):
    folder = copy(first)
    for path in half.glob("checkpoint*"):
        shutil.copy(path, folder)
    assert train(folder).status == 0
    assert not list(folder.glob("checkpoint*"))


def test_a_process_killed_over_its_first_file_leaves_a_folder_that_can_be_used(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / ".recipe.json.k2x.part").write_text('{"format"')
    assert train(folder).status == 0
    assert not list(folder.glob(".*"))


# Another run's folder, or nobody's


@pytest.mark.parametrize(
    ("more", "differing"),
    [
        (["--seed", 1], "seed 0 there, 1 here"),
        (["--snr-db", 11], "snr_db 12.0 there, 11.0 here"),
        (["--channel", "rician"], "channel 'awgn' there, 'rician' here"),
        (["--channel-uses", 32, "--seed", 4], "channel_uses 64 there, 32 here, seed 0 there, 4 here"),
        (["--task", "reconstruct"], "task 'classify' there, 'reconstruct' here"),
        (["--precision", "bf16"], "precision 'fp32' there, 'bf16' here"),
    ],
)
@pytest.mark.parametrize("state", ["first", "half"])
def test_another_recipe_in_the_folder_is_refused(request, state, more, differing):
    folder = request.getfixturevalue(state)
    before = content(folder)
    words = ["train", "deepjscc", "--preset", "smoke", "--device", "cpu", "--out", folder]
    words += [] if "--precision" in more else ["--precision", "fp32"]
    refused(semlink(*words, *more), f"{folder} holds another run ({differing}); choose another --out")
    assert content(folder) == before


def test_a_folder_that_is_no_run_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    refused(train(tmp_path), str(tmp_path), "is not empty and not a run folder; choose another --out")
    assert content(tmp_path) == {"thesis.tex": b"mine"}
    refused(train(tmp_path / "thesis.tex"), "thesis.tex is a file; choose another --out")
    for verb in (evaluate, attack):
        refused(verb(tmp_path), str(tmp_path), "is not a run folder", "'semlink train' makes one")
        refused(verb(tmp_path / "nowhere"), "nowhere does not exist", "'semlink train' makes one")


def test_a_run_that_is_not_finished(half):
    for verb in (evaluate, attack):
        refused(verb(half), str(half), "is not finished; the command that started it resumes it")


def test_a_folder_from_a_newer_semlink(first, half, copy, tmp_path):
    folder = copy(first)
    edit(folder / "record.json", format=3)
    for verb in (evaluate, attack):
        refused(verb(folder), "record.json has format 3, made by a newer Semlink; this one reads format 2")
    shutil.rmtree(folder)
    folder = copy(half)
    edit(folder / "recipe.json", format=3)
    before = content(folder)
    refused(train(folder), str(folder), "has format 3", "choose another --out")
    assert content(folder) == before


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 4
    path.write_bytes(held)


@pytest.mark.parametrize(
    ("state", "name", "damage", "verbs", "remedy"),
    [
        ("first", "weights.safetensors", cut, [evaluate, attack], "restore it from a copy, or remove record.json"),
        ("first", "weights.safetensors", flip, [evaluate, attack], "restore it from a copy, or remove record.json"),
        ("first", "weights.safetensors", Path.unlink, [evaluate, attack], "restore it from a copy"),
        ("first", "record.json", cut, [train, evaluate, attack], "restore it from a copy, or remove it"),
        (
            "first",
            "record.json",
            lambda path: edit(path, history=3),
            [train, evaluate, attack],
            "restore it from a copy",
        ),
        ("first", "record.json", lambda path: path.write_bytes(b"\xff\x00"), [train, evaluate], "restore it"),
        ("first", "recipe.json", cut, [train], "restore it from a copy"),
        ("half", "recipe.json", lambda path: path.write_text("[]"), [train], "to start this run anew"),
        ("half", "recipe.json", lambda path: edit(path, recipe={"scheme": "x"}), [train], "to start this run anew"),
        ("half", "checkpoint.json", cut, [train], "to start this run anew"),
        ("half", "checkpoint.json", lambda path: path.write_text("[1]"), [train], "to start this run anew"),
        ("half", "checkpoint-0002.safetensors", cut, [train], "to start this run anew"),
        ("half", "checkpoint-0002.safetensors", flip, [train], "to start this run anew"),
        ("half", "checkpoint-0002.safetensors", Path.unlink, [train], "to start this run anew"),
    ],
)
def test_a_damaged_file_is_named_with_its_remedy_and_nothing_is_lost(request, copy, state, name, damage, verbs, remedy):
    folder = copy(request.getfixturevalue(state))
    damage(folder / name)
    before = content(folder)
    for verb in verbs:
        refused(verb(folder), str(folder / name), remedy)
    left = {file: held for file, held in content(folder).items() if not file.startswith("attack-")}
    assert left == before


def test_the_remedy_for_damaged_weights_works(first, copy):
    folder = copy(first)
    cut(folder / "weights.safetensors")
    (folder / "record.json").unlink()
    assert train(folder).status == 0
    assert untimed(folder / "record.json") == untimed(first / "record.json")
    assert evaluate(folder).status == 0


def test_a_damaged_record_of_an_attack(first, copy):
    folder = copy(first)
    assert attack(folder).status == 0
    (path,) = folder.glob("attack-*.json")
    cut(path)
    refused(attack(folder), str(path), "restore it from a copy, or remove it and repeat")
    path.unlink()
    assert attack(folder).status == 0


# Keys


@pytest.fixture(scope="module")
def keyed(tmp_path_factory) -> Path:
    """A finished run with a user's key, and the files of two keys beside it."""
    home = tmp_path_factory.mktemp("keyed")
    (home / "my.key").write_text(SECRET + "\n")
    (home / "other.key").write_text(OTHER)
    said = train(home / "run", "--key-file", home / "my.key", scheme="deepjscc-encryption")
    assert said.status == 0
    assert SECRET not in said.out + said.err
    return home


def test_a_key_is_asked_for_on_every_use(keyed):
    run, key, other = keyed / "run", keyed / "my.key", keyed / "other.key"

    def again(*more):
        return train(run, *more, scheme="deepjscc-encryption")

    before = content(run)
    for verb in (evaluate, attack, lambda folder, *more: again(*more)):
        refused(verb(run), str(run), "uses your key, which is stored nowhere; give it again with --key-file")
        refused(verb(run, "--key-file", other), str(run), "was made with another key")
    assert content(run) == before
    assert again("--key-file", key).status == 0
    assert evaluate(run, "--key-file", key).status == 0


def test_a_resumed_run_asks_for_its_key(keyed, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def go(*more):
        return train(folder, *more, scheme="deepjscc-encryption")

    with monkeypatch.context() as patch:
        interrupt_at_the_end(patch)
        assert go("--key-file", keyed / "my.key").status == 130
    refused(go(), "uses your key, which is stored nowhere; give it again with --key-file")
    refused(go("--key-file", keyed / "other.key"), "was made with another key")
    monkeypatch.setenv("SEMLINK_KEY", SECRET)  # the environment does as well as the file
    assert go().status == 0
    assert (folder / "weights.safetensors").read_bytes() == (keyed / "run" / "weights.safetensors").read_bytes()
    assert untimed(folder / "record.json") == untimed(keyed / "run" / "record.json")
    assert evaluate(folder).status == 0
    monkeypatch.setenv("SEMLINK_KEY", OTHER)
    refused(evaluate(folder), "was made with another key")
    monkeypatch.setenv("SEMLINK_KEY", "5e5e")
    refused(evaluate(folder), "SEMLINK_KEY holds 2 bytes")


def test_a_key_is_written_nowhere_and_printed_nowhere(keyed):
    run, key = keyed / "run", keyed / "my.key"
    printed = [evaluate(run, "--key-file", key), attack(run, "--key-file", key, "--with-key")]
    printed += [
        evaluate(run, "--key-file", key, "--json"),
        evaluate(run),
        evaluate(run, "--key-file", keyed / "other.key"),
    ]
    assert [said.status for said in printed] == [0, 0, 0, 2, 2]
    secret = bytes.fromhex(SECRET)
    files = content(run)
    assert {"evaluate.json", "record.json", "recipe.json", "weights.safetensors"} < files.keys()
    assert any(name.startswith("attack-") and name.endswith(".safetensors") for name in files)
    shown = {str(i): (said.out + said.err).encode() for i, said in enumerate(printed)}
    for name, held in (files | shown).items():
        for form in (
            secret,
            secret[::-1],
            secret[:8],
            SECRET.encode(),
            SECRET[:16].encode(),
            str(list(secret))[1:40].encode(),
        ):
            assert form not in held, name
            assert form.lower() not in held.lower(), name


def test_no_option_takes_a_key(tmp_path):
    for words in (["--key", SECRET], [f"--key={SECRET}"]):
        said = train(tmp_path / "run", *words, scheme="deepjscc-encryption")
        refused(said, "unknown option of 'semlink train' '--key'; did you mean '--key-file'")
        assert SECRET not in said.err
    assert not (tmp_path / "run").exists()


def test_a_test_key_and_a_user_s_key_are_two_runs(keyed, tmp_path):
    assert train(tmp_path / "run", scheme="deepjscc-encryption").status == 0
    before = content(tmp_path / "run")
    said = train(tmp_path / "run", "--key-file", keyed / "my.key", scheme="deepjscc-encryption")
    refused(said, "holds another run (key {'kind': 'test'")
    assert SECRET not in said.err
    assert content(tmp_path / "run") == before


# Precision


def test_precision_is_found_once_written_down_and_kept(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    with monkeypatch.context() as patch:
        interrupt_at_the_end(patch)
        assert train(folder, precision="auto").status == 130
    assert json.loads((folder / "recipe.json").read_text())["recipe"]["precision"] == "bf16"
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)  # resumed on a lesser machine
    refused(train(folder, precision="fp32"), "(precision 'bf16' there, 'fp32' here)")
    assert train(folder, precision="auto").status == 0
    said = json.loads((folder / "record.json").read_text())
    assert (said["recipe"]["precision"], said["machine"]["bf16_in_hardware"]) == ("bf16", 0)
    assert train(tmp_path / "another", precision="auto").status == 0
    assert json.loads((tmp_path / "another" / "record.json").read_text())["recipe"]["precision"] == "fp32"


# Failures that are nobody's fault


def test_a_training_that_diverges_fails_in_one_line_and_can_go_on(first, tmp_path, monkeypatch):
    from semlink.schemes.base import TaskObjective

    forward, calls = TaskObjective.forward, 0

    def exploding(self, images, targets, generator):
        nonlocal calls
        calls += 1
        losses = forward(self, images, targets, generator)
        return losses if calls < 12 else {"loss": losses["loss"] * math.nan}

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TaskObjective, "forward", exploding)
        said = train(folder)
    assert said.status == 1
    assert said.out == ""
    (line,) = (line for line in said.err.splitlines() if line.startswith("error: "))
    assert said.err.splitlines()[-1] == line
    assert "epoch 2: the loss is not finite" in line
    assert "Traceback" not in said.err
    assert train(folder).status == 0  # from the epoch before
    assert untimed(folder / "record.json") == untimed(first / "record.json")


@pytest.mark.parametrize("flush", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_full_disk_is_one_line_and_loses_nothing(first, tmp_path, monkeypatch, flush):
    """The n-th file that is flushed does not fit: recipe, then log, tensors and JSON of two epochs, weights, record."""
    flushed, fsync, folder = 0, os.fsync, tmp_path / "run"

    def full(handle):
        nonlocal flushed
        flushed += 1
        if flushed >= flush:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = train(folder)
    assert said.status == 2
    assert said.err.splitlines()[-1].startswith("error: cannot write")
    assert "no space left on device; free space" in said.err
    assert "Traceback" not in said.err
    assert not list(folder.glob(".*"))
    found = checkpoint.load(folder)
    assert (0 if found is None else found[0]["epoch"]) == (0 if flush < 5 else 1 if flush < 8 else 2)
    assert train(folder).status == 0
    assert untimed(folder / "record.json") == untimed(first / "record.json")
    assert (folder / "weights.safetensors").read_bytes() == (first / "weights.safetensors").read_bytes()


def test_a_disk_that_fills_under_the_tensors_is_one_line_too(tmp_path, monkeypatch):
    """The library that writes tensors has an error of its own for it."""

    def full(tensors, path, metadata=None):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    said = train(tmp_path / "run")
    assert said.status == 2
    last = said.err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'run' / 'checkpoint-0001.safetensors'} cannot be written")
    assert "No space left on device" in last
    assert "free space or choose another --out" in last


# Several processes


def test_two_processes_share_a_training(tmp_path):
    folder = tmp_path / "run"
    words = ["train", "deepjscc", "--preset", "smoke", "--precision", "fp32", "--device", "cpu", "--devices", "2"]
    words += ["--out", str(folder), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "semlink.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # one record, from one of them
    assert said == json.loads((folder / "record.json").read_text())
    assert said["machine"]["processes"] == 2
    assert done.stderr.count("epoch 1/2") == 1
    assert [row["epoch"] for row in said["history"]] == [1, 2]
    assert {path.name for path in folder.iterdir()} == WHILE_TRAINING | {"record.json", "weights.safetensors"}
    assert evaluate(folder).status == 0
    refused(train(folder, "--devices", 2, "--seed", 1), "seed 0 there, 1 here")  # before any process is started


def test_curves_for_tensorboard(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = train(tmp_path / "run", "--tensorboard", tmp_path / "board")
    assert said.status == 0, said.err
    history = json.loads((tmp_path / "run" / "record.json").read_text())["history"]
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for name, part in (("loss", "losses"), ("accuracy", "validation")):
        shown = [(each.step, each.value) for each in events.Scalars(name)]
        assert shown == [(row["epoch"], pytest.approx(row[part][name], rel=1e-6)) for row in history]
    # where it is not installed, this is said, and nothing is left behind
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    said = train(tmp_path / "other", "--tensorboard", tmp_path / "board")
    assert (said.status, said.out) == (2, "")
    assert said.err == "error: TensorBoard is not installed; install it with: pip install 'semlink[tensorboard]'\n"
    assert not (tmp_path / "other").exists()
