# SPDX-License-Identifier: Apache-2.0
"""The training loop and what it stands on."""

from semlink.training.batches import Batches, seeded
from semlink.training.device import describe_machine, keep_memory, resolve_device, resolve_precision
from semlink.training.loop import Fit, Moment, TrainingDiverged, Watcher, make_board, make_fabric
from semlink.training.processes import together
from semlink.training.progress import ScreenProgress

__all__ = [
    "Batches",
    "Fit",
    "Moment",
    "ScreenProgress",
    "TrainingDiverged",
    "Watcher",
    "describe_machine",
    "keep_memory",
    "make_board",
    "make_fabric",
    "resolve_device",
    "resolve_precision",
    "seeded",
    "together",
]
