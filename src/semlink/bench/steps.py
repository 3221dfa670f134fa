# SPDX-License-Identifier: Apache-2.0
"""The steps of a bench: prepare images, train a link or fetch one, evaluate it, attack it, judge that, draw; or
measure what a link costs.

    prepare ─┬─> train | fetch ─┬─> evaluate ──> draw
             │                  └─> attack ──> judge ──> draw
             ├─> read ─────────────────────────┘
             └─> cost

A step works in the folder of its cell from a ``spec`` of plain values and the folders of the cells it builds on. Its
``trial`` is the same work on a few images: its hash is the witness by which changed code proves that it still gives the
same bits, and its pace tells how long the whole will take.
"""

import hashlib
import json
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semlink import data
from semlink._files import write_text
from semlink.attacks import Threat
from semlink.bench import (
    attacker,
    drawing,
    evaluator,
    judge,
    links,
    preparer,
    presets,
    reader,
    record,
    trainer,
    weighing,
    zoo,
)
from semlink.data import DataSet, ImageSet
from semlink.schemes import Link
from semlink.training import Watcher, describe_machine, make_fabric, resolve_precision

Spec = dict[str, Any]
Inputs = dict[str, Path]
IMAGES = 256  # test images of a trial
_DRAW_SECONDS, _DRAW_BYTES = 5.0, 200_000  # of a figure, before anything is there to draw


@dataclass(frozen=True)
class Trial:
    """A step on few images: a hash of all it computed, and what the whole will cost."""

    sha256: str
    seconds: float
    disk_bytes: int


class Step(ABC):
    """One kind of cell; ``inputs`` names the kinds it builds on by role."""

    files: tuple[str, ...]

    @abstractmethod
    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the modules on which the result depends, but for what they import."""

    @abstractmethod
    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Do the work in ``folder``, or go on with it, and leave ``files`` there."""

    @abstractmethod
    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Do the work on few images and leave nothing; inputs that are not there yet are taken untrained."""


def recipe_of(spec: Spec, folder: Path | None, device: torch.device, start: str | Path | None = None) -> record.Recipe:
    """Return the link's recipe, its precision that of the run begun in ``folder`` or else what suits the device."""
    held = trainer.held_precision(folder) if folder else None
    precision = resolve_precision(device, spec["precision"] if spec["precision"] != "auto" else held or "auto")
    begun = {} if start is None else {"start": links.weights_of(start)}
    return record.Recipe.model_validate(spec["recipe"] | {"precision": precision} | begun)


def _start(spec: Spec, inputs: Inputs) -> str | Path | None:
    """Return the trained link that a training starts from: of the zoo, or of the recipe's own."""
    return inputs["start"] / "run" if "start" in inputs else spec.get("start", {}).get("weights")


class Prepare(Step):
    """Reads, checks and splits a set of images; ``prepare.json`` says what they are."""

    files = ("prepare.json",)

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the modules that read and split."""
        return (preparer.__name__,)

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Prepare."""
        preparer.prepare(spec["name"], spec["variant"], device, folder / "prepare.json")

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Do it all but the writing: what takes long, decoding, is done once a machine."""
        begun = time.perf_counter()
        found = preparer.splits(data.load(spec["name"], spec["variant"]))
        said = json.dumps({role: each.model_dump() for role, each in found.items()})
        return Trial(hashlib.sha256(said.encode()).hexdigest(), time.perf_counter() - begun, len(said))


class Train(Step):
    """Trains a link in ``run``, a run folder as ``semlink train`` makes it."""

    files = ("run/record.json", "run/weights.safetensors", "run/recipe.json", "run/log.jsonl")

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the training's modules and the scheme's."""
        return trainer.modules(spec["recipe"]["scheme"], spec["recipe"]["channel"])

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Train, or resume."""
        start, run = _start(spec, inputs), folder / "run"
        trainer.train(recipe_of(spec, run, device, start), run, device, watch, start=start)

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Train two epochs of two batches."""
        recipe = recipe_of(spec, None, device)
        link, sets = links.build(recipe), links.image_sets(recipe)
        few, short, scale = _few(sets, "transceiver", trainer.schedule(recipe))
        with tempfile.TemporaryDirectory() as work:
            fabric = make_fabric(device, recipe.precision)
            start = _start(spec, inputs)
            if isinstance(start, Path) and not (start / "record.json").exists():
                start = None
            history, _ = trainer.fit(link, recipe, few, short, Path(work), fabric, start=start)
        size = 4 * sum(p.numel() for p in link.scheme.parameters())
        return Trial(attacker.fingerprint(link.scheme), scale * history[-1]["epoch_seconds"], size)


