# SPDX-License-Identifier: Apache-2.0
"""Recipes become runs, runs become records."""

from semlink.bench.attack import attack
from semlink.bench.evaluate import evaluate
from semlink.bench.links import create, load, make_recipe
from semlink.bench.presets import PRESETS, preset
from semlink.bench.quickstart import main_job
from semlink.bench.train import default_folder, held_precision, train

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
