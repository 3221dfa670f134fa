# SPDX-License-Identifier: Apache-2.0
"""Training one link in a run folder, once, however often it is interrupted.

<folder>/recipe.json            written first: what the folder is for
         checkpoint*            while training
         log.jsonl              a line an epoch
         weights.safetensors    the trained link
         record.json            written last: its presence means that the run is finished
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from semlink._errors import SemlinkError
from semlink._files import exclusive, sha256_file, write_text
from semlink.bench import code, cost, links, record
from semlink.bench.presets import Schedule, preset
from semlink.bench.scoring import score
from semlink.data import DataSet, ImageSet, describe
from semlink.phy import Received
from semlink.schemes import Key, Link
from semlink.training import Batches, Fit, Watcher, checkpoint, make_board, make_fabric, seeded, together

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def default_folder(recipe: record.Recipe) -> Path:
    """Return ``runs/<what it is>``, below the working folder."""
    parts = [recipe.scheme, *(f"{k}={v}" for k, v in recipe.options.items()), recipe.data]
    parts += [recipe.variant] if recipe.variant != "default" else []
    parts += [recipe.task.replace(":", "="), recipe.channel, f"{recipe.snr_db:g}dB"]
    parts += [f"{recipe.channel_uses}uses"] if recipe.channel_uses != 64 else []
    parts += [f"from-{recipe.start[:8]}"] if recipe.start else []
    parts += [recipe.preset, f"seed{recipe.seed}"]
    return Path("runs") / "-".join(parts)


def held_precision(folder: Path) -> str | None:
    """Return the precision that the run in ``folder`` was begun with and keeps when resumed; None if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder / "recipe.json").read_text())["recipe"]["precision"]
    return None


def train(
    recipe: record.Recipe,
    folder: Path,
    device: torch.device,
    watch: Watcher = lambda moment: None,
    key: Key | None = None,
    devices: int = 1,
    start: str | Path | None = None,
    board: Path | None = None,
) -> record.TrainRecord:
    """Train the link of ``recipe`` in ``folder``, or resume, or return the record if that is done.

    ``start`` is the trained link whose weights it begins with, where names and shapes agree: a run folder, or one of
    the zoo; the recipe holds the SHA-256 of these weights. ``board`` is a folder for TensorBoard.

    Raises:
        SemlinkError: the folder is in use, is not a run folder, holds another recipe or is damaged; a key is missing;
            ``start`` is too unlike this link.
        TrainingDiverged: the loss is not finite.
    """
    link = links.build(recipe)  # before anything is written: a recipe that cannot be built leaves no folder behind
    if board is not None:
        make_board(board)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process owns the folder; the others compute
        if (folder / "record.json").exists():  # where torchrun started all: the first has nothing to do either
            return links.read_run(folder)
        _give_key(link, recipe, folder, key)
        return _train(link, recipe, folder, device, devices, watch, start, board)
    _refuse_foreign(folder)
    with exclusive(folder):
        checkpoint.sweep(folder, "recipe.json", "checkpoint", "log.jsonl", "weights.safetensors", "record.json")
        started_by = _claim(recipe, folder, key)
        if (folder / "record.json").exists():
            checkpoint.remove(folder)
            return links.read_run(folder)
        _give_key(link, recipe, folder, key)
        try:
            return _train(link, recipe, folder, device, devices, watch, start, board, started_by)
        except SemlinkError:
            if {path.name for path in folder.iterdir()} <= {"lock", "recipe.json"}:
                (folder / "recipe.json").unlink(missing_ok=True)  # of nothing: another may be trained here
            raise


def _train(
    link: Link,
    recipe: record.Recipe,
    folder: Path,
    device: torch.device,
    devices: int,
    watch: Watcher,
    start: str | Path | None,
    board: Path | None,
    started_by: str = "",
) -> record.TrainRecord:
    begun, sets = time.perf_counter(), links.image_sets(recipe)
    plan, fabric = schedule(recipe), make_fabric(device, recipe.precision, devices, board)
    with together(fabric):
        history, taken = fit(link, recipe, sets, plan, folder, fabric, watch, start)
        if fabric.is_global_zero:
            checkpoint.save_tensors(folder / "weights.safetensors", links.weights_in(link.scheme))
            origin = record.origin(
                recipe,
                sets.provenance,
                sha256_file(folder / "weights.safetensors"),
                fabric.device,
                code.modules_sha256(*modules(recipe.scheme, recipe.channel)),
                training_seconds=sum(row["epoch_seconds"] for row in history),
                last_session_seconds=time.perf_counter() - begun,
            )
            origin["machine"]["processes"] = fabric.world_size
            done = record.TrainRecord(
                **origin,
                started_by_step_sha256=started_by,
                started_from=taken,
                selection="weights of the last epoch",
                schedule=plan.describe() | {"training_images": len(sets.transceiver)},
                **_cost(link, sets.validation),
                describes=link.scheme.describe(),
                history=history,
            )
            record.write(folder / "record.json", done)
            checkpoint.remove(folder)
    return links.read_run(folder)


def schedule(recipe: record.Recipe) -> Schedule:
    """Return how the link of ``recipe`` is trained."""
    if links.users_of(recipe):
        plan = preset(recipe.preset).network
        rate = float(recipe.options.get("learning_rate", plan.optimiser.learning_rate))
        return dataclasses.replace(plan, optimiser=dataclasses.replace(plan.optimiser, learning_rate=rate))
    scale = preset(recipe.preset).scale(describe(recipe.data).image_shape[0])
    if recipe.task != "reconstruct":
        return scale.link
    # An image decoder is trained as the attacker's: at the classifier's rates it diverges.
    return dataclasses.replace(scale.link, optimiser=scale.attack.optimiser, label_smoothing=0.0)


