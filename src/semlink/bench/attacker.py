# SPDX-License-Identifier: Apache-2.0
"""Training an attack on a link: on the attacker's images, to the weights of least loss on her validation images.

<work>/checkpoint*            while training
       log.jsonl              a line an epoch
       weights.safetensors    the trained attack
       record.json            written last: its presence means that the attack is trained
"""

import dataclasses
import hashlib
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from semlink._errors import SemlinkError
from semlink._files import exclusive, sha256_file
from semlink.attacks import Attack, Inference, Threat, attacks
from semlink.bench import code, links, record
from semlink.bench.presets import Schedule, preset
from semlink.bench.scoring import BATCH
from semlink.data import DataSet, Description, describe
from semlink.schemes import Key, Link
from semlink.training import Batches, Fit, Watcher, checkpoint, make_fabric, seeded


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that determines an attack on a given link.

    Attributes:
        name: key of the attack.
        threat: what she may see.
        preset: whose schedule and sizes she uses.
        perceptual: her perceptual loss; vgg16 needs its weights.
    """

    name: str
    threat: Threat
    preset: str
    perceptual: Literal["vgg16", "none"]
    seed: int
    precision: Literal["bf16", "fp32"]

    def describe(self, shown: Description) -> dict[str, Any]:
        """Return what a record says of the attack on such images."""
        said = {"attack": self.name, **self.threat.describe(), **self.sizes(shown)}
        return said | {"preset": self.preset, "seed": self.seed, "precision": self.precision}

    def sizes(self, shown: Description) -> dict[str, int | str]:
        """Return the arguments of the attack's class."""
        size = preset(self.preset)
        width: dict[str, int | str] = {"width": size.scale(shown.image_shape[0]).decoder_width}
        if issubclass(attacks[self.name], Inference):
            return width | {"kind": shown.kind, "outputs": shown.targets}
        return width | {"taps": size.perceptual_taps if self.perceptual == "vgg16" else 0}


def check(plan: Plan, trained: record.TrainRecord) -> None:
    """Raise SemlinkError unless the attack makes sense for the link of ``trained``."""
    attacks[plan.name]
    links.check_seed(plan.seed)
    if plan.threat.with_secret and links.secret_of(trained.recipe.scheme) is None:
        raise SemlinkError(
            f"scheme '{trained.recipe.scheme}' has no key, so there is no attack with the key; leave it out"
        )


def train_attack(
    run: Path,
    plan: Plan,
    work: Path,
    device: torch.device,
    watch: Watcher = lambda moment: None,
    key: Key | None = None,
) -> record.AttackRecord:
    """Train the attack on the run in ``run``, in ``work``; resume it, or return its record if that is done.

    Raises:
        SemlinkError: ``run`` is no finished run; perceptual weights or the key are missing; another process is at it.
        TrainingDiverged: the loss is not finite.
        RuntimeError: the victim's weights or buffers changed (a defect in an attack, never accepted).
    """
    trained = links.read_run(run)
    check(plan, trained)
    links.check_key(trained.recipe, key, run)
    link, begun = links.load(run, key), time.perf_counter()
    link.scheme.to(device)
    with exclusive(work):
        checkpoint.sweep(work, "checkpoint", "log.jsonl", "weights.safetensors", "record.json")
        if (work / "record.json").exists():
            checkpoint.remove(work)
            return record.read(work / "record.json", record.AttackRecord)
        sets, shown = links.image_sets(trained.recipe), describe(trained.recipe.data)
        schedule = preset(plan.preset).scale(shown.image_shape[0]).attack
        eve, before = build(link, plan, shown), fingerprint(link.scheme)
        history = fit(eve, sets, schedule, plan, work, device, watch)
        if fingerprint(link.scheme) != before:
            raise RuntimeError(f"attack '{plan.name}' changed its victim; its result is void")
        checkpoint.save_tensors(work / "weights.safetensors", eve.state_dict())
        fall = last_fifth_fall([row["validation"]["loss"] for row in history])
        done = record.AttackRecord(
            **record.origin(
                trained.recipe,
                trained.data,
                trained.weights_sha256,
                device,
                code.modules_sha256(*modules(plan.name, trained.recipe.scheme, plan.threat.channel)),
                training_seconds=sum(row["epoch_seconds"] for row in history),
                last_session_seconds=time.perf_counter() - begun,
            ),
            attack=plan.name,
            threat=plan.threat.describe(),
            settings=plan.describe(shown)
            | {
                "perceptual": plan.perceptual,
                "sees": sorted(eve.sees),
                "schedule": schedule.describe(),
                "selection": "weights of least loss on the attacker's validation images",
                "parameters": sum(p.numel() for p in eve.parameters()),
            },
            converged=fall is not None and fall <= 0.01,
            last_fifth_fall=None if fall is None else round(fall, 5),
            attacker_sha256=sha256_file(work / "weights.safetensors"),
            images={
                "attacker": len(sets.attacker),
                "attacker_validation": len(sets.attacker_validation),
                "test": len(sets.test),
            },
            history=history,
        )
        record.write(work / "record.json", done)
        checkpoint.remove(work)
    return done


