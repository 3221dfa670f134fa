# SPDX-License-Identifier: Apache-2.0
"""Rows of training: steps of a link and of an attack, an epoch of two users, on two threads.

Either side trains the same network on as many random images; Semlink by the very loop that ``semlink train`` runs, with
the precision that it chooses on this processor, the others by the loops of plain.py. The least epoch counts.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import plain
import torch
from rows import Row, Work, capability, generator

from semlink.attacks import Threat
from semlink.attacks.inversion import Inversion
from semlink.bench import attacker, links, preset, trainer
from semlink.bench.record import Recipe
from semlink.data import Augmentation, DataSet, ImageSet, describe
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.deepjscc_lbvq import DeepJSCCLBVQ
from semlink.schemes.link import Link
from semlink.training import make_fabric, resolve_precision

CPU, SNR_DB, THREADS, EPOCHS = torch.device("cpu"), 12.0, 2, 6


def sets(count: int, name: str, shape: tuple[int, ...]) -> DataSet:
    """Return random images of all splits; the validation of an epoch costs next to nothing."""
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator())
    targets = torch.randint(10, (count, *shape[:-3]), generator=generator(1))
    some, few = ImageSet(images, targets), ImageSet(images[:8], targets[:8])
    said = Augmentation(4, flip=True)
    return DataSet(name, "default", "classes", tuple("0123456789"), some, few, some, few, few, said, {})


def turns(fit: Callable[[int, Path], list[dict[str, Any]]], theirs: Work, steps: int = 1) -> dict[str, float]:
    """Return the least seconds of a step of either side, whose epochs take turns.

    Args:
        fit: trains to the end of an epoch, from what the folder holds of those before; returns the history.
        theirs: trains for an epoch.
        steps: of an epoch.
    """
    least = {"semlink": float("inf"), "plain loop": float("inf")}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, EPOCHS + 1):
            ours, begun = fit(number, Path(folder))[-1]["epoch_seconds"], time.perf_counter()
            theirs()
            if number > 1:  # the first warms up
                least["semlink"] = min(least["semlink"], ours / steps)
                least["plain loop"] = min(least["plain loop"], (time.perf_counter() - begun) / steps)
    return least


def trained(
    link: Link, recipe: Recipe, images: DataSet, device: torch.device = CPU
) -> Callable[[int, Path], list[dict[str, Any]]]:
    """Return the training of ``link`` as ``semlink train`` does it."""
    plan = trainer.schedule(recipe)

    def fit(epochs: int, folder: Path) -> list[dict[str, Any]]:
        longer, fabric = dataclasses.replace(plan, epochs=epochs), make_fabric(device, recipe.precision)
        return trainer.fit(link, recipe, images, longer, folder, fabric)[0]

    return fit


def links_steps() -> list[Row]:
    """A step of 256 images: DeepJSCC of 64 uses, and LBVQ of 16."""
    found, steps, precision = [], 8, resolve_precision(CPU)
    images = sets(steps * 256, "cifar10", (3, 32, 32))
    shown = plain.loader(plain.Images(images.transceiver.images, images.transceiver.targets), 256)
    for name, uses in (("deepjscc", 64), ("deepjscc-lbvq", 16)):
        recipe = links.make_recipe(name, data="cifar10", snr_db=SNR_DB, channel_uses=uses, precision=precision)
        link, other = links.build(recipe), plain.network(links.build(recipe).scheme).train()
        if isinstance(other, DeepJSCC):
            step = plain.deepjscc(other, SNR_DB)
        else:
            step = plain.lbvq(cast(DeepJSCCLBVQ, other), SNR_DB)
        optimiser = torch.optim.Adam(other.parameters(), lr=1e-3, weight_decay=1e-4)
        seconds = turns(trained(link, recipe, images), lambda s=step, o=optimiser: plain.epoch(s, shown, o), steps)
        found.append(Row(f"training step of {name}, CIFAR-10, batch 256", least(3.0, 1.2), seconds, THREADS))
    return found


def attack_step() -> list[Row]:
    """A step of 64 images of the attacker's decoder on a DeepJSCC link, by MSE and perceptual distance."""
    steps, precision, shape = 16, resolve_precision(CPU), describe("cifar10")
    images = sets(steps * 64, "cifar10", (3, 32, 32))
    recipe = links.make_recipe("deepjscc", data="cifar10", snr_db=SNR_DB, precision=precision)
    plan, schedule = (
        attacker.Plan("inversion", Threat(SNR_DB), "cpu", "vgg16", 0, precision),
        preset("cpu").colour.attack,
    )
    link = links.build(recipe)
    link.scheme.eval()
    eve, other = attacker.build(link, plan, shape), cast(Inversion, attacker.build(link, plan, shape))
    other.decoder = plain.network(other.decoder).train()
    step = plain.inversion(cast(DeepJSCC, plain.network(link.scheme)), other, SNR_DB)
    shown = plain.loader(plain.Images(images.attacker.images, images.attacker.targets), schedule.batch_size)
    optimiser = torch.optim.Adam(other.decoder.parameters(), lr=1e-3, weight_decay=1e-4)

    def fit(epochs: int, folder: Path) -> list[dict[str, Any]]:
        return attacker.fit(eve, images, dataclasses.replace(schedule, epochs=epochs), plan, folder, CPU)

    seconds = turns(fit, lambda: plain.epoch(step, shown, optimiser), steps)
    return [Row("attack step, CIFAR-10, batch 64, 2 taps of VGG16", least(3.0, 1.2), seconds, THREADS)]


def irsc_epoch() -> list[Row]:
    """An epoch of IRSC with CSI at the receiver, two users, 25,600 images each in batches of 128."""
    images = sets(25_600, "mnist+fashion-mnist", (2, 1, 28, 28))
    recipe = links.make_recipe(
        "irsc-csir", data="mnist+fashion-mnist", snr_db=10.0, channel_uses=16, precision=resolve_precision(CPU)
    )
    link, users = links.build(recipe), [plain.User(2), plain.User(2)]
    weights = [each for user in users for each in user.parameters()]
    assert sum(each.numel() for each in link.scheme.parameters()) == sum(each.numel() for each in weights)
    optimiser = torch.optim.Adam(weights, lr=1e-3, betas=(0.9, 0.98))
    held = images.transceiver
    shown = [plain.Images(held.images[:, k], held.targets[:, k], padding=0, flip=False) for k in (0, 1)]
    seconds = turns(trained(link, recipe, images), lambda: plain.irsc(users, shown, 128, optimiser))
    return [Row("epoch of irsc-csir, K = 2, 25,600 images each", least(1.8, 1.5), seconds, THREADS)]


def least(amx: float, otherwise: float) -> float:
    """Return the target of a row of training: ``amx`` where the processor has that."""
    return amx if capability() == "AMX" else otherwise
