# SPDX-License-Identifier: Apache-2.0
"""The zoo: one trained link a scheme, for later work to attack.

zoo/NAME.safetensors     weights, every floating-point tensor in float16
    NAME.json            how the link was trained and what the stored weights achieve: a ZooRecord
src/semlink/zoo.json     the index, a part of the package: the SHA-256 of both files, so that nobody can change them

``python -m semlink.bench.zoo RUN NAME`` puts a finished run there.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_name
from semlink._files import atomic_path, exclusive, sha256_file, write_text
from semlink.bench import links, record
from semlink.bench.evaluator import evaluate
from semlink.data.download import fetch_file
from semlink.data.sources import cache_root
from semlink.training import checkpoint, resolve_device

PREFIX = "zoo:"
INDEX = Path(__file__).resolve().parents[1] / "zoo.json"
CHECKOUT = Path(__file__).resolve().parents[3]  # of the sources, where the package runs from them
ADDRESS = "https://github.com/semlink/semlink/raw/main/zoo/"
LARGEST, LARGEST_ZOO = 8_000_000, 75_000_000  # bytes of weights: every clone carries them
SNR_DB, USERS_SNR_DB, DRAWS = (4.0, 8.0, 12.0, 16.0, 20.0), (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0), 5
DATA = ("cifar10", "digits", "mnist")


class Entry(record.Strict):
    """What the index says of one link: the sums of its two files, and the size of its weights."""

    sha256: str
    record_sha256: str
    bytes: int


class Index(record.Strict):
    """The links of the zoo by name."""

    format: Literal[1] = 1
    links: dict[str, Entry]


class ZooRecord(record.Strict):
    """How a link of the zoo was trained, and what its stored weights achieve."""

    format: int = record.FORMAT
    kind: Literal["zoo"] = "zoo"
    name: str
    train: record.TrainRecord
    evaluate: record.EvaluateRecord


def names() -> list[str]:
    """Return the names of the links in the zoo, without the prefix."""
    return sorted(_index().links)


def entry(name: str) -> Entry:
    """Return what the index says of a link; ``name`` may begin with "zoo:".

    Raises:
        SemlinkError: the zoo has no such link.
    """
    found = _index().links
    return found[check_name("link of the zoo", name.removeprefix(PREFIX), found)]


def size(name: str) -> int:
    """Return the size of a link's weights in bytes."""
    return entry(name).bytes


def read(name: str) -> tuple[record.TrainRecord, Path]:
    """Return the record of a link's training and the path of its weights, after downloading them if need be.

    Raises:
        SemlinkError: the zoo has no such link; a file of it is missing or damaged, or cannot be downloaded.
    """
    known, name = entry(name), name.removeprefix(PREFIX)
    weights = _find(f"{name}.safetensors", known.sha256)
    return record.read(_find(f"{name}.json", known.record_sha256), ZooRecord).train, weights


def unpack(name: str, folder: Path) -> None:
    """Make ``folder`` a run folder with a link of the zoo, to evaluate and to attack.

    What is there already of the same link stays, or is completed.

    Raises:
        SemlinkError: ``folder`` holds something else, or is in use; besides what :func:`read` raises.
    """
    trained, weights = read(name)
    if folder.exists() and not folder.is_dir():
        raise SemlinkError(f"{folder} is a file; choose another folder for {name}")
    with exclusive(folder):
        checkpoint.sweep(folder, "recipe.json", "weights.safetensors", "record.json")
        if (folder / "record.json").exists():
            if links.read_run(folder) == trained:
                return
            raise SemlinkError(f"{folder} holds another run; choose another folder for {name}")
        begun = {"lock", "recipe.json", "weights.safetensors"}
        if foreign := sorted(path.name for path in folder.iterdir() if path.name not in begun):
            raise SemlinkError(f"{folder} holds other things ({foreign[0]}); choose another folder for {name}")
        _write_run(folder, trained, weights)


def put(run: Path, name: str, device: torch.device) -> Path:
    """Put the finished run in ``run`` into the zoo of this source checkout, in place of a link of the same name.

    Its weights are rounded to float16 and the rounded ones evaluated, so that the numbers are those of the file.

    Args:
        run: where ``semlink train`` wrote; trained on CIFAR-10 or MNIST, without a user's key.
        name: SCHEME-DATA, with or without a suffix that begins with a hyphen.
        device: what evaluates.

    Returns:
        The path of the record.

    Raises:
        SemlinkError: any of this is not so; the weights do not fit into float16, the file or the zoo.
    """
    zoo, trained = CHECKOUT / "zoo", links.read_run(run)
    if not zoo.is_dir():
        raise SemlinkError(f"{zoo} does not exist: links are put into a source checkout; run this from one")
    _check(run, name, trained.recipe)
    with tempfile.TemporaryDirectory() as work:
        weights = Path(work) / "weights.safetensors"
        checkpoint.save_tensors(weights, _rounded(run))
        others = {other: known for other, known in _index().links.items() if other != name}
        _check_size(name, weights.stat().st_size, sum(other.bytes for other in others.values()))
        changed = {"weights_sha256": sha256_file(weights), "selection": f"{trained.selection}, rounded to float16"}
        trained = trained.model_copy(update=changed)
        _write_run(Path(work) / "run", trained, weights)
        grid = USERS_SNR_DB if links.users_of(trained.recipe) else SNR_DB
        measured = evaluate(Path(work) / "run", grid, DRAWS, 0, device)
        path, stored = zoo / f"{name}.json", zoo / f"{name}.safetensors"
        _copy(weights, stored)
    record.write(path, ZooRecord(name=name, train=trained, evaluate=measured))
    added = Entry(sha256=sha256_file(stored), record_sha256=sha256_file(path), bytes=stored.stat().st_size)
    record.write(INDEX, Index(links=dict(sorted((others | {name: added}).items()))))
    return path


