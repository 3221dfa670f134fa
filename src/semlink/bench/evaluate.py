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
from semlink.bench import links, record
from semlink.bench.record import Measurement
from semlink.data import ImageSet
from semlink.metrics import (
    accuracy,
    attribute_balanced_accuracy,
    balanced_accuracy,
    correct,
    correct_attributes,
    mean_interval,
    psnr_db,
    ssim,
)
from semlink.schemes import Key, Link
from semlink.training import seeded

BATCH = 500


def receiver_output(link: Link, images: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """Send ``images`` over the link at ``snr_db`` and return what the receiver makes of them."""
    sent = link.transmit(images, generator)
    return link.receive(link.channel(sent.symbols, snr_db, generator), sent.header)


def score(link: Link, output: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Return the utility of each image: 1 or 0, the share of right attributes, or PSNR in dB. Shape (B,)."""
    kind = link.scheme.design.task.kind
    if kind == "classify":
        return correct(output, targets)
    if kind == "attributes":
        return correct_attributes(output, targets).mean(1)
    return psnr_db(output, images)


def finite(snr_db: Sequence[float]) -> list[float]:
    """Return the SNR grid; raise SemlinkError if it is empty or holds what is not a finite number."""
    if not snr_db:
        raise SemlinkError("the SNR grid is empty; give at least one number of dB")
    for value in snr_db:
        if not math.isfinite(value):
            raise SemlinkError(f"snr_db is {value}: a finite number of dB is expected")
    return [float(value) for value in snr_db]


def evaluate(
    folder: Path, snr_db: Sequence[float], draws: int, seed: int, device: torch.device, key: Key | None = None
) -> record.EvaluateRecord:
    """Measure the run in ``folder`` on its test set at every SNR of the grid; keep the record there, ``evaluate.json``.

    Raises:
        SemlinkError: the folder is no finished run; the grid or the number of draws makes no sense; the key is missing.
    """
    grid, begun = finite(snr_db), time.perf_counter()
    if draws < 1:
        raise SemlinkError(f"draws is {draws}: at least 1 noise draw per image is needed")
    trained = links.read_run(folder)
    links.check_key(trained.recipe, key, folder)
    link = links.load(folder, key)
    sets = links.image_sets(trained.recipe)
    test, names = sets.test, sets.target_names
    link.scheme.to(device)
    symbols, header = _encode(link, test, seeded(seed, "nonces", device=device), device)
    points = []
    for value in grid:
        noise = seeded(seed, "test noise", value, device=device)
        rows = [_receive(link, symbols, header, test, value, noise, device) for _ in range(draws)]
        points.append({"snr_db": value, **_measure(link, rows, test, names)})
    power, peak = phy.mean_power(symbols), phy.peak_power(symbols)
    measured = record.EvaluateRecord(
        **record.origin(
            trained.recipe, trained.data, trained.weights_sha256, device, seconds=time.perf_counter() - begun
        ),
        draws=draws,
        noise_seed=seed,
        power={
            "mean": round(float(power.mean()), 7),
            "largest_deviation_from_1": round(float((power - 1).abs().max()), 9),
            "peak": round(float(peak.max()), 4),
        },
        points=points,
    )
    record.write(folder / "evaluate.json", measured)
    return measured


@torch.no_grad()
def _encode(link: Link, test: ImageSet, nonces: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
    parts = [link.transmit(test.batch(i)[0].to(device), nonces) for i in torch.arange(len(test)).split(BATCH)]
    headers = [part.header for part in parts if part.header is not None]
    return torch.cat([part.symbols for part in parts]), torch.cat(headers) if headers else None


def _receive(
    link: Link,
    symbols: Tensor,
    header: Tensor | None,
    test: ImageSet,
    snr_db: float,
    noise: torch.Generator,
    device: torch.device,
) -> dict[str, Tensor]:
    """One noise draw of the whole test set: per-image values by metric."""
    rows: dict[str, list[Tensor]] = {}
    for indices in torch.arange(len(test)).split(BATCH):
        where = indices.to(device)
        received = link.channel(symbols[where], snr_db, noise)
        output = link.receive(received, None if header is None else header[where.to(header.device)])
        images, targets = test.batch(indices)
        images, targets = images.to(device), targets.to(device)
        values = {"utility": score(link, output, images, targets)}
        if link.scheme.design.task.kind == "reconstruct":
            values["ssim"] = ssim(output, images)
        if link.scheme.design.task.kind == "attributes":
            values["attributes"] = correct_attributes(output, targets)
        for name, value in values.items():
            rows.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in rows.items()}


def _measure(link: Link, rows: list[dict[str, Tensor]], test: ImageSet, names: Sequence[str]) -> dict[str, Measurement]:
    utility = torch.stack([row["utility"] for row in rows])
    kind = link.scheme.design.task.kind
    if kind == "reconstruct":
        structure = torch.stack([row["ssim"] for row in rows])
        return {
            "psnr_db": Measurement.of(mean_interval(utility), "dB"),
            "ssim": Measurement.of(mean_interval(structure), "1"),
        }
    if kind == "classify":
        return {
            "accuracy": Measurement.of(accuracy(utility), "%", 100),
            "balanced_accuracy": Measurement.of(balanced_accuracy(utility, test.targets), "%", 100),
        }
    right = torch.stack([row["attributes"] for row in rows])
    each = zip(names, attribute_balanced_accuracy(right, test.targets), strict=True)
    # Accuracy flatters rare attributes, so each also gets its balanced accuracy (a constant answer has 50 %).
    return {
        "accuracy": Measurement.of(mean_interval(utility), "%", 100),
        **{f"balanced_accuracy.{name}": Measurement.of(interval, "%", 100) for name, interval in each},
    }