def fit(
    link: Link,
    recipe: record.Recipe,
    sets: DataSet,
    plan: Schedule,
    folder: Path,
    fabric: "Fabric",
    watch: Watcher = lambda moment: None,
    start: str | Path | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int] | None]:
    """Train ``link`` on the transceiver's images, from the checkpoint in ``folder`` if there is one.

    Returns:
        The history, a row an epoch, and how many parameters of how many began with those of ``start``.
    """
    transceiver = sets.transceiver
    link.scheme.prepare(transceiver.batch(torch.arange(min(len(transceiver), 5000)))[0])
    taken = None if start is None else links.start_from(link, start)
    # Paper B has no augmentation.
    augmentation = None if links.users_of(recipe) else sets.augmentation
    users, rank, world = transceiver.members(), fabric.global_rank, fabric.world_size
    batches = Batches(users, plan.batch_size, augmentation, recipe.seed, rank, world)

    def carry(symbols: Tensor, generator: torch.Generator) -> Received:
        return link.medium(symbols, recipe.snr_db, generator)

    training = Fit(
        model=link.scheme,
        phases=link.scheme.phases(plan.optimiser, carry, plan.label_smoothing),
        batches=batches,
        validate=lambda: _validate(link, sets.validation, fabric.device),
        epochs=plan.epochs,
        seed=recipe.seed,
        folder=folder,
        stalled=None if plan.patience is None else partial(stalled, plan.patience),
    )
    return training.run(fabric, watch), taken


def stalled(patience: int, history: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the best validation score of ``patience`` epochs is hardly above the best before them.

    By less than 0.02 dB of PSNR, or 0.001 of an accuracy.
    """
    rows = [row["validation"] for row in history]
    name = "psnr_db" if rows and "psnr_db" in rows[0] else "accuracy"
    scores, least = [row[name] for row in rows], 0.02 if name == "psnr_db" else 0.001
    return len(scores) > patience and max(scores[-patience:]) < max(scores[:-patience]) + least


def modules(scheme: str, channel: str) -> tuple[str, ...]:
    """Return the modules on which the training of ``scheme`` depends, but for what they import."""
    return __name__, *links.modules_of(scheme, channel)


def _give_key(link: Link, recipe: record.Recipe, folder: Path, key: Key | None) -> None:
    links.check_key(recipe, key, folder)
    if key is not None:
        links.give_key(link.scheme, key)


@torch.no_grad()
def _validate(link: Link, images: ImageSet, device: torch.device) -> dict[str, float]:
    """Return the mean utility on ``images`` through the channel, the same noise each time."""
    images, noise, scores = images.to(device), seeded(0, "validation", device=device), []
    for indices in torch.arange(len(images)).split(500):
        batch, targets = images.batch(indices)
        scores.append(score(link.scheme.design.task, link.deliver(batch, link.snr_db, noise), batch, targets))
    name = {"classify": "accuracy", "attributes": "accuracy", "reconstruct": "psnr_db"}[link.scheme.design.task.kind]
    return {name: round(float(torch.cat(scores).mean()), 6)}


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SemlinkError(f"{folder} is a file; choose another --out for the run folder")
    if not folder.is_dir() or (folder / "recipe.json").exists():
        return
    if any(path.name != "lock" and not path.match(".recipe.json.*.part") for path in folder.iterdir()):
        raise SemlinkError(f"{folder} is not empty and not a run folder; choose another --out, or empty it")


def _claim(recipe: record.Recipe, folder: Path, key: Key | None) -> str:
    """Write the recipe into an empty folder, or check that it is this folder's; return the code that started it."""
    path = folder / "recipe.json"
    step = code.modules_sha256(*modules(recipe.scheme, recipe.channel))
    if not path.exists():
        held_here = {"format": record.FORMAT, "recipe": recipe.model_dump(), "step_sha256": step}
        write_text(path, json.dumps(held_here, indent=1))
        return step
    try:
        found = json.loads(path.read_text())
        version = found["format"]
        held = record.Recipe.model_validate(found["recipe"]) if version == record.FORMAT else None
        step = str(found["step_sha256"])
    except (ValueError, KeyError, TypeError, ValidationError):
        raise SemlinkError(
            f"{path} is damaged; restore it from a copy, or remove {folder} to start this run anew"
        ) from None
    if held is None:
        raise SemlinkError(
            f"{folder} has format {version}, this Semlink writes format {record.FORMAT}; choose another --out"
        )
    if held != recipe:
        differing = [name for name in record.Recipe.model_fields if getattr(held, name) != getattr(recipe, name)]
        if differing == ["key"] and held.key and held.key["kind"] == "user":
            links.check_key(held, key, folder)
        shown = ", ".join(f"{name} {getattr(held, name)!r} there, {getattr(recipe, name)!r} here" for name in differing)
        raise SemlinkError(f"{folder} holds another run ({shown}); choose another --out")
    return step


def _cost(link: Link, images: ImageSet) -> dict[str, Any]:
    """Return what a record says of a link's cost; time is left out, for the machine may be busy."""
    found = cost.cost(link, images.batch(torch.arange(min(len(images), 500)))[0])
    return {name: getattr(found, name) for name in ("parameters", "multiply_adds", "channel_uses", "payload_bits")}
