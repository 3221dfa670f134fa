# SPDX-License-Identifier: Apache-2.0
"""Judging a trained attack on the test set: what it draws over a grid of SNRs, beside what is known without it.

Every image is sent once; the eavesdropper's SNRs and noise draws run on the stored symbols, with noise of her own.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_name
from semlink.attacks import Attack, class_means, mean_image
from semlink.bench import attacker, code, links, record
from semlink.bench.evaluator import finite
from semlink.bench.record import Measurement
from semlink.bench.scoring import BATCH, encode, part
from semlink.data import DataSet, ImageSet
from semlink.metrics import bootstrap_interval, mean_interval, mi_leakage, mi_null, psnr_db, ssim
from semlink.nn import Perceptual
from semlink.schemes import Key, Link
from semlink.training import checkpoint, seeded

SHOWN = 10
#: LPIPS is the dearest metric by far: one draw of so many test images; its interval says how many.
LPIPS_IMAGES = 2000
UNITS = {"psnr_db": "dB", "ssim": "1", "mi_leakage": "bit", "lpips": "1"}
#: Per-image values by metric: (draws, n).
Values = dict[str, Tensor]


def judge(
    run: Path,
    plan: attacker.Plan,
    work: Path,
    snr_db: Sequence[float],
    draws: int,
    seed: int,
    metrics: Sequence[str],
    device: torch.device,
    out: Path,
    key: Key | None = None,
) -> record.JudgeRecord:
    """Measure the attack trained in ``work`` on the run in ``run`` at every SNR of the grid.

    The record goes to ``out``; to ``.safetensors`` of the same name what each image came to, noise draws averaged,
    ``METRIC@SNR (n,) float32``, and the first test images beside what was drawn of them at the attack's own SNR:
    ``originals`` and ``drawn``, (n, C, H, W) in [0, 1].

    Raises:
        SemlinkError: the grid, a metric or the number of draws makes no sense; the key or perceptual weights are
            missing; a file is damaged.
    """
    grid, begun = finite(snr_db), time.perf_counter()
    if draws < 1:
        raise SemlinkError(f"draws is {draws}: at least 1 noise draw per image is needed")
    for metric in metrics:
        check_name("metric", metric, UNITS)
    trained = links.read_run(run)
    links.check_key(trained.recipe, key, run)
    link = links.load(run, key)
    link.scheme.to(device)
    made = record.read(work / "record.json", record.AttackRecord)
    sets, eve = links.image_sets(trained.recipe), attacker.load_attack(link, plan, work).to(device)
    most = min(len(sets.test), eve.most_images or len(sets.test))
    sets = dataclasses.replace(sets, test=sets.test.subset(torch.arange(most)))
    found = values(link, eve, sets, grid, draws, seed, metrics, device)
    originals = sets.test.batch(torch.arange(SHOWN))[0]
    with torch.no_grad():
        drawn = eve.reconstruct(eve.tap.intercept(originals.to(device), seeded(seed, "shown", device=device)))
    each = {f"{name}@{snr:g}": v.mean(0) for snr, row in found.items() for name, v in row.items()}
    checkpoint.save_tensors(out.with_suffix(".safetensors"), each | {"originals": originals, "drawn": drawn})
    judged = record.JudgeRecord(
        **made.model_dump(include={"attack", "threat", "settings", "converged", "last_fifth_fall", "attacker_sha256"}),
        images=made.images | {"test": most},
        history=made.history,
        **record.origin(
            trained.recipe,
            trained.data,
            trained.weights_sha256,
            device,
            code.modules_sha256(*modules(plan.name, trained.recipe.scheme)),
            training_seconds=float(made.timing["training_seconds"]),
            judging_seconds=time.perf_counter() - begun,
        ),
        draws=draws,
        noise_seed=seed,
        points=[{"snr_db": snr, **_summary(row, seed)} for snr, row in found.items()],
        baselines={
            name: _summary(row, seed)
            for name, row in baselines(sets, trained.recipe.task == "classify", seed, metrics, device).items()
        },
    )
    record.write(out, judged)
    return judged


def modules(attack: str, scheme: str) -> tuple[str, ...]:
    """Return the modules on which judging an attack depends, but for what they import."""
    return __name__, *attacker.modules(attack, scheme)


@torch.no_grad()
def values(
    link: Link,
    eve: Attack,
    sets: DataSet,
    grid: Sequence[float],
    draws: int,
    seed: int,
    metrics: Sequence[str],
    device: torch.device,
) -> dict[float, Values]:
    """Return, for each SNR of the grid, per-image values of what ``eve`` draws of the test set."""
    sent = encode(link, sets.test, seeded(seed, "eavesdropped nonces", device=device), device)
    lpips = _lpips(metrics, device)
    found: dict[float, Values] = {}
    for snr_db in grid:
        noise = seeded(seed, "eavesdropper", snr_db, device=device)

        def drawn(indices: Tensor, noise: torch.Generator = noise, snr_db: float = snr_db) -> Tensor:
            return eve.reconstruct(eve.tap.hear(part(sent, indices), noise, snr_db))

        rows = [
            _draw(drawn, sets.test, metrics, lpips if not repeat else None, seed, device) for repeat in range(draws)
        ]
        found[snr_db] = {name: torch.stack([row[name] for row in rows if name in row]) for name in rows[0]}
    return found


@torch.no_grad()
def baselines(
    sets: DataSet, classes: bool, seed: int, metrics: Sequence[str], device: torch.device
) -> dict[str, Values]:
    """Return per-image values of drawing the attacker's mean image, and the mean of the right class."""
    lpips, test = _lpips(metrics, device), sets.test
    mean = mean_image(sets.attacker).to(device)
    guesses: dict[str, Callable[[Tensor], Tensor]] = {"mean_image": lambda i: mean.expand(len(i), *mean.shape)}
    if classes:
        means = class_means(sets.attacker, len(sets.target_names)).to(device)
        guesses["class_mean"] = lambda i: means[test.targets[i].to(device)]
    return {
        name: {metric: v[None] for metric, v in _draw(guess, test, metrics, lpips, seed, device).items()}
        for name, guess in guesses.items()
    }


