# SPDX-License-Identifier: Apache-2.0
"""Attacking a run folder: the attack is trained, judged at its own SNR, and kept beside the run."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Literal

import torch

from semlink._errors import SemlinkError
from semlink._files import exclusive
from semlink.attacks import Inference, Threat, attacks
from semlink.bench import attacker, links
from semlink.bench.evaluator import finite
from semlink.bench.judge import judge
from semlink.bench.measures import INFERRED
from semlink.bench.presets import preset
from semlink.data import describe
from semlink.schemes import Key
from semlink.training import Watcher, checkpoint


def attack(
    folder: Path,
    threat: Threat,
    device: torch.device,
    *,
    name: str = "inversion",
    perceptual: Literal["vgg16", "none"] = "vgg16",
    seed: int = 0,
    precision: Literal["bf16", "fp32"] = "fp32",
    watch: Watcher = lambda moment: None,
    key: Key | None = None,
) -> Path:
    """Attack the run in ``folder`` with the schedule of the preset that it was trained with.

    Its record goes to ``<folder>/attack-<hash of the settings>.json``, what each image came to and the first
    reconstructions to ``.safetensors`` of the same name, the trained attack into a folder of that name. An attack that
    is interrupted resumes; one that is finished is not run again.

    Returns:
        The path of the record.

    Raises:
        SemlinkError: the folder is no finished run, or of an attacker's own link; perceptual weights or the key are
            missing; another process is at the same attack.
        RuntimeError: the victim's weights or buffers changed (a defect in an attack, never accepted).
    """
    threat = dataclasses.replace(threat, snr_db=finite([threat.snr_db])[0])
    trained = links.read_run(folder)
    if trained.recipe.variant == "shadow":
        raise SemlinkError(
            f"{folder} was trained on the attacker's images (variant 'shadow'); attack a link of another variant"
        )
    plan = attacker.Plan(name, threat, trained.recipe.preset, perceptual, seed, precision)
    attacker.check(plan, trained)
    described = plan.describe(describe(trained.recipe.data))
    name_of = repr((sorted(described.items()), trained.weights_sha256))  # a link trained anew is another victim
    work = folder / f"attack-{hashlib.sha256(name_of.encode()).hexdigest()[:12]}"
    path = work.with_suffix(".json")
    if path.exists():
        return path
    attacker.train_attack(folder, plan, work, device, watch, key)
    with exclusive(work):
        checkpoint.sweep(folder, work.name + ".")
        inferring = issubclass(attacks[name], Inference)
        metrics = [*INFERRED] if inferring else ["psnr_db", "ssim", "mi_leakage", *["lpips"] * (perceptual == "vgg16")]
        draws = preset(trained.recipe.preset).draws
        judge(folder, plan, work, [threat.snr_db], draws, seed, metrics, device, path, key)
    return path