class Fetch(Step):
    """Takes a link from the zoo in place of training; ``run`` is a run folder."""

    files = ("run/record.json", "run/weights.safetensors")

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Nothing is computed here."""
        return ()

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Copy the link's weights and record."""
        zoo.unpack(spec["weights"], folder / "run")

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Nothing is computed here."""
        return Trial(spec["sha256"], 1.0, 2 * zoo.size(spec["weights"]))


class Evaluate(Step):
    """Measures a link over the grid."""

    files = ("evaluate.json", "evaluate.safetensors")

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the evaluation's modules and the scheme's."""
        return evaluator.modules(spec["scheme"])

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Evaluate."""
        out = folder / "evaluate.json"
        evaluator.evaluate(inputs["link"] / "run", spec["snr_db"], spec["draws"], spec["seed"], device, out=out)

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Evaluate a few test images."""
        link, sets = _link(spec, inputs, device)
        few = _first(sets.test, IMAGES)
        begun = time.perf_counter()
        _, found = evaluator.measure(link, few, spec["snr_db"], 1, spec["seed"], device)
        pace = (time.perf_counter() - begun) * spec["draws"] * len(sets.test) / len(few)
        return Trial(_digest(found), pace, 4 * len(sets.test) * sum(map(len, found.values())))


class Weigh(Step):
    """Measures what a link costs, untrained."""

    files = ("cost.json",)

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the modules of measuring and the scheme's."""
        return weighing.modules(spec["recipe"]["scheme"], spec["recipe"]["channel"])

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Measure."""
        weighing.weigh(recipe_of(spec, None, device), device, folder / "cost.json")

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Measure with one batch an epoch; the witness is of the network that it has trained, and of all counts."""
        with tempfile.TemporaryDirectory() as work:
            done = weighing.weigh(recipe_of(spec, None, device), device, Path(work) / "cost.json", batches=1)
            size = (Path(work) / "cost.json").stat().st_size
        counts = done.model_dump_json(include=weighing.COUNTS | {"weights_sha256"})
        seconds = float(done.timing["seconds"]) + (weighing.BATCHES - 1) * float(done.timing["training_seconds"])
        return Trial(hashlib.sha256(counts.encode()).hexdigest(), seconds, size)


class Attack(Step):
    """Trains an attack on a link, in ``attack``."""

    files = ("plan.json", "attack/record.json", "attack/weights.safetensors", "attack/log.jsonl")

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the attacker's modules, the attack's, the scheme's and her channel's."""
        return attacker.modules(spec["attack"], spec["scheme"], spec["threat"]["channel"])

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Attack, or resume with the precision that was begun with."""
        path = folder / "plan.json"
        if not path.exists():
            write_text(path, json.dumps(asdict(_plan(spec, device)), indent=1))
        attacker.train_attack(inputs["link"] / "run", read_plan(folder), folder / "attack", device, watch)

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Train two epochs of two batches."""
        link, sets = _link(spec, inputs, device)
        plan = _plan(spec, device)
        eve = attacker.build(link, plan, data.describe(sets.name))
        few, short, scale = _few(sets, "attacker", presets.preset(plan.preset).scale(sets.image_shape[0]).attack)
        with tempfile.TemporaryDirectory() as work:
            history = attacker.fit(eve, few, short, plan, Path(work), device)
        size = 4 * sum(p.numel() for p in eve.parameters())
        return Trial(attacker.fingerprint(eve), scale * history[-1]["epoch_seconds"], size)


class Judge(Step):
    """Judges a trained attack over the grid."""

    files = ("judge.json", "judge.safetensors")

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the judge's modules, the attack's and the scheme's."""
        return judge.modules(spec["attack"], spec["scheme"])

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Judge."""
        judge.judge(
            inputs["link"] / "run",
            read_plan(inputs["attack"]),
            inputs["attack"] / "attack",
            spec["snr_db"],
            spec["draws"],
            spec["seed"],
            spec["metrics"],
            device,
            folder / "judge.json",
            reader=inputs["reader"] / "reader" if "reader" in inputs else None,
        )

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Judge a few test images."""
        link, sets = _link(spec, inputs, device)
        if (path := inputs.get("attack")) and path.exists():
            eve = attacker.load_attack(link, read_plan(path), data.describe(sets.name), path / "attack").to(device)
        else:
            eve = attacker.build(link, _plan(spec, device), data.describe(sets.name)).to(device).eval()
        few = replace(sets, test=_first(sets.test, IMAGES))
        begun = time.perf_counter()
        asked = (spec["seed"], spec["metrics"], device)
        found, _ = judge.values(link, eve, few, spec["snr_db"], 1, *asked)
        found[float("inf")] = next(iter(judge.baselines(link, eve, few, *asked).values()))
        most = min(len(sets.test), eve.most_images or len(sets.test))
        pace = (time.perf_counter() - begun) * spec["draws"] * most / len(few.test)
        return Trial(_digest(found), pace, 4 * most * sum(map(len, found.values())))


