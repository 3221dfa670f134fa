# SPDX-License-Identifier: Apache-2.0
"""Records: what was run, by which code, on what, and what came out."""

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from semlink import _version
from semlink._errors import SemlinkError
from semlink._files import write_text
from semlink.metrics import Interval
from semlink.training import describe_machine

FORMAT = 2
#: Those whose versions can change a result.
LIBRARIES = ("torch", "numpy", "scipy", "lightning-fabric", "safetensors", "cryptography")
REMEDY = "restore it from a copy, or remove it and repeat the command that made it"


class Strict(BaseModel):
    """What is read from a file and must be exactly what is expected there."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Recipe(Strict):
    """All that determines a link, by names and numbers; ``start`` is the SHA-256 of weights that it begins with."""

    scheme: str
    options: dict[str, bool | int | float | str] = {}
    data: str
    variant: str = "default"
    task: str
    channel: str = "awgn"
    snr_db: float
    channel_uses: int
    preset: str
    seed: int
    precision: Literal["bf16", "fp32"]
    key: dict[str, str] | None = None
    start: str | None = None


class Measurement(Strict):
    """A number with its 95 % interval; ``n`` counts images, whose noise draws were averaged first."""

    mean: float
    low: float
    high: float
    n: int
    unit: str
    level: float = 0.95
    method: str

    @classmethod
    def of(cls, interval: Interval, unit: str, scale: float = 1.0) -> "Measurement":
        """Return ``interval`` in ``unit``, its numbers multiplied by ``scale``."""
        low, mean, high = (round(scale * value, 6) for value in (interval.low, interval.mean, interval.high))
        return cls(mean=mean, low=low, high=high, n=interval.n, unit=unit, level=interval.level, method=interval.method)


class Record(Strict):
    """What every record says.

    ``code_sha256`` is of all of the installation's sources, ``step_sha256`` of the modules that made the result.
    """

    format: int = FORMAT
    semlink: str = _version.VERSION
    code_sha256: str
    step_sha256: str
    libraries: dict[str, str]
    machine: dict[str, str | int]
    recipe: Recipe
    data: dict[str, Any]
    weights_sha256: str
    timing: dict[str, float | str]


class TrainRecord(Record):
    """A trained link.

    ``started_from`` says how much of the link began with trained weights. ``describes`` is what the scheme says of
    itself once trained, as the guarantee of a privacy mechanism or the use of a codebook.
    """

    kind: Literal["train"] = "train"
    started_by_step_sha256: str
    started_from: dict[str, int] | None = None
    selection: str
    schedule: dict[str, Any]
    parameters: dict[str, int]
    multiply_adds: dict[str, int]
    channel_uses: int
    payload_bits: float | None = None
    describes: dict[str, Any] = {}
    history: list[dict[str, Any]]


class CostRecord(Record):
    """What a link takes: sizes by part, seconds to transmit and to receive one image alone, seconds of an epoch.

    All are of one thread. ``epoch_seconds`` are the processor's for a share of the images, the least of three epochs,
    scaled to all; ``training_bytes`` the most memory of the process meanwhile, runtime and images included, or on a GPU
    of what was allocated there.
    """

    kind: Literal["cost"] = "cost"
    parameters: dict[str, int]
    held: dict[str, int]
    multiply_adds: dict[str, int]
    channel_uses: int
    payload_bits: float | None
    mean_power: float
    transmit_seconds: float
    receive_seconds: float
    epoch_seconds: float
    training_bytes: int | None


class EvaluateRecord(Record):
    """A link on its test set over an SNR grid.

    ``positives`` counts the images with each attribute, ``constant`` is what always giving the commoner answer scores.
    """

    kind: Literal["evaluate"] = "evaluate"
    draws: int
    noise_seed: int
    power: dict[str, float]
    points: list[dict[str, float | Measurement]]
    positives: dict[str, int] = {}
    constant: dict[str, Measurement] = {}


class _Trained(Record):
    attack: str
    threat: dict[str, bool | int | float | str | None]
    settings: dict[str, Any]
    converged: bool
    last_fifth_fall: float | None
    attacker_sha256: str
    images: dict[str, int]
    history: list[dict[str, Any]]


class AttackRecord(_Trained):
    """A trained attack on a link."""

    kind: Literal["attack"] = "attack"


def is_worse(drawn: Measurement | None, guess: Measurement | None) -> bool:
    """Return whether an attack draws worse than the mean image shows of the same images; both are PSNR.

    Then it says nothing of the defence, for she could show that.
    """
    return drawn is not None and guess is not None and drawn.mean < guess.mean


class JudgeRecord(_Trained):
    """What an attack learned, and what is known without it, on the test set over a grid of the eavesdropper's SNR.

    ``ceilings_bits`` are upper bounds of what any attack under the same threat can learn of an image, by SNR.
    """

    kind: Literal["judge"] = "judge"
    draws: int
    noise_seed: int
    points: list[dict[str, float | Measurement]]
    baselines: dict[str, dict[str, Measurement]]
    ceilings_bits: list[dict[str, float]] = []

    @property
    def snr_db(self) -> float:
        """Es/N0 on the channel of the attack in training."""
        return float(self.threat["snr_db"] or 0)

    @property
    def poor(self) -> bool:
        """Whether it draws worse than the mean image."""
        return is_worse(self.results.get("psnr_db"), self.baselines.get("mean_image", {}).get("psnr_db"))

    @property
    def results(self) -> dict[str, Measurement]:
        """What was measured at the SNR that the attack was trained at, or at the first of a grid without it."""
        point = next((point for point in self.points if point["snr_db"] == self.snr_db), self.points[0])
        return {name: value for name, value in point.items() if isinstance(value, Measurement)}


class Prepared(Strict):
    """The images of a role: how many, the SHA-256 of pixels and targets, how many are of each class or attribute."""

    images: int
    sha256: str
    targets: dict[str, int]


class PrepareRecord(Strict):
    """The images of a bench, as they were read and split: ``data`` names their source, ``splits`` is by role.

    ``image_shape`` is (C, H, W).
    """

    format: int = FORMAT
    kind: Literal["prepare"] = "prepare"
    semlink: str = _version.VERSION
    code_sha256: str
    step_sha256: str
    libraries: dict[str, str]
    machine: dict[str, str | int]
    data: dict[str, Any]
    image_shape: tuple[int, int, int]
    splits: dict[str, Prepared]


R = TypeVar("R", bound=Strict)

_OF_STEP: dict[str, tuple[str, type[Record]]] = {
    "train": ("run/record.json", TrainRecord),
    "fetch": ("run/record.json", TrainRecord),
    "evaluate": ("evaluate.json", EvaluateRecord),
    "cost": ("cost.json", CostRecord),
    "attack": ("attack/record.json", AttackRecord),
    "judge": ("judge.json", JudgeRecord),
}


def of_step(folder: Path, step: str) -> Record:
    """Read the record in the folder of a cell that is done."""
    path, kind = _OF_STEP[step]
    return read(folder / path, kind)


def origin(
    recipe: Recipe, data: dict[str, Any], weights_sha256: str, device: torch.device, step_sha256: str, **seconds: float
) -> dict[str, Any]:
    """Return the fields that every record has, for a result obtained just now; ``seconds`` become its timing."""
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "code_sha256": code_sha256(),
        "step_sha256": step_sha256,
        "libraries": {name: version(name) for name in LIBRARIES},
        "machine": describe_machine(device),
        "recipe": recipe,
        "data": data,
        "weights_sha256": weights_sha256,
        "timing": {"finished": finished, **{name: round(value, 1) for name, value in seconds.items()}},
    }


def write(path: Path, record: Strict) -> None:
    """Write a record as JSON, atomically."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


def read(path: Path, kind: type[R]) -> R:
    """Read a record.

    Raises:
        SemlinkError: the file is missing, not a record of this kind, or of a newer version.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = raw["format"]
    except OSError as error:
        raise SemlinkError(f"record {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise SemlinkError(
            f"{path} is not a Semlink record, or is damaged: JSON with a field 'format' is expected; {REMEDY}"
        ) from None
    if found != FORMAT:
        age = "a newer" if isinstance(found, int) and found > FORMAT else "an older"
        raise SemlinkError(
            f"{path} has format {found}, made by {age} Semlink; this one reads format {FORMAT}: install that one"
        )
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SemlinkError(f"{path} is damaged: field '{where}': {first['msg'].lower()}; {REMEDY}") from None


@cache
def code_sha256() -> str:
    """Return a hash of this installation's source files."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
