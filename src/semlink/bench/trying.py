# SPDX-License-Identifier: Apache-2.0
"""One attack of an audit: trained for as long as the time allows, measured, kept; or left for want of time."""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from semlink._files import sha256_file, write_text
from semlink.attacks import Attack, Drawing, Inference
from semlink.bench import attacker, ceilings, judge, reader
from semlink.bench.audit_record import Tried
from semlink.bench.battery import Case, called
from semlink.bench.pacing import Clock, OutOfTime, drawing_seconds, epoch_seconds
from semlink.bench.presets import Schedule, preset
from semlink.bench.reader import Reader
from semlink.bench.record import Measurement
from semlink.bench.target import Target
from semlink.data import DataSet
from semlink.training import Moment, Watcher, checkpoint

DRAWN = (
    "psnr_db",
    "ssim",
    "mi_leakage",
    "retrieval",
    "verification_auc",
    "infonce_bits",
    "accuracy",
    "balanced_accuracy",
)
INFERRED = ("accuracy", "balanced_accuracy", "label_bits")
DRAWS = 2  # noise draws of each test image
LEAST_EPOCHS = 5  # of fewer nobody can say whether they sufficed
READER_SHARE = 0.1
SEARCHED = 60  # test images at most for an attack that takes long for each
SHARE = 0.5  # of the time that is left: more than this no attack may take

_FEW = (4, 12)  # images by which the pace of drawing is told

Watchers = Callable[[str], AbstractContextManager[Watcher]]


class Outcome(NamedTuple):
    """An attack that was made: its case and record, and per-image values by metric, noise draws averaged."""

    case: Case
    tried: Tried
    values: dict[str, Tensor]
    folder: Path


@dataclasses.dataclass
class Setting:
    """What all attacks of one audit share."""

    target: Target
    device: torch.device
    seed: int
    precision: Literal["bf16", "fp32"]
    work: Path
    watcher: Watchers
    reader: Reader | None = None
    reads: dict[str, Measurement] | None = None
    paces: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)  # by attack, as of ``pace``

    @property
    def schedule(self) -> Schedule:
        """How long an attack is trained if there is time."""
        return preset(self.target.preset).scale(self.target.shown.image_shape[0]).attack

    def plan(self, case: Case) -> attacker.Plan:
        """Return what determines the attack of a case."""
        return attacker.Plan(case.attack, case.threat, self.target.preset, "none", self.seed, self.precision)

    def build(self, case: Case) -> Attack:
        """Return the untrained attack of a case."""
        return attacker.build(self.target.link, self.plan(case), self.target.shown)

    def images(self, eve: Attack) -> int:
        """Return on how many test images an attack is judged."""
        return min(len(self.target.sets.test), SEARCHED if is_slow(eve) else eve.most_images or sys.maxsize)

    def sets(self, count: int) -> DataSet:
        """Return the images, of the test set the first ``count``."""
        sets = self.target.sets
        return dataclasses.replace(sets, test=sets.test.subset(torch.arange(min(count, len(sets.test)))))

    def draws(self, eve: Attack) -> int:
        """Return how many noise draws of each image are averaged."""
        return 1 if is_slow(eve) else DRAWS

    def pace(self, case: Case) -> tuple[float, float]:
        """Return the seconds that an epoch of a case takes, and those that measuring it takes, from a few steps."""
        eve = self.build(case)
        epoch = epoch_seconds(eve, self.target.sets, self.schedule, self.precision, self.device)
        if not isinstance(eve, Drawing):
            return epoch, 1.0
        return epoch, drawing_seconds(eve, self.target.sets, self.images(eve), self.device) * self.draws(eve)


def metrics(eve: Attack) -> tuple[str, ...]:
    """Return what is measured of an attack."""
    return INFERRED if isinstance(eve, Inference) else DRAWN


def is_slow(eve: Attack) -> bool:
    """Say whether an attack works on each image by itself, for long."""
    return "encoder" in eve.sees


def read(setting: Setting, clock: Clock) -> bool:
    """Give the setting its reader, if a tenth of the time is enough to train one."""
    target, folder = setting.target, setting.work / "reader"
    size = "short" if target.preset in ("cpu", "paper") and target.shown.image_shape[0] > 1 else target.preset
    if not (folder / "log.jsonl").exists():
        schedule, model = preset(size).scale(target.shown.image_shape[0]).link, reader.build(target.shown, size, 0)
        epoch = epoch_seconds(model, target.sets, schedule, setting.precision, setting.device)
        if epoch * schedule.epochs > clock.left * READER_SHARE:
            return False
    with setting.watcher("reader") as watch:
        sets = target.sets
        common = setting.seed, setting.precision, folder, setting.device, watch
        reader.train_reader(sets.name, sets.variant, size, *common)
    setting.reader = reader.load_reader(folder, target.shown, setting.device)
    setting.reads = reader.read(folder).measured
    return True


