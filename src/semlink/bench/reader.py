# SPDX-License-Identifier: Apache-2.0
"""A classifier that reads reconstructions: what is still to be seen on them, as a number.

    image ─> Encoder ─> latent (width,4,4) ─> Classifier ─> features (head) ─> logits

The networks of a link with no channel between, and so with no narrow place for it. (Through the 8 channels that 64
channel uses leave, 77 % instead of 90 % of the digits were read right after five epochs.) It is trained on clean images
of the attacker and never sees one of the transceiver's.

<folder>/checkpoint*            while training
         log.jsonl              a line an epoch
         weights.safetensors    the trained reader
         reader.json            written last: its presence means that the reader is trained
"""

import dataclasses
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink import _version, data
from semlink._errors import SemlinkError
from semlink._files import exclusive, sha256_file
from semlink.bench import code, record
from semlink.bench.presets import Schedule, preset
from semlink.bench.record import Measurement
from semlink.data import DataSet, Description, ImageSet
from semlink.metrics import (
    accuracy,
    attribute_balanced_accuracy,
    balanced_accuracy,
    correct,
    correct_attributes,
    mean_interval,
)
from semlink.nn import Backbone, Classifier, Encoder, Phase
from semlink.training import Batches, Fit, Watcher, checkpoint, describe_machine, make_fabric

#: What a trained reader is.
FILES = ("reader.json", "weights.safetensors", "log.jsonl")
_BATCH = 500


