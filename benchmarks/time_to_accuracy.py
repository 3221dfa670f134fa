# SPDX-License-Identifier: Apache-2.0
"""How long until DeepJSCC classifies CIFAR-10? ``time_to_accuracy.py {semlink,plain} WORK [--out FILE]``

One side trains the network of 64 channel uses at 12 dB until 90 % of the validation images are right, or for a number
of epochs; after every epoch the log says its loss, its accuracy, its seconds and those of the processor. ``plain`` is
the recipe that the public code of VL-VFE and UIS-ToSC has in common, in the loop of plain.py: float32, Adam of learning
rate 1e-3 and decay 1e-4, halved every 60 epochs, batches of 512, crops and mirroring. Its network is Semlink's own, a
third of the size of theirs. ``semlink`` is the schedule of preset ``cpu``, made to end after ten epochs. The folder
WORK keeps the training after every epoch; the same command goes on with it. On a GPU: ``semlink WORK --device cuda
--goal 0.92 --epochs 30``.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import plain
import torch
from torch import Tensor

from semlink.bench import links, trainer
from semlink.data import ImageSet
from semlink.schemes.deepjscc import DeepJSCC
from semlink.training import Moment, checkpoint, describe_machine, keep_memory, make_fabric, resolve_precision

SNR_DB = 12.0


class Log:
    """Rows of epochs, written after each."""

    def __init__(self, side: str, goal: float, device: torch.device, out: Path | None) -> None:
        self.goal, self.out, self.rows = goal, out, []
        machine = describe_machine(device)
        self.said = {"side": side, "goal": goal, "snr_db": SNR_DB, "machine": machine, "log": self.rows}
        self.begun = self._now()

    def add(self, loss: float, accuracy: float) -> None:
        """Note an epoch's end."""
        wall, processor = (round(b - a, 2) for a, b in zip(self.begun, self._now(), strict=True))
        row = {"epoch": len(self.rows) + 1, "loss": round(loss, 4), "accuracy": round(accuracy, 4)}
        self.rows.append(row | {"seconds": wall, "processor_seconds": processor})
        print(self.rows[-1], flush=True)
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.said, indent=1) + "\n")
        self.begun = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def by_plain(log: Log, epochs: int, work: Path) -> None:
    """Train by the plain loop until the goal is reached."""
    recipe = links.make_recipe("deepjscc", data="cifar10", snr_db=SNR_DB, precision="fp32")
    images, link = links.image_sets(recipe), links.build(recipe)
    link.scheme.prepare(images.transceiver.batch(torch.arange(5000))[0])
    network = plain.network(link.scheme)
    assert isinstance(network, DeepJSCC)
    step, held = plain.deepjscc(network, SNR_DB), images.transceiver
    shown = plain.loader(plain.Images(held.images, held.targets), 512)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-4)
    torch.manual_seed(0)
    if (found := checkpoint.load(work)) is not None:
        state, tensors = found
        log.rows.extend(state["history"])
        torch.set_rng_state(tensors.pop("rng"))
        checkpoint.unpack_optimiser("optimiser", optimiser, tensors)
        network.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("optimiser.")})
    while len(log.rows) < epochs and (not log.rows or log.rows[-1]["accuracy"] < log.goal):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.5 ** (len(log.rows) // 60)
        network.train()
        loss = plain.epoch(step, shown, optimiser)
        log.add(loss, accuracy_of(network, images.validation))
        held_here = network.state_dict() | checkpoint.pack_optimiser("optimiser", optimiser)
        state = {"epoch": len(log.rows), "history": log.rows}
        checkpoint.save(work, state, held_here | {"rng": torch.get_rng_state()})


@torch.no_grad()
def accuracy_of(network: DeepJSCC, images: ImageSet) -> float:
    """Return the share of ``images`` that arrive as what they are."""
    network.eval()
    right: list[Tensor] = []
    for indices in torch.arange(len(images)).split(500):
        batch, targets = images.batch(indices)
        sent = network.features(batch)
        heard = sent + (0.5 * 10 ** (-SNR_DB / 10)) ** 0.5 * torch.randn_like(sent)
        right.append(network.answer(heard).argmax(1) == targets)
    return float(torch.cat(right).double().mean())


def by_semlink(log: Log, epochs: int, work: Path, device: torch.device) -> None:
    """Train as ``semlink train`` does; the schedule takes all its epochs to come down."""
    recipe = links.make_recipe("deepjscc", data="cifar10", snr_db=SNR_DB, precision=resolve_precision(device))
    images, link = links.image_sets(recipe), links.build(recipe)
    plan = dataclasses.replace(trainer.schedule(recipe), epochs=epochs)
    if (found := checkpoint.load(work)) is not None:
        for row in found[0]["history"]:
            log.add(row["losses"]["loss"], row["validation"]["accuracy"])

    def watch(moment: Moment) -> None:
        if round(moment.progress * epochs, 6) >= len(log.rows) + 1:
            log.add(moment.losses["loss"], moment.validation["accuracy"])

    trainer.fit(link, recipe, images, plan, work, make_fabric(device, recipe.precision), watch)


def main() -> int:
    """Train one side and log it; exit status 1 if the goal was not reached."""
    parser = argparse.ArgumentParser(description="How long until DeepJSCC classifies CIFAR-10?")
    parser.add_argument("side", choices=("semlink", "plain"))
    parser.add_argument("work", type=Path, help="folder that keeps the training")
    parser.add_argument("--out", type=Path, help="file that takes the log, as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="at most; 10 for semlink and 100 for plain if left out")
    parser.add_argument("--goal", type=float, default=0.9, help="share of the validation images")
    parser.add_argument("--device", type=torch.device, default="cpu", help="of the side semlink")
    given = parser.parse_args()
    if given.side == "plain" and given.device.type != "cpu":
        parser.error("the side plain runs on the CPU")
    torch.set_flush_denormal(True)  # as the command line does
    keep_memory()
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    log = Log(given.side, given.goal, given.device, given.out)
    if given.side == "semlink":
        by_semlink(log, given.epochs or 10, given.work, given.device)
    else:
        by_plain(log, given.epochs or 100, given.work)
    return int(all(row["accuracy"] < given.goal for row in log.rows))


if __name__ == "__main__":
    sys.exit(main())