def attempt(setting: Setting, case: Case, clock: Clock) -> Outcome | None:
    """Make an attack, or go on with it, or read what came of it; None if there is no time for it.

    It gets the epochs of its schedule if they take half of the time left at most, else as many as that allows; if it
    takes longer than it seemed, it is broken off when all of the time is spent. One that was begun is kept, unless
    there is now time for twice as long a training.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    full, begun = setting.schedule.epochs, {int(f.name.rpartition("-")[2]): f for f in _folders(setting, case)}
    kept = max(begun, default=0)
    if kept < full or not (begun[kept] / "tried.json").exists():
        epochs = _affordable(setting, case, clock)
        if 2 * kept < epochs:
            kept = epochs
        elif not kept:
            return None
    folder = setting.work / f"{_name(case)}-{kept}"
    if (folder / "tried.json").exists():
        tried = Tried.model_validate_json((folder / "tried.json").read_text())
        clock.earlier += tried.training_seconds + tried.measuring_seconds
    else:
        try:
            tried = _make(setting, case, folder, kept, clock)
        except OutOfTime:
            return None
    setting.paces[case.attack] = tried.training_seconds / tried.epochs, tried.measuring_seconds
    values = checkpoint.load_tensors(folder / "values.safetensors", tried.values_sha256, f"remove {folder}")
    return Outcome(case, tried, values, folder)


def load(setting: Setting, outcome: Outcome) -> Drawing:
    """Return the trained attack of an outcome that draws."""
    eve = setting.build(outcome.case).to(setting.device)
    path, sha256 = outcome.folder / "weights.safetensors", outcome.tried.attacker_sha256
    eve.load_state_dict(checkpoint.load_tensors(path, sha256, f"remove {outcome.folder}"))
    assert isinstance(eve, Drawing)
    return eve.eval()


def _name(case: Case) -> str:
    return f"{case.attack}-{hashlib.sha256(repr(case).encode()).hexdigest()[:6]}"


def _folders(setting: Setting, case: Case) -> list[Path]:
    return [folder for folder in setting.work.glob(f"{_name(case)}-*") if folder.is_dir()]


def _make(setting: Setting, case: Case, folder: Path, epochs: int, clock: Clock) -> Tried:
    """Train and measure; raise OutOfTime if the training lasts too long."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.sweep(folder, "checkpoint", "log.jsonl", "weights.safetensors", "values.safetensors", "tried.json")
    target, plan, eve = setting.target, setting.plan(case), setting.build(case)
    schedule = dataclasses.replace(setting.schedule, epochs=epochs)
    with setting.watcher(called(case)) as show:

        def watch(moment: Moment) -> None:
            show(moment)
            if clock.left < 0 and moment.progress < 1:
                raise OutOfTime

        history = attacker.fit(eve, target.sets, schedule, plan, folder, setting.device, watch)
    begun, sets = time.perf_counter(), setting.sets(setting.images(eve))
    snr_db, draws, asked = case.threat.snr_db, setting.draws(eve), metrics(eve)
    found, whole = judge.values(
        target.link, eve, sets, [snr_db], draws, setting.seed, asked, setting.device, setting.reader
    )
    results = judge.summary(found[snr_db], sets, setting.seed, asked) | judge.whole(whole[snr_db])
    checkpoint.save_tensors(folder / "weights.safetensors", eve.state_dict())
    checkpoint.save_tensors(folder / "values.safetensors", {name: v.mean(0) for name, v in found[snr_db].items()})
    fall = attacker.last_fifth_fall([row["validation"]["loss"] for row in history])
    tried = Tried(
        attack=case.attack,
        threat=case.threat.describe(),
        reference=case.reference,
        sees=sorted(eve.sees),
        epochs=epochs,
        full_epochs=setting.schedule.epochs,
        parameters=sum(p.numel() for p in eve.parameters()),
        converged=fall is not None and fall <= 0.01,
        last_fifth_fall=None if fall is None else round(fall, 5),
        attacker_sha256=sha256_file(folder / "weights.safetensors"),
        values_sha256=sha256_file(folder / "values.safetensors"),
        images=len(sets.test),
        draws=draws,
        training_seconds=round(sum(row["epoch_seconds"] for row in history), 2),
        measuring_seconds=round(time.perf_counter() - begun, 2),
        results=results,
        ceilings_bits=ceilings.upper_bounds(target.link, case.threat, snr_db),
    )
    write_text(folder / "tried.json", tried.model_dump_json(indent=1) + "\n")
    checkpoint.remove(folder)
    return tried


def _affordable(setting: Setting, case: Case, clock: Clock) -> int:
    """Return for how many epochs there is time; 0 if for too few to be worth it."""
    if clock.late:
        return 0
    full, most = setting.schedule.epochs, clock.left * SHARE
    epoch, measuring = setting.paces.get(case.attack) or setting.pace(case)
    epochs = min(full, int((most - measuring) / epoch))
    return epochs if epochs >= min(full, LEAST_EPOCHS) else 0
