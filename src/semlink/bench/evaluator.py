# SPDX-License-Identifier: Apache-2.0
"""A trained link on its test set: images are encoded once, every SNR and noise draw runs on the stored symbols."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from semlink import phy
from semlink._errors import SemlinkError
from semlink.bench import code, links, record
from semlink.bench.answering import answers, measured
from semlink.bench.record import Measurement
from semlink.bench.scoring import BATCH, encode, part
from semlink.data import ImageSet
from semlink.metrics import mean_interval, psnr_db, ssim
from semlink.schemes import Key, Link, Sent, Task
from semlink.training import checkpoint, seeded


def finite(snr_db: Sequence[float]) -> list[float]:
    """Return the SNR grid; raise SemlinkError if it is empty or holds what is not a finite number."""
    if not snr_db:
        raise SemlinkError("the SNR grid is empty; give at least one number of dB")
    for value in snr_db:
        if not math.isfinite(value):
            raise SemlinkError(f"snr_db is {value}: a finite number of dB is expected")
    return [float(value) for value in snr_db]


def evaluate(
    folder: Path,
    snr_db: Sequence[float],
    draws: int,
    seed: int,
    device: torch.device,
    key: Key | None = None,
    out: Path | None = None,
) -> record.EvaluateRecord:
    """Measure the run in ``folder`` at every SNR of the grid.

    The record goes to ``out``, by default ``<folder>/evaluate.json``, and what each image came to, its noise draws
    averaged, to ``.safetensors`` of the same name: ``METRIC@SNR (n,) float32``, and the test set's ``targets``.

    Raises:
        SemlinkError: the folder is no finished run; the grid or the number of draws makes no sense; the key is missing.
    """
    grid, begun, out = finite(snr_db), time.perf_counter(), out or folder / "evaluate.json"
    if draws < 1:
        raise SemlinkError(f"draws is {draws}: at least 1 noise draw per image is needed")
    trained = links.read_run(folder)
    links.check_key(trained.recipe, key, folder)
    link = links.load(folder, key)
    link.scheme.to(device)
    sets = links.image_sets(trained.recipe)
    sent = encode(link, sets.test, seeded(seed, "nonces", device=device), device)
    rows = values(link, sent, sets.test, grid, draws, seed, device)
    names = link.scheme.design.task.attributes or sets.target_names
    power, peak = phy.mean_power(sent.symbols), phy.peak_power(sent.symbols)
    each = {f"{name}@{snr:g}": v.mean(0) for snr, found in rows.items() for name, v in found.items()}
    checkpoint.save_tensors(out.with_suffix(".safetensors"), each | {"targets": sets.test.targets})
    positives, constant = _constant(link.scheme.design.task, sets.test, names)
    done = record.EvaluateRecord(
        **record.origin(
            trained.recipe,
            trained.data,
            trained.weights_sha256,
            device,
            code.modules_sha256(*modules(trained.recipe.scheme)),
            seconds=time.perf_counter() - begun,
        ),
        draws=draws,
        noise_seed=seed,
        power={
            "mean": round(float(power.mean()), 7),
            "largest_deviation_from_1": round(float((power - 1).abs().max()), 9),
            "peak": round(float(peak.max()), 4),
        },
        points=[{"snr_db": snr, **_measure(link, found, sets.test, names)} for snr, found in rows.items()],
        positives=positives,
        constant=constant,
    )
    record.write(out, done)
    return done


def modules(scheme: str) -> tuple[str, str]:
    """Return the modules on which an evaluation of ``scheme`` depends, but for what they import."""
    return __name__, links.module_of(scheme)


@torch.no_grad()
def values(
    link: Link, sent: Sent, test: ImageSet, grid: Sequence[float], draws: int, seed: int, device: torch.device
) -> dict[float, dict[str, Tensor]]:
    """Return, for each SNR of the grid, per-image values by metric: (draws, n), or (draws, n, A) for attributes.

    A transmitter that adapts to the SNR is told it, and encodes the images for it.
    """
    found = {}
    for snr_db in grid:
        if link.scheme.adapt(snr_db):
            sent = encode(link, test, seeded(seed, "nonces", device=device), device)
        noise = seeded(seed, "test noise", snr_db, device=device)
        rows = [_receive(link, sent, test, snr_db, noise, device) for _ in range(draws)]
        found[snr_db] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return found


def _receive(
    link: Link, sent: Sent, test: ImageSet, snr_db: float, noise: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """One noise draw of the whole test set: per-image values by metric."""
    rows: dict[str, list[Tensor]] = {}
    kind = link.scheme.design.task.kind
    for indices in torch.arange(len(test)).split(BATCH):
        these = part(sent, indices)
        output = link.receive(link.channel(these.symbols, snr_db, noise), these.header)
        images, targets = test.batch(indices)
        images, targets = images.to(device), targets.to(device)
        if kind == "reconstruct":
            found = {"psnr_db": psnr_db(output, images), "ssim": ssim(output, images)}
        else:
            found = answers(output, link.scheme.design.task.targets(targets))
        for name, value in found.items():
            rows.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in rows.items()}


def _measure(link: Link, found: dict[str, Tensor], test: ImageSet, names: Sequence[str]) -> dict[str, Measurement]:
    if link.scheme.design.task.kind != "reconstruct":
        return measured(found, link.scheme.design.task.targets(test.targets), names)
    return {
        "psnr_db": Measurement.of(mean_interval(found["psnr_db"]), "dB"),
        "ssim": Measurement.of(mean_interval(found["ssim"]), "1"),
    }


def _constant(task: Task, test: ImageSet, names: Sequence[str]) -> tuple[dict[str, int], dict[str, Measurement]]:
    """Return how many images have each attribute, and what always giving the commoner answer scores."""
    if task.kind != "attributes":
        return {}, {}
    targets = task.targets(test.targets)
    counts = [int(count) for count in targets.sum(0).tolist()]
    always = torch.tensor([1.0 if 2 * count > len(targets) else -1.0 for count in counts]).expand(targets.shape)
    found = {name: value[None] for name, value in answers(always, targets).items()}
    found["scores"] = torch.zeros_like(found["scores"])  # of a constant no image ranks above another
    return dict(zip(names, counts, strict=True)), measured(found, targets, names)
