# SPDX-License-Identifier: Apache-2.0
"""What a device does: ``python benchmarks/throughput.py [--device cuda] [--out FOLDER]``.

Images a second of a training, as ``semlink train`` runs it with preset ``paper``, and of an evaluation; of several
users, all of theirs. The share of the peak is that of the operations counted in a training step, of what a product of
two large bfloat16 matrices reaches on the same device. What counts is the fastest of a few, after one to warm up.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import trainings
from torch.utils.flop_counter import FlopCounterMode

from semlink._errors import SemlinkError
from semlink.bench import evaluator, links, trainer
from semlink.schemes.link import Link
from semlink.training import describe_machine, keep_memory, resolve_device, resolve_precision

LINKS = (
    ("deepjscc", "cifar10", (3, 32, 32), {"channel_uses": 64}),
    ("deepjscc-lbvq", "cifar10", (3, 32, 32), {"channel_uses": 16}),
    ("irsc-csir", "mnist+fashion-mnist", (2, 1, 28, 28), {"channel_uses": 16}),
)
GRID, DRAWS, EPOCHS = (4.0, 8.0, 12.0, 16.0, 20.0), 10, 3


def settled(device: torch.device) -> float:
    """Return the seconds at which the device is done with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device, size: int) -> float:
    """Return operations a second of a product of two bfloat16 matrices."""
    a, best = torch.randn(size, size, device=device).bfloat16(), float("inf")
    for number in range(8):
        begun = settled(device)
        a @ a
        if number:
            best = min(best, settled(device) - begun)
    return 2 * size**3 / best


def operations(link: Link, precision: str, images: torch.Tensor, targets: torch.Tensor) -> int:
    """Return the operations of a training step, forward and backward, for each image."""
    device = images.device

    def carry(symbols: torch.Tensor, source: torch.Generator) -> Any:
        return link.medium(symbols, link.snr_db, source)

    (phase,) = link.scheme.phases(trainer.schedule(links.make_recipe("deepjscc")).optimiser, carry, 0.1)
    counter, mixed = FlopCounterMode(display=False), torch.autocast(device.type, torch.bfloat16, precision == "bf16")
    with counter, mixed:
        phase.module(images, targets, torch.Generator(device).manual_seed(0))["loss"].backward()
    link.scheme.zero_grad()
    return counter.get_total_flops() // len(images)


def row(name: str, data: str, shape: tuple[int, ...], sizes: dict[str, int], device: torch.device, count: int) -> Any:
    """Return images a second of one link, and operations a second of its training."""
    precision = resolve_precision(device)
    recipe = links.make_recipe(name, data=data, snr_db=12.0, preset="paper", precision=precision, **sizes)
    link, images = links.build(recipe), trainings.sets(count, data, shape)
    with tempfile.TemporaryDirectory() as folder:
        fit = trainings.trained(link, recipe, images, device)
        best = min([fit(epoch, Path(folder))[-1]["epoch_seconds"] for epoch in range(1, EPOCHS + 2)][1:])
    few = images.transceiver.to(device).batch(torch.arange(min(count, 256)))
    each = operations(link, precision, *few)
    link.scheme.eval()
    spent = float("inf")
    for _ in range(2):
        begun = settled(device)
        evaluator.measure(link, images.transceiver, GRID, DRAWS, 0, device)
        spent = min(spent, settled(device) - begun)
    batch, users = trainer.schedule(recipe).batch_size, shape[0] if len(shape) == 4 else 1
    trained = count // batch * batch  # what is left over is not shown
    return {
        "link": name,
        "precision": precision,
        "batch": batch,
        "trained_a_second": round(users * trained / best),
        "evaluated_a_second": round(users * count * len(GRID) * DRAWS / spent),
        "operations_a_second": round(each * trained / best),
    }


def main() -> None:
    """Measure, print, and write the record if asked to."""
    parser = argparse.ArgumentParser(description="What a device does.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=37_500, help="of an epoch, at least 512")
    parser.add_argument("--side", type=int, default=8192, help="of the matrices whose product is the peak")
    parser.add_argument("--out", type=Path, help="folder that takes the record, one of each kind of device")
    given = parser.parse_args()
    try:
        device = resolve_device(given.device)
    except SemlinkError as error:
        parser.error(str(error))
    keep_memory()  # as the command line does
    torch.set_flush_denormal(True)
    most, machine = peak(device, given.side), describe_machine(device)
    print(f"{machine['device']}: {most / 1e12:.1f} TFLOP/s of bfloat16 products")
    print(f"{'link':16}{'batch':>7}{'trained / s':>13}{'evaluated / s':>15}{'of the peak':>13}")
    rows = []
    for name, data, shape, sizes in LINKS:
        found = row(name, data, shape, sizes, device, given.images)
        rows.append(found)
        share = found["operations_a_second"] / most
        print(
            f"{name:16}{found['batch']:7}{found['trained_a_second']:13,}{found['evaluated_a_second']:15,}{share:13.1%}",
            flush=True,
        )
    if given.out:
        said = {"machine": machine, "peak_operations_a_second": most, "links": rows}
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"throughput-{device.type}.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
