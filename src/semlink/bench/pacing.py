# SPDX-License-Identifier: Apache-2.0
"""How long an attack of an audit will take, told from a few of its steps, and how much of the time is left."""

import statistics
import time
from typing import Literal

import torch
from torch import nn

from semlink.attacks import Drawing
from semlink.bench.presets import Schedule
from semlink.data import DataSet
from semlink.training import Batches, seeded

_STEPS = 5  # of training, by whose median the pace is told
_FEW = (2, 8)  # images drawn, likewise
_LATE = 0.05  # of the budget


class Clock:
    """The budget, in seconds, of which attacks that an earlier session finished have taken their part."""

    def __init__(self, budget: float, begun: float) -> None:
        self._end, self._budget, self.earlier = begun + budget, budget, 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - self.earlier - time.perf_counter()

    @property
    def late(self) -> bool:
        """Whether so little is left that it is not even worth finding out how long an attack would take."""
        return self.left < _LATE * self._budget


class OutOfTime(Exception):
    """The budget is spent in the middle of a training, whose checkpoint stays."""


def epoch_seconds(
    model: nn.Module, sets: DataSet, schedule: Schedule, precision: Literal["bf16", "fp32"], device: torch.device
) -> float:
    """Return what an epoch of ``model`` takes on the attacker's images; a validated image is half a step's.

    ``model`` is spoilt by it: its statistics have moved.
    """
    batches, noise = Batches([sets.attacker], schedule.batch_size, sets.augmentation, 0), seeded(0, device=device)
    mixed, seconds = torch.autocast(device.type, torch.bfloat16, precision == "bf16"), list[float]()
    model.to(device).train()
    batches.to(device)
    for (images, targets), _ in zip(batches.epoch(0, "pace"), range(_STEPS), strict=False):
        begun = time.perf_counter()
        with mixed:
            loss = model(images, targets, noise)["loss"]
        loss.backward()
        _wait(device)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * (batches.rounds + len(sets.attacker_validation) / batches.batch_size / 2)


@torch.no_grad()
def drawing_seconds(eve: Drawing, sets: DataSet, count: int, device: torch.device) -> float:
    """Return what it takes to draw ``count`` test images: the first few pay for starting, each more for itself."""
    eve.to(device).eval()
    seconds = list[float]()
    for few in _FEW:
        images, begun = sets.test.batch(torch.arange(few))[0].to(device), time.perf_counter()
        eve.reconstruct(eve.tap.intercept(images, seeded(0, device=device)), eve.tap.threat.snr_db)
        _wait(device)
        seconds.append(time.perf_counter() - begun)
    return seconds[0] + max(0.0, seconds[1] - seconds[0]) / (_FEW[1] - _FEW[0]) * count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
