# SPDX-License-Identifier: Apache-2.0
"""The records of run folders, read and named."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semlink._errors import SemlinkError
from semlink.bench import links, record
from semlink.bench.record import EvaluateRecord, JudgeRecord, Measurement, Recipe, Record, TrainRecord

UTILITY = {"classify": "accuracy", "attributes": "accuracy", "reconstruct": "psnr_db"}


@dataclass(frozen=True)
class Attacked:
    """An attack: its name on the page, its record, and the file with what Eve drew."""

    label: str
    record: JudgeRecord
    images: Path

    @property
    def with_secret(self) -> bool:
        """Eve held the key."""
        return bool(self.record.threat["with_secret"])


@dataclass(frozen=True)
class Run:
    """A run: its name on the page and its records."""

    label: str
    command_name: str
    train: TrainRecord
    evaluation: EvaluateRecord | None
    attacks: list[Attacked]

    @property
    def recipe(self) -> Recipe:
        """What determines the link."""
        return self.train.recipe

    @property
    def metric(self) -> str:
        """The name of the link's utility among the results."""
        return UTILITY.get(self.recipe.task, "accuracy")

    def curve(self, metric: str) -> dict[float, Measurement]:
        """Return ``metric`` by SNR in dB, ascending; empty where it was not measured."""
        points = self.evaluation.points if self.evaluation else []
        found = {float(p["snr_db"]): p[metric] for p in points if metric in p}  # pyright: ignore[reportArgumentType]
        return {snr: m for snr, m in sorted(found.items()) if isinstance(m, Measurement)}

    def missing(self) -> list[tuple[str, str]]:
        """Return each part that is not there, and the command that makes it."""
        parts = []
        if self.evaluation is None:
            parts.append((f"{self.label} has not been evaluated", f"semlink evaluate {self.command_name}"))
        if not self.attacks:
            parts.append((f"{self.label} has not been attacked", f"semlink attack {self.command_name}"))
        return parts


def gather(folders: Sequence[Path]) -> list[Run]:
    """Read the records of run folders.

    Raises:
        SemlinkError: there is no folder; one is no finished run; a record is damaged or belongs to other weights.
    """
    if not folders:
        raise SemlinkError("a report needs at least one run folder, none was given; 'semlink train' makes one")
    trained = [links.read_run(folder) for folder in folders]
    names = _distinct([_name(t.recipe) for t in trained], [_details(t.recipe) for t in trained])
    return [_read(*each) for each in zip(folders, names, trained, strict=True)]


def _read(folder: Path, label: str, trained: TrainRecord) -> Run:
    command_name = shlex.quote(_shown(folder))
    evaluation = None
    if (path := folder / "evaluate.json").exists():
        evaluation = record.read(path, EvaluateRecord)
        _belongs(evaluation, trained, path, f"semlink evaluate {command_name}")
    found = []
    for path in sorted(folder.glob("attack-*.json")):
        attack = record.read(path, JudgeRecord)
        _belongs(attack, trained, path, f"semlink attack {command_name}")
        found.append((path, attack))
    found.sort(key=lambda pair: (pair[1].threat["with_secret"], pair[1].threat["snr_db"], pair[0].name))
    held = [_holds(trained.recipe, bool(attack.threat["with_secret"])) for _, attack in found]
    details = [_attack_details(attack) for _, attack in found]
    labels = [f"{label}, {text}" for text in _distinct(held, details)]
    attacks = [
        Attacked(text, attack, path.with_suffix(".safetensors"))
        for text, (path, attack) in zip(labels, found, strict=True)
    ]
    return Run(label, command_name, trained, evaluation, attacks)


def _belongs(found: Record, trained: TrainRecord, path: Path, command: str) -> None:
    if found.weights_sha256 != trained.weights_sha256:
        raise SemlinkError(f"{path} was measured on other weights than this run's; remove it and run: {command}")


def _shown(folder: Path) -> str:
    """Name a folder as a user here would, without telling readers where it lies on this machine."""
    absolute, here = folder.resolve(), Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else folder.name


def _holds(recipe: Recipe, with_secret: bool) -> str:
    if recipe.key is None:
        return "no key in use"
    return "Eve with the key" if with_secret else "Eve without the key"


def _name(recipe: Recipe) -> str:
    options = ("fixed nonce" if (k, v) == ("fresh", False) else f"{k} {v}" for k, v in recipe.options.items())
    return ", ".join([recipe.scheme, *options])


def _details(recipe: Recipe) -> dict[str, str]:
    return {
        "data": recipe.data,
        "variant": recipe.variant,
        "task": recipe.task,
        "channel": recipe.channel,
        "snr_db": f"{recipe.snr_db:g} dB",
        "channel_uses": f"{recipe.channel_uses} channel uses",
        "preset": f"preset {recipe.preset}",
        "seed": f"seed {recipe.seed}",
        "precision": recipe.precision,
    }


def _attack_details(attack: JudgeRecord) -> dict[str, str]:
    taps = attack.settings.get("taps")
    return {
        "attack": attack.attack,
        "snr_db": f"at {attack.snr_db:g} dB",
        "antennas": f"{attack.threat.get('antennas', 1)} antennas",
        "transmissions": f"{attack.threat.get('transmissions', 1)} transmissions",
        "channel": f"over {attack.threat.get('channel') or 'the same kind of channel'}",
        "csi": "with CSI" if attack.threat.get("csi", True) else "without CSI",
        "taps": f"trained with {taps} layers of VGG16" if taps else "trained on MSE",
        **{name: f"{name} {attack.settings.get(name)}" for name in ("perceptual", "width", "seed", "precision")},
    }


def _distinct(names: list[str], details: list[dict[str, str]]) -> list[str]:
    """Add to names that occur twice the details in which their owners differ, or a number if they differ in none."""
    full = []
    for name, own in zip(names, details, strict=True):
        rivals = [other for rival, other in zip(names, details, strict=True) if rival == name]
        differing = [text for key, text in own.items() if any(other.get(key) != text for other in rivals)]
        full.append(", ".join([name, *differing]))
    return [f"{n} #{full[: i + 1].count(n)}" if full.count(n) > 1 else n for i, n in enumerate(full)]