class Read(Step):
    """Trains the classifier that reads what attacks draw, in ``reader``."""

    files = tuple(f"reader/{name}" for name in reader.FILES)

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the reader's module."""
        return (reader.__name__,)

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Train, or resume."""
        precision = resolve_precision(device, "auto")
        reader.train_reader(
            spec["name"], spec["variant"], spec["preset"], spec["seed"], precision, folder / "reader", device, watch
        )

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Train two epochs of two batches."""
        sets, plan = data.load(spec["name"], spec["variant"]), presets.preset(spec["preset"])
        shown = data.describe(spec["name"])
        few, short, scale = _few(sets, "attacker", plan.scale(shown.image_shape[0]).link)
        reads, precision = reader.build(shown, spec["preset"], spec["seed"]), resolve_precision(device, "auto")
        with tempfile.TemporaryDirectory() as work:
            history = reader.fit(reads, few, short, spec["seed"], precision, Path(work), device)
        size = 4 * sum(p.numel() for p in reads.parameters())
        return Trial(attacker.fingerprint(reads), scale * history[-1]["epoch_seconds"], size)


class Draw(Step):
    """Draws a figure of the recipe from what was measured."""

    files = drawing.FILES

    def modules(self, spec: Spec) -> tuple[str, ...]:
        """Return the drawing's module."""
        return (drawing.__name__,)

    def run(self, spec: Spec, inputs: Inputs, folder: Path, device: torch.device, watch: Watcher) -> None:
        """Draw."""
        found = drawing.read_rows(spec, inputs)
        for name in drawing.FILES:
            drawing.draw(folder / name, spec, found)

    def trial(self, spec: Spec, inputs: Inputs, device: torch.device) -> Trial:
        """Draw, if what is drawn is there."""
        if not all((path / "done.json").exists() for path in inputs.values()):
            return Trial("", _DRAW_SECONDS, _DRAW_BYTES)
        begun, found = time.perf_counter(), drawing.read_rows(spec, inputs)
        if not drawing.curves(spec, found):  # as the run will say
            return Trial("", _DRAW_SECONDS, _DRAW_BYTES)
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / drawing.FILES[0]
            drawing.draw(path, spec, found)
            drawn = path.read_bytes()
        return Trial(hashlib.sha256(drawn).hexdigest(), 2 * (time.perf_counter() - begun), 2 * len(drawn))


STEPS: dict[str, Step] = {
    "prepare": Prepare(),
    "train": Train(),
    "fetch": Fetch(),
    "evaluate": Evaluate(),
    "cost": Weigh(),
    "attack": Attack(),
    "read": Read(),
    "judge": Judge(),
    "draw": Draw(),
}


def witness(step: str, spec: Spec, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    """Return a trial's hash, and the machine on which it can be repeated to the bit."""
    precision = resolve_precision(device, spec.get("precision", "auto"))
    return {
        "sha256": STEPS[step].trial(spec, inputs, device).sha256,
        "machine": describe_machine(device),
        "precision": precision,
    }


def read_plan(folder: Path) -> attacker.Plan:
    """Return the plan of the attack in a cell."""
    found = json.loads((folder / "plan.json").read_text())
    return attacker.Plan(**found | {"threat": Threat(**found["threat"])})


def _plan(spec: Spec, device: torch.device) -> attacker.Plan:
    precision = resolve_precision(device, spec["precision"])
    return attacker.Plan(
        spec["attack"], Threat(**spec["threat"]), spec["preset"], spec["perceptual"], spec["attack_seed"], precision
    )


def _link(spec: Spec, inputs: Inputs, device: torch.device) -> tuple[Link, DataSet]:
    """Return the link that a spec builds on, untrained if it is not there yet, and its images."""
    run = inputs["link"] / "run"
    if (run / "record.json").exists():
        link, recipe = links.load(run), links.read_run(run).recipe
    else:
        recipe = recipe_of(spec["link"], None, device)
        link = links.build(recipe)
    link.scheme.to(device)
    return link, links.image_sets(recipe)


def _few(sets: DataSet, role: str, plan: presets.Schedule) -> tuple[DataSet, presets.Schedule, float]:
    """Return two batches of the images of ``role``, two epochs, and how many such epochs the whole work is."""
    whole = getattr(sets, role)
    size = min(plan.batch_size, len(whole))
    validation = {"transceiver": "validation", "attacker": "attacker_validation"}[role]
    few = {role: _first(whole, 2 * size), validation: _first(getattr(sets, validation), IMAGES)}
    return replace(sets, **few), replace(plan, epochs=2), plan.epochs * len(whole) / min(2 * size, len(whole))


def _first(images: ImageSet, most: int) -> ImageSet:
    return images.subset(torch.arange(min(most, len(images))))


def _digest(found: dict[float, dict[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for snr_db, row in found.items():
        for name, value in row.items():
            digest.update(f"{name}@{snr_db:g}".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()