def _lpips(metrics: Sequence[str], device: torch.device) -> Perceptual | None:
    return Perceptual("vgg16").to(device) if "lpips" in metrics else None


def _draw(
    drawn: Callable[[Tensor], Tensor],
    test: ImageSet,
    metrics: Sequence[str],
    lpips: Perceptual | None,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """One drawing of the whole test set: per-image values by metric, (n,)."""
    images, guesses = [], []
    parts: dict[str, list[Tensor]] = {}
    for indices in torch.arange(len(test)).split(BATCH):
        shown = test.batch(indices)[0].to(device)
        guess = drawn(indices)
        if "psnr_db" in metrics:
            parts.setdefault("psnr_db", []).append(psnr_db(guess, shown).cpu())
        if "ssim" in metrics:
            parts.setdefault("ssim", []).append(ssim(guess, shown).cpu())
        if lpips is not None and int(indices[0]) < LPIPS_IMAGES:
            parts.setdefault("lpips", []).append(lpips(shown, guess).cpu())
        images.append(shown.cpu())
        guesses.append(guess.cpu())
    if "mi_leakage" in metrics:
        originals, drawings = torch.cat(images), torch.cat(guesses)
        pairs = torch.Generator().manual_seed(seed)  # the same strangers for every attack and baseline
        parts["mi_leakage"] = [mi_leakage(originals, drawings) - mi_null(originals, drawings, pairs)]
    return {name: torch.cat(found) for name, found in parts.items()}


def _summary(found: Values, seed: int) -> dict[str, Measurement]:
    """Return each metric with its interval; MI leakage is skewed, so its images are resampled."""
    return {
        name: Measurement.of(
            bootstrap_interval(each, generator=torch.Generator().manual_seed(seed))
            if name == "mi_leakage"
            else mean_interval(each),
            UNITS[name],
        )
        for name, each in found.items()
    }
