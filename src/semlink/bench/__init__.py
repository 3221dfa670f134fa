# SPDX-License-Identifier: Apache-2.0
"""Recipes become runs, runs become records.

The names below are imported when they are first used: a recipe with a typo is refused before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semlink.bench.attacking import attack
    from semlink.bench.evaluator import evaluate
    from semlink.bench.links import create, load, make_recipe
    from semlink.bench.presets import PRESETS, preset
    from semlink.bench.quickstart import main_job
    from semlink.bench.trainer import default_folder, held_precision, train

_HOMES = {
    "PRESETS": "presets",
    "attack": "attacking",
    "create": "links",
    "default_folder": "trainer",
    "evaluate": "evaluator",
    "held_precision": "trainer",
    "load": "links",
    "main_job": "quickstart",
    "make_recipe": "links",
    "preset": "presets",
    "train": "trainer",
}

__all__ = [
    "PRESETS",
    "attack",
    "create",
    "default_folder",
    "evaluate",
    "held_precision",
    "load",
    "main_job",
    "make_recipe",
    "preset",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'semlink.bench' has no attribute '{name}'")
    return getattr(import_module(f"semlink.bench.{_HOMES[name]}"), name)
