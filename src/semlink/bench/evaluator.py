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
from semlink.bench.examples import examples
from semlink.bench.measures import UNITS
from semlink.bench.record import Measurement
from semlink.bench.scoring import BATCH, encode, part
from semlink.data import ImageSet
from semlink.metrics import correct, correct_attributes, mean_interval, psnr_db, ssim
from semlink.schemes import Key, Link, Network, Sent, Task
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
    averaged, to ``.safetensors`` of the same name: ``METRIC@SNR (n,) float32``, and the test set's ``targets``. Of a
    link that sends images there are ``examples`` too, received at the link's own SNR.

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
    symbols, rows = measure(link, sets.test, grid, draws, seed, device)
    names = link.scheme.design.task.attributes or sets.target_names
    power, peak = phy.mean_power(symbols), phy.peak_power(symbols)
    each = {f"{name}@{snr:g}": v.mean(0) for snr, found in rows.items() for name, v in found.items()}
    each["targets"] = sets.test.targets
    if link.scheme.design.task.kind == "reconstruct":
        noise = seeded(seed, "shown", device=device)
        link.scheme.adapt(link.snr_db)
        each |= examples(sets.test, rows, link.snr_db, lambda i: link.deliver(i.to(device), link.snr_db, noise))
    checkpoint.save_tensors(out.with_suffix(".safetensors"), each)
    positives, constant = (
        ({}, {}) if isinstance(link, Network) else _constant(link.scheme.design.task, sets.test, names)
    )
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


def modules(scheme: str) -> tuple[str, ...]:
    """Return the modules on which an evaluation of ``scheme`` depends, but for what they and its training import."""
    return __name__, *links.modules_of(scheme)


def measure(
    link: Link, test: ImageSet, grid: Sequence[float], draws: int, seed: int, device: torch.device
) -> tuple[Tensor, dict[float, dict[str, Tensor]]]:
    """Return symbols that were sent, a row an image, and for each SNR of the grid per-image values by metric."""
    test = test.to(device)
    if isinstance(link, Network):
        return _together(link, test, grid, draws, seed)
    sent = encode(link, test, seeded(seed, "nonces", device=device), device)
    return sent.symbols, values(link, sent, test, grid, draws, seed, device)


@torch.no_grad()
def values(
    link: Link, sent: Sent, test: ImageSet, grid: Sequence[float], draws: int, seed: int, device: torch.device
) -> dict[float, dict[str, Tensor]]:
    """Return, for each SNR of the grid, per-image values by metric: (draws, n), or (draws, n, A) for attributes.

    A transmitter that adapts to the SNR is told it, and encodes the images for it.
    """
    test, found = test.to(device), {}
    for snr_db in grid:
        if link.scheme.adapt(snr_db):
            sent = encode(link, test, seeded(seed, "nonces", device=device), device)
        noise = seeded(seed, "test noise", snr_db, device=device)
        rows = [_receive(link, sent, test, snr_db, noise) for _ in range(draws)]
        found[snr_db] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return found


@torch.no_grad()
def _together(
    link: Network, test: ImageSet, grid: Sequence[float], draws: int, seed: int
) -> tuple[Tensor, dict[float, dict[str, Tensor]]]:
    """Send groups of images by all users at once, each over channels of its own.

    Channels and noise come from the seed, the SNR and the draw alone, so every scheme meets the same ones.

    Returns:
        The symbols of every antenna at the last SNR and draw, (n, K Nt N), and for each SNR per-group values by metric,
        (draws, n): the mean over users, and each user's as METRIC.NUMBER.
    """
    found, device = dict[float, dict[str, Tensor]](), test.images.device
    sent: list[Tensor] = []
    for snr_db in grid:
        rows: list[dict[str, Tensor]] = []
        for draw in range(draws):
            sent, parts = [], list[dict[str, Tensor]]()
            for number, indices in enumerate(torch.arange(len(test)).split(BATCH)):
                images, targets = test.batch(indices)
                state = link.draw(len(images), snr_db, seeded(seed, "gains", snr_db, draw, number, device=device))
                noise = seeded(seed, "test noise", snr_db, draw, number, device=device)
                symbols = link.transmit(images, seeded(seed, "nonces", draw, number, device=device), state)
                sent.append(symbols.symbols.flatten(1).cpu())
                output = link.receive(link.channel(symbols.symbols, None, noise, state), symbols.header, state)
                parts.append(_each_user(link.scheme.design.task, output, images, targets))
            rows.append({name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]})
        found[snr_db] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return torch.cat(sent), found


def _each_user(task: Task, output: Tensor, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return what each group came to, (B,), by metric: the mean over users and each user's own."""
    users, found = range(images.shape[1]), dict[str, Tensor]()
    if task.kind == "reconstruct":
        pairs = [(output[:, k].float(), images[:, k]) for k in users]
        each = {
            "psnr_db": [psnr_db(x, y) for x, y in pairs],
            "ssim": [ssim(x, y) for x, y in pairs],
            "ssim_global": [ssim(x, y, "global") for x, y in pairs],
        }
    elif task.kind == "classify":
        each = {"accuracy": [correct(output[:, k], targets[:, k]) for k in users]}
    else:
        shares = [correct_attributes(output[:, k], task.targets(targets[:, k])).mean(1) for k in users]
        each = {"accuracy": shares}
    for name, values in each.items():
        found[name] = torch.stack(values).mean(0)
        found |= {f"{name}.{k + 1}": value for k, value in enumerate(values)}
    return found


def _receive(link: Link, sent: Sent, test: ImageSet, snr_db: float, noise: torch.Generator) -> dict[str, Tensor]:
    """One noise draw of the whole test set: per-image values by metric."""
    rows: dict[str, list[Tensor]] = {}
    kind = link.scheme.design.task.kind
    for indices in torch.arange(len(test)).split(BATCH):
        these = part(sent, indices)
        output = link.receive(link.channel(these.symbols, snr_db, noise), these.header)
        images, targets = test.batch(indices)
        if kind == "reconstruct":
            found = {"psnr_db": psnr_db(output, images), "ssim": ssim(output, images)}
        else:
            found = answers(output, link.scheme.design.task.targets(targets))
        for name, value in found.items():
            rows.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in rows.items()}


def _measure(link: Link, found: dict[str, Tensor], test: ImageSet, names: Sequence[str]) -> dict[str, Measurement]:
    if isinstance(link, Network):
        percent = {"accuracy": 100.0}
        return {
            name: Measurement.of(mean_interval(each), UNITS[base], percent.get(base, 1.0))
            for name, each in found.items()
            for base in [name.partition(".")[0]]
        }
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
