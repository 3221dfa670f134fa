# SPDX-License-Identifier: Apache-2.0
"""The main job: train an undefended and an encrypted link, attack the one, and the other with and without its key."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch

from semlink.attacks import Threat
from semlink.bench import links
from semlink.bench.attacking import attack
from semlink.bench.evaluator import evaluate
from semlink.bench.presets import preset
from semlink.bench.trainer import train
from semlink.training import Watcher

GRID_DB = (4.0, 8.0, 12.0, 16.0, 20.0)


def main_job(
    folder: Path,
    device: torch.device,
    watcher: Callable[[str], AbstractContextManager[Watcher]],
    *,
    data: str = "digits",
    preset_name: str = "cpu",
    snr_db: float = 12.0,
    seed: int = 0,
    precision: Literal["bf16", "fp32"] = "fp32",
    perceptual: Literal["vgg16", "none"] = "none",
    grid_db: Sequence[float] = GRID_DB,
) -> list[Path]:
    """Run the main job in ``folder``; every part that is done already is left as it is.

    Args:
        folder: takes one run folder a link.
        watcher: makes the display of one training from its title.

    Returns:
        The run folders: undefended, encrypted with a fresh nonce a message, encrypted with a fixed nonce.
    """
    runs: list[Path] = []
    options: dict[str, Any]
    for title, scheme, options in (
        ("deepjscc", "deepjscc", {}),
        ("deepjscc-encryption", "deepjscc-encryption", {}),
        ("deepjscc-encryption, fixed nonce", "deepjscc-encryption", {"fresh": False}),
    ):
        recipe = links.make_recipe(
            scheme, data=data, snr_db=snr_db, preset=preset_name, seed=seed, precision=precision, **options
        )
        run = folder / (scheme + ("-fixed-nonce" if options else ""))
        with watcher(f"train {title}") as watch:
            train(recipe, run, device, watch)
        if not (run / "evaluate.json").exists():
            evaluate(run, grid_db, preset(preset_name).draws, seed, device)
        for with_key in (False, True) if scheme == "deepjscc-encryption" and not options else (False,):
            threat = Threat(snr_db, with_secret=with_key)
            with watcher(f"attack {title}" + (" with the key" if with_key else "")) as watch:
                attack(run, threat, device, perceptual=perceptual, seed=seed, precision=precision, watch=watch)
        runs.append(run)
    return runs