def build(link: Link, plan: Plan, shown: Description) -> Attack:
    """Return the untrained attack on ``link``, without touching torch's own generator."""
    kind = attacks[plan.name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return kind(kind.tapped(link, plan.threat, kind.sees), **plan.sizes(shown))


def load_attack(link: Link, plan: Plan, shown: Description, work: Path) -> Attack:
    """Return the trained attack of ``work`` on ``link``.

    Raises:
        SemlinkError: its weights are missing, damaged or of another network.
    """
    trained = record.read(work / "record.json", record.AttackRecord)
    eve = build(link, plan, shown)
    remedy = f"remove {work} and attack again"
    try:
        eve.load_state_dict(checkpoint.load_tensors(work / "weights.safetensors", trained.attacker_sha256, remedy))
    except RuntimeError:
        raise SemlinkError(f"{work / 'weights.safetensors'} does not fit this Semlink; {remedy}") from None
    return eve.eval()


def modules(attack: str, scheme: str, channel: str | None = None) -> tuple[str, ...]:
    """Return the modules on which an attack over ``channel`` depends, but for what they and the link's import."""
    return __name__, attacks[attack].__module__, *links.modules_of(scheme, channel)


def fit(
    eve: Attack,
    sets: DataSet,
    schedule: Schedule,
    plan: Plan,
    work: Path,
    device: torch.device,
    watch: Watcher = lambda moment: None,
) -> list[dict[str, Any]]:
    """Train ``eve`` on the attacker's images and return the history, a row an epoch."""
    users = sets.attacker.members()
    augmentation = sets.augmentation if len(users) == 1 else None  # as the network itself was trained
    batches = Batches(users, schedule.batch_size, augmentation, plan.seed)
    fabric, held_out = make_fabric(device, plan.precision), sets.attacker_validation.to(device)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        noise, sums, seen = seeded(plan.seed, "attacker validation", device=device), {}, 0
        for indices in torch.arange(len(held_out)).split(BATCH):
            for key, value in eve(*held_out.batch(indices), noise).items():
                sums[key] = sums.get(key, 0.0) + float(value) * len(indices)
            seen += len(indices)
        return {key: round(total / seen, 6) for key, total in sums.items()}

    training = Fit(
        model=eve,
        phases=eve.phases(schedule.optimiser),
        batches=batches,
        validate=validate,
        epochs=schedule.epochs,
        seed=plan.seed,
        folder=work,
        keep_best="loss",
    )
    return training.run(fabric, watch)


def fingerprint(module: nn.Module) -> str:
    """Return a hash of every parameter and buffer, BatchNorm's statistics too."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def last_fifth_fall(losses: list[float]) -> float | None:
    """Return by which share the best validation loss still fell in the last fifth of the steps.

    An attack for which this exceeds 1 % has not converged. Nothing can be said, None, of fewer than five epochs or of
    losses that are not finite. A fifth that is no whole number of epochs is rounded up.
    """
    if len(losses) < 5 or not all(map(math.isfinite, losses)):
        return None
    earlier, best = min(losses[: len(losses) * 4 // 5]), min(losses)
    return (earlier - best) / abs(earlier) if earlier else 0.0
