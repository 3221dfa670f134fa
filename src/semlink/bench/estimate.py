# SPDX-License-Identifier: Apache-2.0
"""What a bench will cost: from cells that were made before, or else from a trial of each kind on a few images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from semlink.bench.graph import Cell, Graph
from semlink.bench.steps import STEPS
from semlink.bench.store import Store, canonical

_SEEDS = frozenset({"seed", "attack_seed", "key"})


@dataclass(frozen=True)
class Cost:
    """Seconds in one process, and bytes that stay on disk."""

    seconds: float
    disk_bytes: int


def kind_of(cell: Cell) -> str:
    """Return what cells that cost the same have in common."""
    return canonical([cell.step, _seedless(cell.spec)])


def known(graph: Graph, store: Store) -> dict[str, Cost]:
    """Return the cost of each kind of cell of which one is done."""
    found = {}
    for cell in graph.cells:
        if store.is_sound(cell.name):
            done = store.done(cell.name)
            size = sum((store.folder(cell.name) / name).stat().st_size for name in done["files"])
            found[kind_of(cell)] = Cost(done["seconds"], size)
    return found


def costs(
    graph: Graph, store: Store, device: torch.device, note: Callable[[str], None] = lambda text: None
) -> dict[str, Cost]:
    """Return the cost of each cell by its name, from trials on one thread where no cell of its kind is done."""
    by_kind, threads = known(graph, store), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for cell in graph.cells:
            if kind_of(cell) not in by_kind:
                note(f"measuring: {cell.label}")
                inputs = {role: store.folder(name) for role, name in cell.inputs.items()}
                trial = STEPS[cell.step].trial(cell.spec, inputs, device)
                by_kind[kind_of(cell)] = Cost(trial.seconds, trial.disk_bytes)
    finally:
        torch.set_num_threads(threads)
    return {cell.name: by_kind[kind_of(cell)] for cell in graph.cells}


def _seedless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _seedless(each) for key, each in value.items() if key not in _SEEDS}
    return value