class Reader(nn.Module):
    """Names the class or all attributes of an image.

    Args:
        shown: what the images and their targets are.
        backbone: size of the networks.
        label_smoothing: of classes, in training.
    """

    def __init__(self, shown: Description, backbone: Backbone, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.kind, self.label_smoothing = shown.kind, label_smoothing
        self.encoder = Encoder(shown.image_shape, backbone.width, backbone)
        self.classifier = Classifier(backbone.width, shown.targets, backbone)

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, the cross-entropy in nats, a mean over attributes if the targets are such."""
        del generator
        logits = self.answer(images)
        if self.kind == "attributes":
            return {"loss": F.binary_cross_entropy_with_logits(logits, targets)}
        return {"loss": F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing * self.training)}

    def answer(self, images: Tensor) -> Tensor:
        """Return logits (B, outputs) float32 for ``images: (B, C, H, W)`` in [0, 1]."""
        return self.classifier(self.encoder(images)).float()

    def features(self, images: Tensor) -> Tensor:
        """Return what the logits are made of, (B, d) float32, for ``images: (B, C, H, W)`` in [0, 1]."""
        return self.classifier.layers(self.encoder(images)).float()


class ReaderRecord(record.Strict):
    """A trained reader, and how well it reads clean images.

    ``measured`` is on the attacker's validation images, which also selected the weights: ``accuracy``, and
    ``balanced_accuracy`` of classes or ``balanced_accuracy.NAME`` of each attribute. What is read of reconstructions is
    to be held to it.
    """

    format: int = record.FORMAT
    kind: Literal["reader"] = "reader"
    semlink: str = _version.VERSION
    code_sha256: str
    step_sha256: str
    libraries: dict[str, str]
    machine: dict[str, str | int]
    data: dict[str, Any]
    preset: str
    seed: int
    precision: Literal["bf16", "fp32"]
    schedule: dict[str, Any]
    selection: str
    parameters: int
    images: dict[str, int]
    measured: dict[str, Measurement]
    weights_sha256: str
    timing: dict[str, float | str]


def build(shown: Description, preset_name: str, seed: int) -> Reader:
    """Return the untrained reader, of the size of the preset's links; its weights depend on the seed alone."""
    scale = preset(preset_name).scale(shown.image_shape[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Reader(shown, scale.backbone, scale.link.label_smoothing)


def train_reader(
    name: str,
    variant: str,
    preset_name: str,
    seed: int,
    precision: Literal["bf16", "fp32"],
    folder: Path,
    device: torch.device,
    watch: Watcher = lambda moment: None,
) -> None:
    """Train the reader of a data set in ``folder``, as long as the preset trains a link; resume it, or leave it be.

    Raises:
        SemlinkError: a name is unknown; the images are missing or damaged; ``folder`` holds another reader; another
            process is at it.
        TrainingDiverged: the loss is not finite.
    """
    size = preset(preset_name)
    with exclusive(folder):
        checkpoint.sweep(folder, "checkpoint", *FILES)
        if (folder / "reader.json").exists():
            _check(read(folder), folder, name=name, variant=variant, preset=preset_name, seed=seed)
            checkpoint.remove(folder)
            return
        sets, shown, begun = data.load(name, variant), data.describe(name), time.perf_counter()
        if size.images is not None:
            roles = ("attacker", "attacker_validation")
            fewer = {role: getattr(sets, role) for role in roles}
            sets = dataclasses.replace(
                sets, **{role: s.subset(torch.arange(min(size.images, len(s)))) for role, s in fewer.items()}
            )
        schedule, reader = size.scale(shown.image_shape[0]).link, build(shown, preset_name, seed)
        history = fit(reader, sets, schedule, seed, precision, folder, device, watch)
        checkpoint.save_tensors(folder / "weights.safetensors", reader.state_dict())
        done = ReaderRecord(
            code_sha256=record.code_sha256(),
            step_sha256=code.modules_sha256(__name__),
            libraries={library: version(library) for library in record.LIBRARIES},
            machine=describe_machine(device),
            data=sets.provenance,
            preset=preset_name,
            seed=seed,
            precision=precision,
            schedule=schedule.describe(),
            selection="weights of least loss on the attacker's validation images",
            parameters=sum(p.numel() for p in reader.parameters()),
            images={"attacker": len(sets.attacker), "attacker_validation": len(sets.attacker_validation)},
            measured=measure(reader, sets.attacker_validation, sets.target_names, device),
            weights_sha256=sha256_file(folder / "weights.safetensors"),
            timing={
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "training_seconds": round(sum(row["epoch_seconds"] for row in history), 1),
                "last_session_seconds": round(time.perf_counter() - begun, 1),
            },
        )
        record.write(folder / "reader.json", done)
        checkpoint.remove(folder)


def fit(
    reader: Reader,
    sets: DataSet,
    schedule: Schedule,
    seed: int,
    precision: Literal["bf16", "fp32"],
    folder: Path,
    device: torch.device,
    watch: Watcher = lambda moment: None,
) -> list[dict[str, Any]]:
    """Train ``reader`` on the attacker's images, from the checkpoint in ``folder`` if there is one.

    Returns:
        The history, a row an epoch.
    """
    reader.encoder.whitening.measure(sets.attacker.batch(torch.arange(min(len(sets.attacker), 5000)))[0])
    held_out = sets.attacker_validation.to(device)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        unused, total = torch.Generator(), 0.0
        for indices in torch.arange(len(held_out)).split(_BATCH):
            total += float(reader(*held_out.batch(indices), unused)["loss"]) * len(indices)
        return {"loss": round(total / len(held_out), 6)}

    training = Fit(
        model=reader,
        phases=[Phase("reader", reader, schedule.optimiser)],
        batches=Batches([sets.attacker], schedule.batch_size, sets.augmentation, seed),
        validate=validate,
        epochs=schedule.epochs,
        seed=seed,
        folder=folder,
        keep_best="loss",
    )
    return training.run(make_fabric(device, precision), watch)


@torch.no_grad()
def measure(reader: Reader, images: ImageSet, names: tuple[str, ...], device: torch.device) -> dict[str, Measurement]:
    """Return how well ``reader`` reads ``images``; ``names`` are those of classes or attributes."""
    parts = torch.arange(len(images)).split(_BATCH)
    logits = torch.cat([reader.answer(images.batch(indices)[0].to(device)).cpu() for indices in parts])
    if reader.kind == "classes":
        right = correct(logits, images.targets)
        found = {"accuracy": accuracy(right), "balanced_accuracy": balanced_accuracy(right, images.targets)}
    else:
        right = correct_attributes(logits, images.targets)
        each = attribute_balanced_accuracy(right, images.targets)
        found = {"accuracy": mean_interval(right.mean(1))}
        found |= {f"balanced_accuracy.{name}": interval for name, interval in zip(names, each, strict=True)}
    return {name: Measurement.of(interval, "%", 100) for name, interval in found.items()}


def read(folder: Path) -> ReaderRecord:
    """Return the record of the trained reader in ``folder``.

    Raises:
        SemlinkError: it is missing, damaged or of a newer version.
    """
    return record.read(folder / "reader.json", ReaderRecord)


def load_reader(folder: Path, shown: Description, device: torch.device) -> Reader:
    """Return the trained reader of ``folder`` for such images, in evaluation mode on ``device``.

    Raises:
        SemlinkError: its record or weights are missing, damaged or of another network.
    """
    trained = read(folder)
    reader, remedy = build(shown, trained.preset, trained.seed), f"remove {folder} and train the reader again"
    try:
        reader.load_state_dict(checkpoint.load_tensors(folder / "weights.safetensors", trained.weights_sha256, remedy))
    except RuntimeError:
        raise SemlinkError(f"{folder / 'weights.safetensors'} does not fit this Semlink; {remedy}") from None
    return reader.to(device).eval()


def _check(found: ReaderRecord, folder: Path, **asked: str | int) -> None:
    """Raise SemlinkError unless the reader is the one that is asked for."""
    held = {"name": found.data["name"], "variant": found.data["variant"], "preset": found.preset, "seed": found.seed}
    shown = ", ".join(
        f"{key} {held[key]!r} there, {value!r} here" for key, value in asked.items() if held[key] != value
    )
    if shown:
        raise SemlinkError(f"{folder} holds another reader ({shown}); choose another folder")
