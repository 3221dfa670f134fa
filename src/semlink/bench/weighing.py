# SPDX-License-Identifier: Apache-2.0
"""What a link takes to use and to train, measured on a network that a few batches have trained, on one thread.

Every number but seconds and memory follows from the design. Seconds of an epoch are of the processor and the least of
several, so that other work on the machine hardly changes them; on a GPU they are of the clock.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from semlink.bench import attacker, code, cost, links, record, trainer
from semlink.data import DataSet
from semlink.training import Moment, make_fabric

BATCHES, EPOCHS = 8, 4  # of the training that is timed; its first epoch warms up
#: Fields of the record that are the same on every machine.
COUNTS = {"parameters", "held", "multiply_adds", "channel_uses", "payload_bits"}


def weigh(recipe: record.Recipe, device: torch.device, out: Path, batches: int = BATCHES) -> record.CostRecord:
    """Measure the link of ``recipe`` and write the record to ``out``.

    Raises:
        SemlinkError: the recipe's link cannot be built, or images are missing.
    """
    link, sets, begun = links.build(recipe), links.image_sets(recipe), time.perf_counter()
    few, share = _few(sets, trainer.schedule(recipe).batch_size, batches)
    plan = dataclasses.replace(trainer.schedule(recipe), epochs=EPOCHS, patience=None)
    spent = [_spent(device)]

    def note(moment: Moment) -> None:
        if moment.progress * EPOCHS >= len(spent) - 1e-9:  # the end of an epoch
            spent.append(_spent(device))

    _forget_peak(device)
    with tempfile.TemporaryDirectory() as work, _one_thread():
        trainer.fit(link, recipe, few, plan, Path(work), make_fabric(device, recipe.precision), note)
        peak = _peak(device)
        images = sets.validation.batch(torch.arange(min(len(sets.validation), 500)))[0]
        with torch.no_grad():
            found = cost.cost(link, images)
    epochs = [after - before for before, after in itertools.pairwise(spent)][1:]
    done = record.CostRecord(
        **record.origin(
            recipe,
            sets.provenance,
            attacker.fingerprint(link.scheme),
            device,
            code.modules_sha256(*modules(recipe.scheme, recipe.channel)),
            seconds=time.perf_counter() - begun,
            training_seconds=spent[-1] - spent[0],
        ),
        **dataclasses.asdict(found),
        epoch_seconds=round(min(epochs) / share, 3),
        training_bytes=peak,
    )
    record.write(out, done)
    return done


def modules(scheme: str, channel: str) -> tuple[str, ...]:
    """Return the modules on which the cost of ``scheme`` depends, but for what they import."""
    return __name__, cost.__name__, *links.modules_of(scheme, channel)


def _few(sets: DataSet, batch_size: int, batches: int) -> tuple[DataSet, float]:
    """Return a share of the images to train with and to validate on, and how large it is."""
    size = min(batches * batch_size, len(sets.transceiver))
    share = size / len(sets.transceiver)
    check = max(1, round(share * len(sets.validation)))
    few = sets.transceiver.subset(torch.arange(size)), sets.validation.subset(torch.arange(check))
    return dataclasses.replace(sets, transceiver=few[0], validation=few[1]), share


def _spent(device: torch.device) -> float:
    """Return the seconds that this process has computed, or of the clock where a GPU does."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # of Linux alone
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int | None:
    """Return the most bytes that were allocated on a GPU, or else held by this process; None where it is not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None
