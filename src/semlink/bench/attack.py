# SPDX-License-Identifier: Apache-2.0
"""Attacking a trained link: train on the attacker's images, judge on the test set, and say if the attack converged."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semlink._errors import SemlinkError
from semlink._files import exclusive
from semlink.attacks import Attack, Tap, Threat, attacks, class_means, mean_image
from semlink.bench import links, record
from semlink.bench.evaluate import BATCH, finite
from semlink.bench.presets import Schedule, preset
from semlink.bench.record import Measurement
from semlink.data import DataSet, ImageSet
from semlink.metrics import bootstrap_interval, mean_interval, mi_leakage, mi_null, psnr_db, ssim
from semlink.nn import Perceptual
from semlink.schemes import Key
from semlink.training import Batches, Fit, Watcher, checkpoint, make_fabric, seeded

SHOWN = 10
#: LPIPS is the dearest metric by far: one draw of so many test images; its interval says how many.
LPIPS_IMAGES = 2000
_UNITS = {"psnr_db": "dB", "ssim": "1", "mi_leakage": "bit", "lpips": "1"}


def attack(
    folder: Path,
    threat: Threat,
    device: torch.device,
    *,
    name: str = "inversion",
    perceptual: Literal["vgg16", "none"] = "vgg16",
    seed: int = 0,
    precision: Literal["bf16", "fp32"] = "fp32",
    watch: Watcher = lambda moment: None,
    key: Key | None = None,
) -> Path:
    """Attack the run in ``folder`` with the schedule of the preset that it was trained with.

    Its record goes to ``<folder>/attack-<hash of the settings>.json``, and the first test images beside what was drawn
    of them to ``.safetensors`` of the same name (``originals`` and ``drawn``, (n, C, H, W) in [0, 1]). An attack that
    is interrupted resumes from the checkpoint in a folder of that name; one that is finished is not run again.

    Returns:
        The path of the record.

    Raises:
        SemlinkError: the folder is no finished run; perceptual weights or the key are missing; another process is at
            the same attack.
        RuntimeError: the victim's weights or buffers changed (a defect in an attack, never accepted).
    """
    kind = attacks[name]
    threat = dataclasses.replace(threat, snr_db=finite([threat.snr_db])[0])
    links.check_seed(seed)
    trained = links.read_run(folder)
    links.check_key(trained.recipe, key, folder)
    link = links.load(folder, key)
    link.scheme.to(device)
    sets, size = links.image_sets(trained.recipe), preset(trained.recipe.preset)
    scale = size.scale(sets.image_shape[0])
    settings = {"width": scale.decoder_width, "taps": size.perceptual_taps if perceptual == "vgg16" else 0}
    described: dict[str, Any] = {"attack": name, **threat.describe(), **settings, "seed": seed, "precision": precision}
    name_of = repr((sorted(described.items()), trained.weights_sha256))  # a link trained anew is another victim
    work = folder / f"attack-{hashlib.sha256(name_of.encode()).hexdigest()[:12]}"
    if threat.with_secret and link.scheme.secret is None:
        raise SemlinkError(
            f"scheme '{trained.recipe.scheme}' has no key, so there is no attack with the key; leave it out"
        )
    begun, before = time.perf_counter(), fingerprint(link.scheme)
    path = work.with_suffix(".json")
    with exclusive(work):
        checkpoint.sweep(work, "checkpoint", "log.jsonl")
        checkpoint.sweep(folder, work.name + ".")
        if path.exists():
            checkpoint.remove(work)
            return path
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            eve = kind(Tap(link, threat), **settings)
        history = _fit(eve, sets, scale.attack, seed, precision, work, device, watch)
        if fingerprint(link.scheme) != before:
            raise RuntimeError(f"attack '{name}' changed its victim; its result is void")
        result = _judge(eve, sets, size.draws, seed, device, trained.recipe.task == "classify", perceptual == "vgg16")
        fall = last_fifth_fall([row["validation"]["loss"] for row in history])
        finished = record.AttackRecord(
            **record.origin(
                trained.recipe,
                trained.data,
                trained.weights_sha256,
                device,
                training_seconds=sum(row["epoch_seconds"] for row in history),
                last_session_seconds=time.perf_counter() - begun,
            ),
            attack=name,
            threat=threat.describe(),
            settings=described
            | {
                "perceptual": perceptual,
                "schedule": dataclasses.asdict(scale.attack),
                "selection": "weights of least loss on the attacker's validation images",
                "parameters": sum(p.numel() for p in eve.parameters()),
            },
            converged=fall is not None and fall <= 0.01,
            last_fifth_fall=None if fall is None else round(fall, 5),
            draws=size.draws,
            images={
                "attacker": len(sets.attacker),
                "attacker_validation": len(sets.attacker_validation),
                "test": len(sets.test),
            },
            results=result["attack"],
            baselines={k: v for k, v in result.items() if k != "attack"},
            history=history,
        )
        originals = sets.test.batch(torch.arange(SHOWN))[0]
        with torch.no_grad():
            drawn = eve.reconstruct(eve.tap.intercept(originals.to(device), seeded(seed, "shown", device=device)))
        checkpoint.save_tensors(path.with_suffix(".safetensors"), {"originals": originals, "drawn": drawn})
        record.write(path, finished)  # last: its presence means that the attack is finished
        checkpoint.remove(work)
    return path


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


def _fit(
    eve: Attack,
    sets: DataSet,
    plan: Schedule,
    seed: int,
    precision: Literal["bf16", "fp32"],
    work: Path,
    device: torch.device,
    watch: Watcher,
) -> list[dict[str, Any]]:
    batches = Batches([sets.attacker], plan.batch_size, sets.augmentation, seed)
    fabric = make_fabric(device, precision)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        noise, sums, seen = seeded(seed, "attacker validation", device=device), {}, 0
        for indices in torch.arange(len(sets.attacker_validation)).split(BATCH):
            images, targets = sets.attacker_validation.batch(indices)
            for key, value in eve(images.to(device), targets.to(device), noise).items():
                sums[key] = sums.get(key, 0.0) + float(value) * len(indices)
            seen += len(indices)
        return {key: round(total / seen, 6) for key, total in sums.items()}

    fit = Fit(
        model=eve,
        phases=eve.phases(plan.optimiser),
        batches=batches,
        validate=validate,
        epochs=plan.epochs,
        seed=seed,
        folder=work,
        keep_best="loss",
    )
    return fit.run(fabric, watch)


def _judge(
    eve: Attack, sets: DataSet, draws: int, seed: int, device: torch.device, classes: bool, perceptual: bool
) -> dict[str, dict[str, Measurement]]:
    """Measure the attack and the baselines on the test set."""
    lpips = Perceptual("vgg16").to(device) if perceptual else None
    noise, test = seeded(seed, "eavesdropper", device=device), sets.test

    def drawn(indices: Tensor, images: Tensor) -> Tensor:
        return eve.reconstruct(eve.tap.intercept(images, noise))

    mean = mean_image(sets.attacker).to(device)
    judged = {
        "attack": _measure(drawn, test, draws, lpips, seed, device),
        "mean_image": _measure(lambda i, x: mean.expand_as(x), test, 1, lpips, seed, device),
    }
    if classes:
        means = class_means(sets.attacker, len(sets.target_names)).to(device)
        judged["class_mean"] = _measure(lambda i, x: means[test.targets[i].to(device)], test, 1, lpips, seed, device)
    return judged


@torch.no_grad()
def _measure(
    draw: Callable[[Tensor, Tensor], Tensor],
    test: ImageSet,
    draws: int,
    lpips: Perceptual | None,
    seed: int,
    device: torch.device,
) -> dict[str, Measurement]:
    rows: dict[str, list[Tensor]] = {}
    for repeat in range(draws):
        images, guesses = [], []
        parts: dict[str, list[Tensor]] = {}
        for indices in torch.arange(len(test)).split(BATCH):
            shown = test.batch(indices)[0].to(device)
            guess = draw(indices, shown)
            values = {"psnr_db": psnr_db(guess, shown), "ssim": ssim(guess, shown)}
            if lpips is not None and repeat == 0 and int(indices[0]) < LPIPS_IMAGES:
                values["lpips"] = lpips(shown, guess)
            for name, value in values.items():
                parts.setdefault(name, []).append(value.cpu())
            images.append(shown.cpu())
            guesses.append(guess.cpu())
        originals, drawn = torch.cat(images), torch.cat(guesses)
        pairs = torch.Generator().manual_seed(seed)  # the same strangers for every attack and baseline
        parts["mi_leakage"] = [mi_leakage(originals, drawn) - mi_null(originals, drawn, pairs)]
        for name, values in parts.items():
            rows.setdefault(name, []).append(torch.cat(values))
    measured = {name: Measurement.of(mean_interval(torch.stack(v)), _UNITS[name]) for name, v in rows.items()}
    resampling = torch.Generator().manual_seed(seed)
    leaked = bootstrap_interval(torch.stack(rows["mi_leakage"]), generator=resampling)
    return measured | {"mi_leakage": Measurement.of(leaked, _UNITS["mi_leakage"])}