def _index() -> Index:
    return Index.model_validate_json(INDEX.read_bytes())


def _find(file: str, sha256: str) -> Path:
    """Return where a file of the zoo lies, its content as in the index."""
    if given := os.environ.get("SEMLINK_ZOO"):
        path = Path(given).expanduser() / file
        remedy = f"get it from {ADDRESS}{file}, or unset SEMLINK_ZOO"
    elif (CHECKOUT / "zoo").is_dir() and (CHECKOUT / "pyproject.toml").is_file():
        path = CHECKOUT / "zoo" / file
        remedy = f"restore it with 'git -C {CHECKOUT} checkout zoo/{file}'"
    else:
        otherwise = f"put {file} into a folder of yours and name that folder in SEMLINK_ZOO"
        return fetch_file(ADDRESS + file, sha256, cache_root() / "zoo" / file, otherwise)
    if not path.is_file():
        raise SemlinkError(f"{path} is missing; {remedy}")
    if (found := sha256_file(path)) != sha256:
        raise SemlinkError(
            f"{path} is not the file of the zoo: its SHA-256 is {found[:12]}…, expected {sha256[:12]}…; {remedy}"
        )
    return path


def _check(run: Path, name: str, recipe: record.Recipe) -> None:
    """Raise SemlinkError unless the run may be published under ``name``."""
    if recipe.data == "celeba":
        raise SemlinkError(
            f"{run} was trained on celeba, whose terms allow non-commercial research only and forbid distributing any "
            "portion of it; the zoo is public and takes links of CIFAR-10 and MNIST"
        )
    if recipe.data not in DATA:
        raise SemlinkError(f"{run} was trained on {recipe.data}; the zoo takes links of {', '.join(DATA)}")
    if recipe.key and recipe.key["kind"] == "user":
        raise SemlinkError(f"{run} uses your key, without which nobody can receive; train it again without a key file")
    expected = f"{recipe.scheme}-{recipe.data}"
    if not re.fullmatch(re.escape(expected) + "(-[a-z0-9]+)*", name):
        raise SemlinkError(
            f"{name!r} is no name for {run}; use {expected}, or {expected}-SUFFIX of lower-case letters and digits"
        )


def _rounded(run: Path) -> dict[str, Tensor]:
    """Return the state of the link in ``run``, its floating-point tensors in float16."""
    state = links.weights_in(links.load(run).scheme)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    for name, value in halves.items():
        if not value.isfinite().all():
            raise SemlinkError(f"{run}: {name} holds a value that float16 cannot (above 65,504); train another link")
    return halves


def _check_size(name: str, own: int, others: int) -> None:
    """Raise SemlinkError unless a clone of the repository can carry the weights."""
    if own > LARGEST:
        raise SemlinkError(f"the weights of {name} are {own:,} bytes; the zoo takes {LARGEST:,}: train a smaller link")
    if own + others > LARGEST_ZOO:
        raise SemlinkError(
            f"with {name} the zoo would have {own + others:,} bytes of weights, {LARGEST_ZOO:,} are allowed: "
            f"remove another link first, its two files and its entry in {INDEX}"
        )


def _write_run(folder: Path, trained: record.TrainRecord, weights: Path) -> None:
    """Write a run folder, its record last."""
    claim = {"format": trained.format, "recipe": trained.recipe.model_dump()}
    claim["step_sha256"] = trained.started_by_step_sha256
    write_text(folder / "recipe.json", json.dumps(claim, indent=1))
    _copy(weights, folder / "weights.safetensors")
    record.write(folder / "record.json", trained)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as part:
        shutil.copyfile(source, part)


def _table(measured: record.EvaluateRecord) -> list[str]:
    """Return lines with every measurement of an evaluation."""
    return [
        f"{point['snr_db']:5g} dB  {name:20} {value.mean:8.3f} [{value.low:.3f}, {value.high:.3f}] {value.unit}"
        for point in measured.points
        for name, value in point.items()
        if isinstance(value, record.Measurement)
    ]


def main() -> int:
    """Put a run into the zoo, as the command line says, and print what its rounded weights achieve."""
    parser = argparse.ArgumentParser(prog="python -m semlink.bench.zoo", description="Put a finished run into the zoo.")
    parser.add_argument("run", type=Path, help="run folder, as 'semlink train' writes it")
    parser.add_argument("name", help="SCHEME-DATA or SCHEME-DATA-SUFFIX")
    given = parser.parse_args()
    try:
        path = put(given.run, given.name, resolve_device("auto"))
    except SemlinkError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("\n".join([*_table(record.read(path, ZooRecord).evaluate), str(path), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
