# SPDX-License-Identifier: Apache-2.0
"""A row of the table of speeds, and how the sides of one are timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]
ROUNDS = 7


@dataclass
class Row:
    """A comparison: seconds of each side for the same work, and what the ratio is to be.

    Attributes:
        target: how many times faster than the best peer, at least; None where none is set.
        threads: of torch, on either side.
    """

    work: str
    target: float | None
    seconds: dict[str, float]
    threads: int = 1

    @property
    def peer(self) -> str:
        """The fastest of the others."""
        return min((name for name in self.seconds if name != "semlink"), key=lambda name: self.seconds[name])

    @property
    def ratio(self) -> float:
        """How many times faster than the best peer."""
        return self.seconds[self.peer] / self.seconds["semlink"]


def fastest(works: dict[str, Work], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the least seconds of each, after a round to warm up; they take turns."""
    least = dict.fromkeys(works, float("inf"))
    for number in range(rounds + 1):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            if number:
                least[name] = min(least[name], time.perf_counter() - begun)
    return least


def capability() -> str:
    """Return the best that this processor has for products of matrices, as the targets of trainings go by it."""
    found = torch.cpu.get_capabilities()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512_f": "AVX-512", "avx2": "AVX2"}
    return next((said for name, said in names.items() if found.get(name)), str(found["architecture"]))


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded source of randomness."""
    return torch.Generator().manual_seed(seed)
